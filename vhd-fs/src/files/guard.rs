//! A file system that cannot take its user down: it has a thread of its own, and each operation a budget of bytes and of
//! time. What panics is opened anew; what hangs is left behind.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::entry::{Entry, Metadata, Node, with_usable_names};
use super::listed::Listed;
use super::region::Budget;
use super::{FileError, FileSystem};
use crate::bytes::count;

/// Bytes of the disk that one operation may read besides the content it returns. The largest directory that is
/// listed fits, and so do the structures of a file in a million pieces.
const STRUCTURE_BYTES: u64 = 512 << 20;
/// How long one operation may take: a disk may be on a slow server.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Readers that may be left behind before the file system is given up: each keeps a thread until it ends.
const LEFT_BEHIND: u32 = 3;

/// Opens the file system, within this budget.
type Open = dyn Fn(&Arc<Budget>) -> Result<Box<dyn FileSystem>, FileError> + Send + Sync;
type Job = Box<dyn FnOnce(&mut dyn FileSystem) + Send>;

/// An open file system. Any number of threads may use it; operations run one after the other.
pub struct Files {
    open: Arc<Open>,
    format: &'static str,
    label: Option<String>,
    notes: Vec<String>,
    root: Node,
    ignores_case: bool,
    time_limit: Duration,
    /// What was looked up before.
    pub(super) listed: Listed,
    worker: Mutex<Worker>,
}

/// The thread that the file system lives on.
struct Worker {
    jobs: mpsc::Sender<Job>,
    budget: Arc<Budget>,
    left_behind: u32,
}

impl Files {
    /// Opens a file system on a thread of its own. `format` is its name as long as it is not open.
    pub(super) fn open(format: &'static str, open: Arc<Open>) -> Result<Self, FileError> {
        Self::open_within(format, open, TIME_LIMIT)
    }

    fn open_within(format: &'static str, open: Arc<Open>, time_limit: Duration) -> Result<Self, FileError> {
        let worker = Worker::start(&open, format, time_limit)?;
        let mut files = Self {
            open,
            format,
            label: None,
            notes: Vec::new(),
            root: Node(0),
            ignores_case: false,
            time_limit,
            listed: Listed::default(),
            worker: Mutex::new(worker),
        };
        let facts = files.run(0, |fs| {
            Ok((fs.format(), fs.label(), fs.notes(), fs.root(), fs.ignores_case()))
        })?;
        (files.format, files.label, files.notes, files.root, files.ignores_case) = facts;
        Ok(files)
    }

    /// The format, as people call it: `ext4`, `NTFS`.
    #[must_use]
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The volume's label, if it has one.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// What a reader should know: a journal that was not replayed, damage that was passed over.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Node {
        self.root
    }

    /// Whether names that differ in case alone are the same, as on NTFS and FAT.
    #[must_use]
    pub fn ignores_case(&self) -> bool {
        self.ignores_case
    }

    /// The names in a directory, without `.` and `..`, in the order of the disk.
    ///
    /// # Errors
    /// [`FileError::NotDirectory`] for another node, [`FileError::Damaged`] where a name is one that no file can have, and what
    /// reading meets.
    pub fn list(&self, directory: Node) -> Result<Vec<Entry>, FileError> {
        self.run(0, move |fs| with_usable_names(fs.format(), fs.list(directory)?))
    }

    /// What is known of a node.
    ///
    /// # Errors
    /// What reading meets.
    pub fn metadata(&self, node: Node) -> Result<Metadata, FileError> {
        self.run(0, move |fs| fs.metadata(node))
    }

    /// Up to `len` bytes of a regular file from byte `offset`. Fewer mean the end of the file.
    ///
    /// # Errors
    /// What reading meets.
    pub fn read_at(&self, node: Node, offset: u64, len: usize) -> Result<Vec<u8>, FileError> {
        // Compressed files are read in whole units, and so twice at the edges.
        let content = count(len).saturating_mul(2);
        self.run(content, move |fs| {
            let mut bytes = vec![0; len];
            let read = fs.read_at(node, &mut bytes, offset)?;
            bytes.truncate(read);
            Ok(bytes)
        })
    }

    /// The path that a symbolic link holds.
    ///
    /// # Errors
    /// [`FileError::NotSymlink`] for another node, and what reading meets.
    pub fn read_link(&self, node: Node) -> Result<Vec<u8>, FileError> {
        self.run(0, move |fs| fs.read_link(node))
    }

    /// Runs one operation that returns `content` bytes of files.
    fn run<T: Send + 'static>(
        &self,
        content: u64,
        operation: impl FnOnce(&mut dyn FileSystem) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.left_behind > LEFT_BEHIND {
            return Err(self.timed_out());
        }
        let limit = STRUCTURE_BYTES.saturating_add(content);
        worker.budget.start(limit);
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |fs| {
            // Nobody may wait any more.
            drop(answer.send(operation(fs)));
        });
        if worker.jobs.send(job).is_err() {
            return Err(self.panicked(&mut worker));
        }
        match answered.recv_timeout(self.time_limit) {
            Ok(Err(_)) if worker.budget.is_exhausted() => Err(FileError::OverBudget {
                file_system: self.format,
                limit,
            }),
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(self.panicked(&mut worker)),
            Err(RecvTimeoutError::Timeout) => {
                worker.budget.abandon();
                self.listed.clear();
                let left_behind = worker.left_behind + 1;
                if let Ok(fresh) = Worker::start(&self.open, self.format, self.time_limit) {
                    *worker = Worker { left_behind, ..fresh };
                } else {
                    worker.left_behind = LEFT_BEHIND + 1;
                }
                Err(self.timed_out())
            }
        }
    }

    /// The thread has ended in a panic: the next operation finds a new one.
    fn panicked(&self, worker: &mut Worker) -> FileError {
        self.listed.clear();
        let left_behind = worker.left_behind;
        match Worker::start(&self.open, self.format, self.time_limit) {
            Ok(fresh) => {
                *worker = Worker { left_behind, ..fresh };
                FileError::Panicked {
                    file_system: self.format,
                    what: "it met content that it does not expect".into(),
                }
            }
            Err(error) => error,
        }
    }

    fn timed_out(&self) -> FileError {
        FileError::TimedOut {
            file_system: self.format,
            limit: self.time_limit,
        }
    }
}

impl Worker {
    /// Starts a thread and opens the file system on it.
    fn start(open: &Arc<Open>, format: &'static str, time_limit: Duration) -> Result<Self, FileError> {
        let budget = Arc::new(Budget::default());
        budget.start(STRUCTURE_BYTES);
        let (jobs, work) = mpsc::channel::<Job>();
        let (answer, answered) = mpsc::sync_channel(1);
        let (open, shared) = (Arc::clone(open), Arc::clone(&budget));
        let body = move || {
            let opened = catch_unwind(AssertUnwindSafe(|| open(&shared)));
            let mut fs = match opened {
                Ok(Ok(fs)) => fs,
                Ok(Err(error)) => return drop(answer.send(Err(error))),
                Err(panic) => return drop(answer.send(Err(described(format, &*panic)))),
            };
            if answer.send(Ok(())).is_err() {
                return;
            }
            // A panic ends the thread, and drops the channel that the caller waits for.
            while let Ok(job) = work.recv() {
                if catch_unwind(AssertUnwindSafe(|| job(&mut *fs))).is_err() {
                    return;
                }
            }
        };
        let spawned = thread::Builder::new().name(format!("fs-{format}")).spawn(body);
        spawned.map_err(FileError::Io)?;
        match answered.recv_timeout(time_limit) {
            Ok(Ok(())) => Ok(Self {
                jobs,
                budget,
                left_behind: 0,
            }),
            Ok(Err(_)) if budget.is_exhausted() => Err(FileError::OverBudget {
                file_system: format,
                limit: STRUCTURE_BYTES,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                budget.abandon();
                Err(FileError::TimedOut {
                    file_system: format,
                    limit: time_limit,
                })
            }
        }
    }
}

fn described(file_system: &'static str, panic: &(dyn Any + Send)) -> FileError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    FileError::Panicked {
        file_system,
        what: text.unwrap_or_else(|| "it met content that it does not expect".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::entry::FileType;
    use crate::files::region::Region;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Node 1 is sound, 2 panics, 3 never ends, 4 reads for ever.
    struct Hostile(Region);

    impl FileSystem for Hostile {
        fn format(&self) -> &'static str {
            "hostile"
        }
        fn label(&mut self) -> Option<String> {
            None
        }
        fn notes(&self) -> Vec<String> {
            Vec::new()
        }
        fn root(&self) -> Node {
            Node(1)
        }
        fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
            match directory.0 {
                2 => panic!("on purpose"),
                3 => loop {
                    thread::sleep(Duration::from_millis(5));
                    self.0.bytes_at(0, 1).map_err(FileError::Io)?;
                },
                4 => loop {
                    self.0.bytes_at(0, 1 << 20).map_err(FileError::Io)?;
                },
                _ => Ok(vec![Entry {
                    name: b"x".to_vec(),
                    node: Node(1),
                    kind: Some(FileType::Regular),
                }]),
            }
        }
        fn metadata(&mut self, _: Node) -> Result<Metadata, FileError> {
            Err(FileError::NotFound)
        }
        fn read_at(&mut self, _: Node, _: &mut [u8], _: u64) -> Result<usize, FileError> {
            Err(FileError::NotFound)
        }
        fn read_link(&mut self, _: Node) -> Result<Vec<u8>, FileError> {
            Err(FileError::NotFound)
        }
    }

    fn hostile(opened: &Arc<AtomicU32>) -> Files {
        let opened = Arc::clone(opened);
        let open: Arc<Open> = Arc::new(move |budget| {
            opened.fetch_add(1, Ordering::Relaxed);
            let disk = Arc::new(vec![0; 2 << 20]);
            Ok(Box::new(Hostile(Region::new(disk, 0, 2 << 20, Arc::clone(budget)))))
        });
        Files::open_within("hostile", open, Duration::from_millis(300)).unwrap()
    }

    #[test]
    fn a_panic_is_an_error_of_one_operation() {
        let opened = Arc::default();
        let files = hostile(&opened);
        for _ in 0..10 {
            assert!(matches!(files.list(Node(2)), Err(FileError::Panicked { .. })));
            assert_eq!(files.list(Node(1)).unwrap().len(), 1);
        }
        assert_eq!(opened.load(Ordering::Relaxed), 11);
    }

    #[test]
    fn an_operation_that_hangs_is_left_behind() {
        let opened = Arc::default();
        let files = hostile(&opened);
        assert!(matches!(files.list(Node(3)), Err(FileError::TimedOut { .. })));
        assert_eq!(files.list(Node(1)).unwrap().len(), 1);
    }

    #[test]
    fn a_file_system_that_hangs_again_and_again_is_given_up() {
        let files = hostile(&Arc::default());
        for _ in 0..=LEFT_BEHIND {
            assert!(matches!(files.list(Node(3)), Err(FileError::TimedOut { .. })));
        }
        assert!(matches!(files.list(Node(1)), Err(FileError::TimedOut { .. })));
    }

    #[test]
    fn an_operation_that_reads_without_end_is_stopped() {
        let files = hostile(&Arc::default());
        // Memory is read in less time than the limit here, so the budget is what ends it, or else the time is.
        let error = files.list(Node(4)).unwrap_err();
        assert!(
            matches!(error, FileError::OverBudget { .. } | FileError::TimedOut { .. }),
            "{error}"
        );
        assert_eq!(files.list(Node(1)).unwrap().len(), 1);
    }
}
