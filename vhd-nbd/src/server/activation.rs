//! The sockets that a service manager passes.

use std::env;
use std::ffi::OsString;

/// The variables of the protocol.
const FDS: &str = "LISTEN_FDS";
const PID: &str = "LISTEN_PID";
const NAMES: &str = "LISTEN_FDNAMES";

/// What a service manager said about sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// How many there are.
    pub(super) count: usize,
    names: Vec<String>,
}

impl Passed {
    /// What is said in the environment of this process; `None` if it says nothing to this process.
    ///
    /// # Errors
    /// A number that is none: then nobody knows which sockets were meant.
    pub(super) fn from_env() -> Result<Option<Self>, String> {
        Self::new(
            env::var_os(FDS),
            env::var_os(PID),
            env::var_os(NAMES),
            std::process::id(),
        )
    }

    fn new(
        fds: Option<OsString>,
        pid: Option<OsString>,
        names: Option<OsString>,
        own_pid: u32,
    ) -> Result<Option<Self>, String> {
        let Some(fds) = fds.filter(|fds| !fds.is_empty()) else {
            return Ok(None);
        };
        let for_this_process = match pid.filter(|pid| !pid.is_empty()) {
            None => true,
            Some(pid) => pid.to_str().and_then(|pid| pid.parse().ok()) == Some(own_pid),
        };
        if !for_this_process {
            // They were passed to the program that started this one.
            return Ok(None);
        }
        let count = fds.to_str().and_then(|fds| fds.parse().ok());
        let Some(count) = count else {
            return Err(format!("{FDS} is {fds:?}, which is no number"));
        };
        let names = names.map(|names| names.to_string_lossy().into_owned());
        let names = names.iter().flat_map(|names| names.split(':')).map(ToOwned::to_owned);
        let passed = Self {
            count,
            names: names.collect(),
        };
        Ok((passed.count > 0).then_some(passed))
    }

    /// What a socket is called in messages: by the name that the manager gave it, if it gave one.
    pub(super) fn name(&self, index: usize) -> String {
        match self.names.get(index) {
            Some(name) if !name.is_empty() => format!("socket {name:?} of the service manager"),
            _ => format!("socket {index} of the service manager"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(fds: &str, pid: Option<&str>, names: Option<&str>) -> Result<Option<Passed>, String> {
        Passed::new(Some(fds.into()), pid.map(Into::into), names.map(Into::into), 42)
    }

    #[test]
    fn sockets_are_for_the_process_that_they_were_passed_to() {
        assert_eq!(Passed::new(None, None, None, 42), Ok(None));
        assert_eq!(passed("2", Some("41"), None), Ok(None));
        assert_eq!(passed("two", Some("41"), None), Ok(None));
        assert_eq!(passed("0", Some("42"), None), Ok(None));
        for pid in [None, Some(""), Some("42")] {
            assert_eq!(passed("2", pid, None).unwrap().unwrap().count, 2, "{pid:?}");
        }
        for wrong in ["two", "-1", "2 "] {
            assert!(passed(wrong, Some("42"), None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn they_are_called_by_their_names() {
        let passed = passed("3", None, Some("disk::")).unwrap().unwrap();
        assert_eq!(passed.name(0), "socket \"disk\" of the service manager");
        assert_eq!(passed.name(1), "socket 1 of the service manager");
        assert_eq!(passed.name(7), "socket 7 of the service manager");
    }
}
