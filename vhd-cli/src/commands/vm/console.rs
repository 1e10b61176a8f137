//! The guest's console on standard input and output.

use std::io::{self, IsTerminal as _, Read as _};
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::guest::Guest;
use crate::output;

/// Begins a command to us: Ctrl-A, as in qemu.
const ESCAPE: u8 = 1;
/// Ends the machine.
const QUIT: u8 = b'x';

/// What is said before a guest runs on a terminal.
pub(super) const HINT: &str = "vhd: Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A\n";

/// The terminal in raw mode: every key reaches the guest. As before when dropped.
pub(super) struct RawTerminal(Option<Termios>);

impl RawTerminal {
    /// Changes the terminal that standard input is; does nothing if it is none.
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // What the guest writes still gets its carriage returns.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0
            && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, before)
        {
            output::warning(format_args!("the terminal stays in raw mode (`reset` helps): {error}"));
        }
    }
}

/// What is said before somebody is attached to a console from a terminal.
pub(super) const LEAVE_HINT: &str =
    "vhd: Ctrl-A x leaves the console, and the machine runs on; Ctrl-A Ctrl-A sends Ctrl-A\n";

/// Passes what is typed to the guest; a command to us ends the machine.
pub(super) fn pass_input(guest: Guest, is_terminal: bool) {
    let stopped = guest.clone();
    let input = move |bytes: &[u8]| guest.input(bytes);
    pass_keys(is_terminal, input, move |is_wanted| {
        if is_wanted {
            stopped.stop();
        }
    });
}

/// Passes what is typed on, from a thread that ends with standard input or the process; `end` learns whether a command to us
/// was the end. Only a terminal has commands to us: what comes from a file or pipe is passed as it is.
pub(super) fn pass_keys(
    is_terminal: bool,
    pass: impl Fn(&[u8]) + Send + 'static,
    end: impl FnOnce(bool) + Send + 'static,
) {
    thread::spawn(move || {
        let mut keys = is_terminal.then(Keys::default);
        let mut buffer = [0; 1024];
        loop {
            let len = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return end(false),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    output::warning(format_args!("the guest gets no more input: {error}"));
                    return end(false);
                }
            };
            let typed = &buffer[..len];
            match &mut keys {
                None => pass(typed),
                Some(keys) => match keys.translate(typed) {
                    Some(bytes) => pass(&bytes),
                    None => return end(true),
                },
            }
        }
    });
}

/// Keys as they are typed.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// What of it is for the guest; `None` when the machine is to end.
    fn translate(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, QUIT) => return None,
                // A key that is no command is not swallowed without a sign: it goes on as it is.
                (_, byte) => bytes.push(byte),
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_reach_the_guest_or_us() {
        let mut keys = Keys::default();
        assert_eq!(keys.translate(b"ls\x03"), Some(b"ls\x03".to_vec()));
        assert_eq!(keys.translate(b"\x01\x01x"), Some(b"\x01x".to_vec()));
        assert_eq!(keys.translate(b"a\x01"), Some(b"a".to_vec()));
        assert_eq!(keys.translate(b"x"), None);
        assert_eq!(keys.translate(b"\x01y"), Some(b"y".to_vec()));
    }
}
