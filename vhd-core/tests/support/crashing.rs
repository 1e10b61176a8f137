//! Runs work on a small image, and looks at what a crash after each file operation leaves.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_core::image::{FooterSource, OpenMode};
use vhd_core::storage::StorageFile;
use vhd_testkit::conformance::read_all;
use vhd_testkit::rng::mix;
use vhd_testkit::{CrashFile, CrashLimits, CrashModel, CrashSnapshot, CrashState, Op, Workload};

use super::subject::Subject;
use super::view::View;

/// Operations that go on in a crashed image before the next crashes are looked at no more.
const STEPS_AFTER_CRASH: usize = 6;

/// What was looked at.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Crash states that were opened and compared.
    pub(crate) states: AtomicU64,
    /// Those with a damaged footer at the end.
    pub(crate) without_tail: AtomicU64,
    /// Those in which work went on and crashed again.
    pub(crate) continued: AtomicU64,
}

static ALL: AtomicU64 = AtomicU64::new(0);

impl Counts {
    /// Prints the counts of one test.
    pub(crate) fn report(&self, test: &str) {
        eprintln!("{test}: {self}");
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let states = get(&self.states);
        write!(
            f,
            "crash states checked: {states} ({} without a footer at the end, work went on in {}); all tests so far: {}",
            get(&self.without_tail),
            get(&self.continued),
            ALL.fetch_add(states, Ordering::Relaxed) + states
        )
    }
}

/// How the crash states of one image are looked at.
#[derive(Clone, Debug)]
pub(crate) struct Crasher {
    pub(crate) subject: Arc<Subject>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) limits: CrashLimits,
    /// How often work goes on after a crash and crashes again.
    pub(crate) depth: u32,
    /// In one of how many states it goes on.
    pub(crate) continue_every: u64,
    /// The footer at the end must be valid in each state.
    pub(crate) tail_always: bool,
}

impl Crasher {
    pub(crate) fn new(subject: Subject, counts: &Arc<Counts>, seed: u64) -> Self {
        Self {
            subject: Arc::new(subject),
            counts: Arc::clone(counts),
            limits: CrashLimits {
                exhaustive_bits: 6,
                random: 12,
                seed,
                newest_only: true,
            },
            depth: 2,
            continue_every: 40,
            tail_always: false,
        }
    }

    /// Looks at what crashes leave while `script` runs on the image and while it is closed.
    pub(crate) fn run(&self, script: impl IntoIterator<Item = Op>) {
        self.run_from(CrashFile::from_bytes(&self.subject.file), self.subject.model(), script);
    }

    fn run_from(&self, file: CrashFile, model: CrashModel, script: impl IntoIterator<Item = Op>) {
        let run = Running::start(self.clone(), file, model);
        let device = script.into_iter().fold(run.open(), |device, op| run.step(device, op));
        run.finish(device);
    }

    /// Looks at one crash state; answers what the disk reads.
    pub(crate) fn check(&self, state: &CrashState, model: &CrashModel) -> Vec<u8> {
        let file = state.file();
        self.counts.states.fetch_add(1, Ordering::Relaxed);
        let tail_lost = self.subject.check_footers(&file) == FooterSource::Copy;
        self.counts
            .without_tail
            .fetch_add(u64::from(tail_lost), Ordering::Relaxed);
        assert!(
            !(self.tail_always && tail_lost),
            "INV-03: the footer at the end is lost"
        );
        self.subject.check_crashed(&file);
        let device = self.subject.open(file.clone(), &OpenMode::read_write());
        let found = read_all(&device);
        model.check(&found).unwrap_or_else(|violation| panic!("{violation}"));
        if tail_lost {
            self.subject.check_opened(&file);
        }
        found
    }

    /// Work goes on in a crashed image, and crashes again.
    fn go_on(&self, state: &CrashState, model: &CrashModel, found: &[u8], salt: u64) {
        self.counts.continued.fetch_add(1, Ordering::Relaxed);
        let seed = mix(self.limits.seed, salt);
        let deeper = Self {
            depth: self.depth - 1,
            limits: CrashLimits {
                exhaustive_bits: 4,
                random: 4,
                seed,
                ..self.limits
            },
            tail_always: false,
            ..self.clone()
        };
        let mut model = model.clone();
        model.adopt(found);
        let script = Workload::new(seed, self.subject.geometry()).take(STEPS_AFTER_CRASH);
        deeper.run_from(state.file(), model, script);
    }
}

/// Says which state was looked at when a check panics.
struct Context<'a> {
    crasher: &'a Crasher,
    state: &'a CrashState,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (name, depth) = (self.crasher.subject.name, self.crasher.depth);
            eprintln!("{name}, {depth} crashes before the last: {}", self.state);
        }
    }
}

/// Work under way on one file.
#[derive(Clone)]
pub(crate) struct Running {
    crasher: Arc<Crasher>,
    file: CrashFile,
    model: Arc<Mutex<CrashModel>>,
    looked_at: Arc<AtomicU64>,
}

impl Running {
    /// Looks at each operation on `file` from now on.
    pub(crate) fn start(crasher: Crasher, file: CrashFile, model: CrashModel) -> Self {
        let running = Self {
            crasher: Arc::new(crasher),
            file,
            model: Arc::new(Mutex::new(model)),
            looked_at: Arc::default(),
        };
        let observer = Self {
            // Not the observed file itself: that one owns the observer.
            file: CrashFile::new(),
            ..running.clone()
        };
        running
            .file
            .set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
                observer.look(snapshot, observer.crasher.limits);
            })));
        running
    }

    pub(crate) fn file(&self) -> &CrashFile {
        &self.file
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, CrashModel> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self) -> View {
        self.crasher.subject.open(self.file.clone(), &OpenMode::read_write())
    }

    /// Does one operation; hands back the disk, which may be a new one.
    pub(crate) fn step(&self, device: View, op: Op) -> View {
        if op != Op::Reopen {
            self.apply(&device, op);
            return device;
        }
        let begun = op.begin(&mut self.model());
        device.close().unwrap_or_else(|error| panic!("close: {error:?}"));
        let device = self.open();
        op.end(&mut self.model(), begun);
        self.look_again();
        self.compare(&device);
        device
    }

    /// Does one operation on a disk that stays open.
    pub(crate) fn apply(&self, device: &View, op: Op) {
        let begun = op.begin(&mut self.model());
        op.run(device).unwrap_or_else(|error| panic!("{op:?}: {error:?}"));
        op.end(&mut self.model(), begun);
        if matches!(op, Op::Flush | Op::FuaWrite { .. }) {
            self.look_again();
        }
        self.compare(device);
    }

    /// Without a crash the disk reads what was written last.
    pub(crate) fn compare(&self, device: &View) {
        let checked = self.model().check_now(&read_all(device));
        checked.unwrap_or_else(|violation| panic!("{}: {violation}", self.crasher.subject.name));
    }

    /// Looks at all states of this moment: more is promised than when the file changed last.
    pub(crate) fn look_again(&self) {
        let all = CrashLimits {
            newest_only: false,
            ..self.crasher.limits
        };
        self.look(&self.file.snapshot(), all);
    }

    fn look(&self, snapshot: &CrashSnapshot, limits: CrashLimits) {
        if std::thread::panicking() {
            // What a disk writes while a failed test drops it: a second panic would hide the first.
            return;
        }
        let model = self.model();
        let durable = snapshot.durable();
        let tail_is_durable = self.crasher.subject.check_footers(&durable) != FooterSource::Copy;
        let durable_len = durable.len().expect("a file in memory");
        for state in snapshot.crash_states(&limits) {
            let _context = Context {
                crasher: &self.crasher,
                state: &state,
            };
            let found = self.crasher.check(&state, &model);
            if tail_is_durable && state.file_len() == durable_len {
                let source = self.crasher.subject.check_footers(&state.file());
                assert_ne!(
                    source,
                    FooterSource::Copy,
                    "INV-03: the tail is lost though the file did not grow"
                );
            }
            let number = self.looked_at.fetch_add(1, Ordering::Relaxed) + 1;
            if self.crasher.depth > 0 && number.is_multiple_of(self.crasher.continue_every) {
                self.crasher.go_on(&state, &model, &found, number);
            }
        }
    }

    /// Closes the disk: everything is durable then, and the file is as good as new.
    pub(crate) fn finish(self, device: View) {
        let device = self.step(device, Op::Reopen);
        device.close().unwrap_or_else(|error| panic!("close: {error:?}"));
        self.file.set_observer(None);
        self.crasher.subject.check_opened(&self.file);
        self.compare(&self.crasher.subject.open(self.file.clone(), &OpenMode::read_only()));
    }
}
