//! The protocol reduced to its steps, in a model checker: every interleaving of a few coordinators, each of which may stop for ever
//! (a crash) or for any time (a pause) before any step.
//!
//! The variants that leave a rule out must fail: they prove that the model can tell.

mod names;
mod tables;

use stateright::{Checker, Model};

/// Explores everything; the properties that do not hold, and the number of states.
fn explore<M>(model: M) -> (Vec<&'static str>, usize)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + std::hash::Hash + PartialEq + Send + Sync,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    let checker = model.checker().threads(2).spawn_bfs().join();
    let mut broken: Vec<_> = checker.discoveries().into_keys().collect();
    broken.sort_unstable();
    println!("{} states, broken: {broken:?}", checker.unique_state_count());
    (broken, checker.unique_state_count())
}
