//! Limits that the system sets on this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the number of files this process may have open to the most the system allows: a chain has an open
/// file per layer, and the usual 1024 are fewer than some chains are deep. If that fails, deep chains fail later.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = setrlimit(Resource::Nofile, raised);
}
