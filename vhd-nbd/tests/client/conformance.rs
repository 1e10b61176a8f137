//! The contract of a disk, kept over our own server.

use std::sync::{Arc, Mutex};

use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::device::{BlockDevice, Disk, RawDevice};
use vhd_core::storage::MemoryFile;
use vhd_nbd::client::{ClientOptions, NbdDevice};
use vhd_nbd::server::{Export, ExportSet, ServerOptions};
use vhd_testkit::Conformance;

use crate::support::{Running, create};

/// What must live as long as the devices of a suite.
#[derive(Default)]
struct Servers(Mutex<Vec<(Running, Option<OpenedDisk>, tempfile::TempDir)>>);

impl Servers {
    fn serve(
        &self,
        disk: Disk,
        opened: Option<OpenedDisk>,
        dir: tempfile::TempDir,
        read_only: bool,
    ) -> Arc<dyn BlockDevice> {
        let mut exports = ExportSet::new();
        let export = Export::new("disk", disk);
        assert!(exports.add(if read_only { export.read_only() } else { export }));
        let running = Running::start(dir.path(), exports, ServerOptions::default());
        let options = ClientOptions {
            write: !read_only,
            ..ClientOptions::default()
        };
        let device = NbdDevice::open(&running.uri("disk").parse().unwrap(), options).unwrap();
        self.0.lock().unwrap().push((running, opened, dir));
        device
    }

    fn memory(&self, content: &[u8], read_only: bool) -> Arc<dyn BlockDevice> {
        let device = RawDevice::new(Arc::new(MemoryFile::from_bytes(content.to_vec())), true).unwrap();
        self.serve(
            Disk::new(Arc::new(device)),
            None,
            tempfile::tempdir().unwrap(),
            read_only,
        )
    }

    fn dynamic(&self, size: u64, content: &[u8]) -> Arc<dyn BlockDevice> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhd");
        create(&path, size);
        let opened = OpenOptions::new().write(true).open(&path).unwrap();
        for (index, part) in content.chunks(64 << 10).enumerate() {
            if part.iter().any(|&byte| byte != 0) {
                opened
                    .disk()
                    .write_at(part, u64::try_from(index << 16).unwrap())
                    .unwrap();
            }
        }
        self.serve(opened.disk(), Some(opened), dir, false)
    }
}

fn suite() -> Conformance {
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
