//! Serves a disk over NBD on a unix socket, and uses it as a client.
//!
//! ```text
//! cargo run -p vhd-nbd --example serve
//! ```

use std::error::Error;
use std::thread;

use vhd_block::Disk;
use vhd_core::chain::OpenOptions;
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::create_dynamic;
use vhd_core::storage::StagedFile;
use vhd_nbd::client::{ClientOptions, NbdDevice, NbdUri};
use vhd_nbd::server::{Export, ExportSet, Listener, Server, ServerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (path, socket) = (dir.path().join("disk.vhd"), dir.path().join("socket"));
    let staged = StagedFile::create_beside(&path)?;
    create_dynamic(&*staged.storage(), 64 << 20, DEFAULT_BLOCK_SIZE.into())?;
    staged.publish(false, true)?;

    let opened = OpenOptions::new().write(true).open(&path)?;
    let mut exports = ExportSet::new();
    exports.add(Export::new("disk", opened.disk()))?;
    let server = Server::new(exports, ServerOptions::default())?;
    let listener = Listener::unix(&socket)?;
    let serving = std::sync::Arc::clone(&server);
    // Until it is stopped; then all disks are flushed.
    let thread = thread::spawn(move || serving.serve(&[listener]));

    let uri: NbdUri = format!("nbd+unix:///disk?socket={}", socket.display()).parse()?;
    let options = ClientOptions {
        write: true,
        ..ClientOptions::default()
    };
    let client = Disk::new(NbdDevice::open(&uri, options)?);
    client.write_at(b"over the socket", 1 << 20)?;
    client.flush()?;
    let mut bytes = [0; 15];
    opened.disk().read_at(&mut bytes, 1 << 20)?;
    assert_eq!(&bytes, b"over the socket");
    println!("served {} bytes on {}", client.size(), socket.display());

    drop(client);
    server.stop();
    thread.join().expect("no panic")??;
    drop(server); // it has the disk until then
    println!("closed: {:?}", opened.close()?);
    Ok(())
}
