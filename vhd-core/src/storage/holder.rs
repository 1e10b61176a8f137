//! Who holds a lock: found in `/proc`, because the kernel names no process for open-file-description locks.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A process that holds an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its process id, as seen from this process.
    pub pid: u32,
    /// Its name as the kernel keeps it (at most 15 bytes), if it can be seen.
    pub program: Option<String>,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Some(program) => write!(f, "{program} (pid {})", self.pid),
            None => write!(f, "pid {}", self.pid),
        }
    }
}

impl LockHolder {
    /// The holder with this process id.
    pub(super) fn with_pid(pid: u32) -> Self {
        // A program chooses its own name: no control character of it gets to a terminal.
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| {
            let visible = |c: char| if c.is_control() { '?' } else { c };
            name.trim_end_matches('\n').chars().map(visible).collect()
        });
        Self { pid, program }
    }

    /// A process with a lock on `byte` of `file`. `None` when there is none any more, or when it runs as
    /// another user, in another container or on another machine.
    pub(super) fn find(file: &File, byte: u64) -> Option<Self> {
        let wanted = file.metadata().ok()?;
        let processes = fs::read_dir("/proc").ok()?;
        let mut pids = processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|&pid| holds_lock(pid, (wanted.dev(), wanted.ino()), byte))
            .map(Self::with_pid)
    }
}

/// Whether one of the process's files is the one with this device and inode, locked at `byte`.
fn holds_lock(pid: u32, (device, inode): (u64, u64), byte: u64) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return false;
    };
    files.flatten().any(|entry| {
        let locked =
            fs::read_to_string(entry.path()).is_ok_and(|info| info.lines().any(|line| locks_byte(line, inode, byte)));
        // The device in a lock line is the file system's, which on btrfs is not the one stat tells:
        // so the line is matched by inode alone, and the open file itself decides.
        locked && {
            let open_file = Path::new("/proc")
                .join(pid.to_string())
                .join("fd")
                .join(entry.file_name());
            fs::metadata(open_file).is_ok_and(|found| (found.dev(), found.ino()) == (device, inode))
        }
    })
}

/// Whether this line of a fdinfo file is a record lock on a file of this inode that covers `byte`:
/// `lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 100 101`, with `EOF` as the last byte of an open range.
fn locks_byte(line: &str, inode: u64, byte: u64) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ["lock:", _, "OFDLCK" | "POSIX", .., file, first, last] = fields[..] else {
        return false;
    };
    let same_inode = file.rsplit(':').next().and_then(|n| n.parse().ok()) == Some(inode);
    let from = first.parse().unwrap_or(u64::MAX);
    let to = if last == "EOF" {
        u64::MAX
    } else {
        last.parse().unwrap_or(0)
    };
    same_inode && (from..=to).contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_lines_are_matched_by_inode_and_range() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10010651 100 101";
        assert!(locks_byte(line, 10_010_651, 100));
        assert!(locks_byte(line, 10_010_651, 101));
        assert!(!locks_byte(line, 10_010_651, 102));
        assert!(!locks_byte(line, 10_010_651, 99));
        assert!(!locks_byte(line, 651, 100));
        assert!(locks_byte("lock:\t2: POSIX  ADVISORY  WRITE 77 00:2a:5 0 EOF", 5, 203));
    }

    #[test]
    fn other_lines_are_no_record_locks() {
        assert!(!locks_byte("lock:\t1: FLOCK  ADVISORY  WRITE 77 fe:00:5 0 EOF", 5, 100));
        assert!(!locks_byte("ino:\t5", 5, 100));
        assert!(!locks_byte("lock:", 5, 100));
        assert!(!locks_byte("lock:\t1: OFDLCK ADVISORY READ -1 fe:00:5 x y", 5, 100));
        assert!(!locks_byte("", 5, 100));
    }

    #[test]
    fn a_holder_without_a_name_is_a_number() {
        assert_eq!(LockHolder { pid: 7, program: None }.to_string(), "pid 7");
        assert_eq!(
            LockHolder {
                pid: 7,
                program: Some("vhd".into())
            }
            .to_string(),
            "vhd (pid 7)"
        );
    }
}
