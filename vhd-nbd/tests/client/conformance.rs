//! The contract of a disk, kept over our own server.

use std::sync::{Arc, Mutex};

use vhd_block::{BlockDevice, Disk};
use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::device::RawDevice;
use vhd_core::storage::MemoryFile;
use vhd_nbd::client::{ClientOptions, NbdDevice};
use vhd_nbd::server::{Export, ExportSet, ServerOptions};
use vhd_testkit::Conformance;

use crate::support::{Running, create, resizable};

/// A server with its disk and its directory.
pub(crate) type Serving = (Running, Option<OpenedDisk>, tempfile::TempDir);

/// Servers that live as long as the devices of a suite.
pub(crate) struct Servers {
    pub(crate) options: ServerOptions,
    /// What becomes of the URI of a server.
    pub(crate) uri: Box<dyn Fn(String) -> String>,
    pub(crate) connections: usize,
    pub(crate) running: Mutex<Vec<Serving>>,
}

impl Default for Servers {
    fn default() -> Self {
        Self {
            options: ServerOptions::default(),
            uri: Box::new(|uri| uri),
            connections: 4,
            running: Mutex::default(),
        }
    }
}

impl Servers {
    fn serve(
        &self,
        disk: Disk,
        opened: Option<OpenedDisk>,
        dir: tempfile::TempDir,
        read_only: bool,
    ) -> Arc<dyn BlockDevice> {
        let mut exports = ExportSet::new();
        let export = Export::new("disk", disk).resizable();
        exports
            .add(if read_only { export.read_only() } else { export })
            .unwrap();
        let running = Running::start(dir.path(), exports, self.options.clone());
        let options = ClientOptions {
            write: !read_only,
            connections: self.connections,
            ..ClientOptions::default()
        };
        let uri = (self.uri)(running.uri("disk"));
        let device = NbdDevice::open(&uri.parse().unwrap(), options).unwrap();
        self.running.lock().unwrap().push((running, opened, dir));
        device
    }

    pub(crate) fn memory(&self, content: &[u8], read_only: bool) -> Arc<dyn BlockDevice> {
        let device = RawDevice::new(Arc::new(MemoryFile::from_bytes(content.to_vec())), true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        self.serve(Disk::new(Arc::new(device)), None, dir, read_only)
    }

    /// An export whose size can be changed.
    pub(crate) fn resizable(&self, size: u64, content: &[u8]) -> Arc<dyn BlockDevice> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhd");
        create(&path, size);
        let disk = Disk::new(resizable(&path));
        disk.write_at(content, 0).unwrap();
        self.serve(disk, None, dir, false)
    }

    fn dynamic(&self, size: u64, content: &[u8]) -> Arc<dyn BlockDevice> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhd");
        create(&path, size);
        let opened = OpenOptions::new().write(true).open(&path).unwrap();
        for (index, part) in content.chunks(64 << 10).enumerate() {
            if part.iter().any(|&byte| byte != 0) {
                let offset = u64::try_from(index << 16).unwrap();
                opened.disk().write_at(part, offset).unwrap();
            }
        }
        self.serve(opened.disk(), Some(opened), dir, false)
    }
}

pub(crate) fn suite() -> Conformance {
    Conformance {
        // Another connection may read while one writes.
        torn_reads: true,
        steps: 60,
        ..Conformance::default()
    }
}

#[test]
fn the_contract_is_kept_over_a_raw_disk() {
    let servers = Servers::default();
    suite().run(&|_, content| servers.memory(content, false));
}

#[test]
fn the_contract_is_kept_over_one_connection() {
    let servers = Servers {
        connections: 1,
        ..Servers::default()
    };
    suite().run(&|_, content| servers.memory(content, false));
}

#[test]
fn the_contract_is_kept_over_a_dynamic_image() {
    let servers = Servers::default();
    suite().run(&|size, content| servers.dynamic(size, content));
}

#[test]
fn the_contract_is_kept_for_reading() {
    let servers = Servers::default();
    let suite = Conformance {
        read_only: true,
        ..suite()
    };
    suite.run(&|_, content| servers.memory(content, true));
}
