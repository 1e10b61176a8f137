//! A deterministic scheduler: every task is a thread, but only one runs at a time, and which one comes next follows from the
//! seed. A task gives the turn away at each request to the outside world, and what it asked for happens when it gets it back:
//! a node can be stopped, cut off or killed between any request and its effect.

use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::history::History;
use crate::sim_engine::Leases;
use crate::sim_net::Mail;
use crate::sim_volume::FileSystem;

/// Microseconds of simulated time.
pub(crate) type Micros = u64;
pub(crate) const MILLI: Micros = 1000;
pub(crate) const SECOND: Micros = 1_000_000;

/// What a task's stack is unwound with when its node is killed.
pub(crate) struct Killed;

/// How one node is doing.
#[derive(Clone, Default)]
pub(crate) struct NodeState {
    /// It does nothing until then (SIGSTOP, a suspended machine).
    pub(crate) stopped_until: Micros,
    /// Its requests to the volume take effect then (a stalled disk).
    pub(crate) stalled_until: Micros,
    /// It is cut off from other nodes until then.
    pub(crate) cut_off_until: Micros,
    /// It is cut off from the engine until then.
    pub(crate) engine_cut_off_until: Micros,
    /// How often it was killed.
    pub(crate) life: u64,
}

struct Task {
    node: usize,
    wake_at: Micros,
    /// It waits for a message, so one may wake it before its time.
    waiting: bool,
    done: bool,
    turn: Arc<Condvar>,
}

/// Everything but the stacks of the tasks.
pub(crate) struct Inner {
    pub(crate) now: Micros,
    pub(crate) rng: fastrand::Rng,
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) fs: FileSystem,
    pub(crate) mail: Mail,
    pub(crate) leases: Leases,
    pub(crate) history: History,
    /// The workload ends.
    pub(crate) ending: bool,
    /// No more faults by themselves: time to check what is left.
    pub(crate) calm: bool,
    tasks: Vec<Task>,
    running: usize,
}

/// The simulated world.
pub(crate) struct World {
    inner: Mutex<Inner>,
}

/// A task's way into the world.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) world: Arc<World>,
    pub(crate) task: usize,
    pub(crate) node: usize,
    /// The life of the node that the task belongs to.
    life: u64,
}

impl World {
    /// A world of `nodes` nodes. The handle is of the task that calls this: it belongs to a node of its own, which nothing happens to.
    pub(crate) fn new(seed: u64, nodes: usize) -> (Arc<Self>, Handle) {
        let first = Task {
            node: nodes,
            wake_at: 0,
            waiting: false,
            done: false,
            turn: Arc::default(),
        };
        let inner = Inner {
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            nodes: vec![NodeState::default(); nodes + 1],
            fs: FileSystem::default(),
            mail: Mail::default(),
            leases: Leases::default(),
            history: History::default(),
            ending: false,
            calm: false,
            tasks: vec![first],
            running: 0,
        };
        let world = Arc::new(Self {
            inner: Mutex::new(inner),
        });
        let handle = Handle {
            world: world.clone(),
            task: 0,
            node: nodes,
            life: 0,
        };
        (world, handle)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A violation is reported by a panic; the others still have to end.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    /// Whose turn it is next, and when.
    fn next(&self) -> Option<(Micros, usize)> {
        let when = |task: &Task| task.wake_at.max(self.nodes[task.node].stopped_until);
        let waiting = self.tasks.iter().enumerate().filter(|(_, task)| !task.done);
        waiting.map(|(index, task)| (when(task), index)).min()
    }

    /// Wakes a task if it waits for a message.
    pub(crate) fn wake(&mut self, task: usize, delay: Micros) {
        let at = self.now + delay;
        let task = &mut self.tasks[task];
        if task.waiting {
            task.wake_at = task.wake_at.min(at);
        }
    }

    /// Whether all tasks but the first have ended.
    pub(crate) fn all_ended(&self) -> bool {
        self.tasks[1..].iter().all(|task| task.done)
    }

    /// Kills a node: its tasks find out when they get their turn, which is now.
    pub(crate) fn kill(&mut self, node: usize) {
        let now = self.now;
        self.nodes[node].life += 1;
        self.nodes[node].stopped_until = now;
        self.nodes[node].stalled_until = now;
        for task in self.tasks.iter_mut().filter(|task| task.node == node) {
            task.wake_at = now;
        }
    }

    fn hand_over(&mut self) {
        if let Some((at, task)) = self.next() {
            self.now = self.now.max(at);
            self.running = task;
            self.tasks[task].turn.notify_one();
        }
    }
}

impl Handle {
    /// Begins a task on `node`. It runs when its turn comes.
    pub(crate) fn spawn(&self, node: usize, run: impl FnOnce(Self) + Send + 'static) -> std::thread::JoinHandle<()> {
        let mut inner = self.world.lock();
        let task = inner.tasks.len();
        let wake_at = inner.now;
        inner.tasks.push(Task {
            node,
            wake_at,
            waiting: false,
            done: false,
            turn: Arc::default(),
        });
        let handle = Self {
            world: self.world.clone(),
            task,
            node,
            life: inner.nodes[node].life,
        };
        drop(inner);
        std::thread::spawn(move || {
            drop(handle.wait_for_turn(handle.world.lock()));
            run(handle.clone());
            let mut inner = handle.world.lock();
            inner.tasks[task].done = true;
            inner.hand_over();
        })
    }

    /// The same task in its node's present life.
    pub(crate) fn reborn(&self) -> Self {
        Self {
            life: self.world.lock().nodes[self.node].life,
            ..self.clone()
        }
    }

    fn wait_for_turn<'w>(&'w self, mut inner: MutexGuard<'w, Inner>) -> MutexGuard<'w, Inner> {
        let turn = inner.tasks[self.task].turn.clone();
        while inner.running != self.task {
            inner = turn.wait(inner).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        inner
    }

    /// Gives the turn away for at least `delay`. `None` if the node was killed meanwhile.
    pub(crate) fn try_pass(&self, delay: Micros) -> Option<MutexGuard<'_, Inner>> {
        let mut inner = self.world.lock();
        let now = inner.now;
        inner.tasks[self.task].wake_at = now + delay;
        inner.hand_over();
        let inner = self.wait_for_turn(inner);
        (inner.nodes[self.node].life == self.life).then_some(inner)
    }

    /// Gives the turn away for at least `delay`; ends the task's stack if the node was killed meanwhile.
    pub(crate) fn pass(&self, delay: Micros) -> MutexGuard<'_, Inner> {
        match self.try_pass(delay) {
            Some(inner) => inner,
            None => resume_unwind(Box::new(Killed)),
        }
    }

    /// Waits for a message, `limit` at most.
    pub(crate) fn wait(&self, limit: Micros) -> MutexGuard<'_, Inner> {
        self.world.lock().tasks[self.task].waiting = true;
        let inner = self.try_pass(limit);
        let alive = inner.is_some();
        let mut inner = inner.unwrap_or_else(|| self.world.lock());
        inner.tasks[self.task].waiting = false;
        if !alive {
            drop(inner);
            resume_unwind(Box::new(Killed));
        }
        inner
    }

    /// How long the next request takes. Now and then the node stops right in it.
    pub(crate) fn latency(&self) -> Micros {
        let mut inner = self.world.lock();
        let now = inner.now;
        if self.node + 1 < inner.nodes.len() && !inner.calm && inner.rng.u32(..1000) == 0 {
            let length = inner.rng.u64(SECOND..8 * SECOND);
            inner.nodes[self.node].stopped_until = now + length;
        }
        match inner.rng.u32(..100) {
            0 => inner.rng.u64(MILLI..50 * MILLI),
            _ => inner.rng.u64(20..200),
        }
    }
}
