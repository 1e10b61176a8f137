//! The guest's console: standard output, and all who are attached.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{SendFlags, send};

/// The console. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Console(Arc<Mutex<Vec<UnixStream>>>);

impl Console {
    /// Passes what the guest writes from now on to a client too. One that does not read fast enough is cut off: the guest
    /// does not wait for it.
    pub(super) fn attach(&self, client: UnixStream) {
        self.clients().push(client);
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let takes = |client: &UnixStream| send(client, bytes, flags).is_ok_and(|sent| sent == bytes.len());
        self.clients().retain(|client| {
            let takes = takes(client);
            if !takes {
                // Whoever reads from the client's input ends too.
                let _ = client.shutdown(std::net::Shutdown::Both);
            }
            takes
        });
        io::stdout().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
