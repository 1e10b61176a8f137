//! One name: files that are created and deleted, with renames that take effect long after they began.

use stateright::{Model, Property};

use crate::explore;

/// What a variant leaves out.
#[derive(Clone, Copy, Default)]
struct Rules {
    /// The older stage directory is renamed, not taken apart: whoever found it before still reaches it.
    rename_stage: bool,
    /// Whether a file was deleted already is not asked.
    no_look: bool,
    /// Having looked, the file is moved without another check.
    no_check: bool,
}

struct Names {
    coordinators: usize,
    /// Decisions per coordinator.
    decisions: u8,
    rules: Rules,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Kind {
    Create,
    Delete,
}

/// An operation on the name; its number is unique, and the file's too that it creates.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Op {
    id: u8,
    kind: Kind,
}

#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
struct Journal {
    seal: Option<Vec<Op>>,
    ops: Vec<Op>,
}

/// A stage directory: what was deleted into it (operation, file).
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Stage {
    /// The epoch in its name; 0 if it was removed.
    named: u8,
    trash: Vec<(u8, u8)>,
}

/// How far a delete is.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Part {
    Look,
    Check,
    Find,
    /// The stage directory was found.
    Move(usize),
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
enum Step {
    Idle,
    MakeStage,
    Read(u8),
    Seal(Vec<Op>),
    CheckSeal(Vec<Op>),
    Gather,
    Redo(usize, Part),
    Serve,
    Append(Op),
    Check(Op),
    Apply(Op, Part),
    Over,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Coordinator {
    epoch: u8,
    view: Vec<Op>,
    decided: u8,
    step: Step,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct World {
    journals: Vec<Journal>,
    stages: Vec<Stage>,
    /// Prepared files that have not been moved.
    incoming: Vec<u8>,
    name: Option<u8>,
    coordinators: Vec<Coordinator>,
}

#[derive(Clone, Debug, PartialEq)]
struct Go(usize);

/// The file that the name leads to after these operations.
fn expected(ops: &[Op]) -> Option<u8> {
    ops.last().filter(|op| op.kind == Kind::Create).map(|op| op.id)
}

impl World {
    fn is_over(&self, epoch: u8) -> bool {
        self.journals.len() > usize::from(epoch)
    }

    fn stage_of(&self, epoch: u8) -> Option<usize> {
        self.stages.iter().position(|stage| stage.named == epoch)
    }

    fn make_stage(&mut self, epoch: u8) {
        self.stages.push(Stage {
            named: epoch,
            trash: Vec::new(),
        });
    }

    /// A part of an operation: what comes next, `Ok(None)` when it is done, `Err` when the coordinator finds that it is over.
    fn carry_out(&mut self, epoch: u8, op: Op, part: Part, rules: Rules) -> Result<Option<Part>, ()> {
        if op.kind == Kind::Create {
            if let Some(at) = self.incoming.iter().position(|&file| file == op.id) {
                if self.name.is_some() {
                    return Err(());
                }
                self.incoming.remove(at);
                self.name = Some(op.id);
            }
            return Ok(None);
        }
        match part {
            Part::Look if rules.no_look => Ok(Some(Part::Check)),
            Part::Look => {
                let stage = self.stage_of(epoch).map(|at| &self.stages[at]);
                let done = stage.is_some_and(|stage| stage.trash.iter().any(|&(id, _)| id == op.id));
                Ok((!done).then_some(Part::Check))
            }
            Part::Check if self.is_over(epoch) && !rules.no_check => Err(()),
            Part::Check => Ok(Some(Part::Find)),
            Part::Find => self.stage_of(epoch).map(|at| Some(Part::Move(at))).ok_or(()),
            Part::Move(at) => {
                if self.stages[at].named == 0 {
                    return Err(());
                }
                if let Some(file) = self.name.take() {
                    self.stages[at].trash.push((op.id, file));
                    self.stages[at].trash.sort_unstable();
                }
                Ok(None)
            }
        }
    }

    /// One step of taking older stage directories apart; false when there are none.
    fn gather(&mut self, epoch: u8, rules: Rules) -> Result<bool, ()> {
        let older = self
            .stages
            .iter()
            .position(|stage| stage.named != 0 && stage.named < epoch);
        let Some(older) = older else { return Ok(false) };
        let Some(own) = self.stage_of(epoch) else {
            // Taken apart by a successor.
            return Err(());
        };
        if rules.rename_stage {
            // The old directory gets the new name, the empty new one goes.
            let moved = std::mem::take(&mut self.stages[own].trash);
            self.stages[own].named = 0;
            self.stages[older].named = epoch;
            self.stages[older].trash.extend(moved);
        } else if let Some(entry) = self.stages[older].trash.pop() {
            self.stages[own].trash.push(entry);
            self.stages[own].trash.sort_unstable();
        } else {
            self.stages[older].named = 0;
        }
        Ok(true)
    }

    fn go(&mut self, index: usize, rules: Rules) {
        let mut me = self.coordinators[index].clone();
        let epoch = me.epoch;
        let over = self.is_over(epoch);
        let journal = usize::from(epoch).saturating_sub(1);
        me.step = match me.step {
            Step::Idle => {
                self.journals.push(Journal::default());
                me.epoch = u8::try_from(self.journals.len()).unwrap();
                Step::MakeStage
            }
            Step::MakeStage => {
                self.make_stage(epoch);
                Step::Read(epoch - 1)
            }
            Step::Read(0) => Step::Seal(Vec::new()),
            Step::Read(next) => {
                let before = &self.journals[usize::from(next) - 1];
                match &before.seal {
                    Some(seal) => Step::Seal([seal.clone(), before.ops.clone()].concat()),
                    None => Step::Read(next - 1),
                }
            }
            Step::Seal(found) => {
                self.journals[journal].seal = Some(found.clone());
                Step::CheckSeal(found)
            }
            Step::CheckSeal(_) | Step::Check(_) if over => Step::Over,
            Step::CheckSeal(found) => {
                me.view = found;
                Step::Gather
            }
            Step::Gather => match self.gather(epoch, rules) {
                Ok(true) => Step::Gather,
                Ok(false) => Step::Redo(0, Part::Look),
                Err(()) => Step::Over,
            },
            Step::Redo(done, _) if done == me.view.len() => Step::Serve,
            Step::Redo(done, part) => match self.carry_out(epoch, me.view[done], part, rules) {
                Ok(Some(part)) => Step::Redo(done, part),
                Ok(None) => Step::Redo(done + 1, Part::Look),
                Err(()) => Step::Over,
            },
            Step::Serve => {
                me.decided += 1;
                let id = epoch * 8 + me.decided;
                let kind = if expected(&me.view).is_some() {
                    Kind::Delete
                } else {
                    Kind::Create
                };
                if kind == Kind::Create {
                    self.incoming.push(id);
                }
                Step::Append(Op { id, kind })
            }
            Step::Append(op) => {
                self.journals[journal].ops.push(op);
                Step::Check(op)
            }
            Step::Check(op) => Step::Apply(op, Part::Look),
            Step::Apply(op, part) => match self.carry_out(epoch, op, part, rules) {
                Ok(Some(part)) => Step::Apply(op, part),
                Ok(None) => {
                    me.view.push(op);
                    Step::Serve
                }
                Err(()) => Step::Over,
            },
            Step::Over => Step::Over,
        };
        self.coordinators[index] = me;
    }
}

impl Model for Names {
    type State = World;
    type Action = Go;

    fn init_states(&self) -> Vec<World> {
        let idle = Coordinator {
            epoch: 0,
            view: Vec::new(),
            decided: 0,
            step: Step::Idle,
        };
        vec![World {
            journals: Vec::new(),
            stages: Vec::new(),
            incoming: Vec::new(),
            name: None,
            coordinators: vec![idle; self.coordinators],
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Go>) {
        let may_go = |(index, me): &(usize, &Coordinator)| match me.step {
            Step::Over => false,
            // Coordinators are alike: the first one that is idle begins.
            Step::Idle => world.coordinators[..*index]
                .iter()
                .all(|other| other.step != Step::Idle),
            Step::Serve => me.decided < self.decisions,
            _ => true,
        };
        actions.extend(
            world
                .coordinators
                .iter()
                .enumerate()
                .filter(may_go)
                .map(|(index, _)| Go(index)),
        );
    }

    fn next_state(&self, world: &World, Go(index): Go) -> Option<World> {
        let mut world = world.clone();
        world.go(index, self.rules);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the name leads to the file that was answered", |_, world: &World| {
                let serves = |me: &&Coordinator| me.step == Step::Serve && !world.is_over(me.epoch);
                world
                    .coordinators
                    .iter()
                    .filter(serves)
                    .all(|me| world.name == expected(&me.view))
            }),
            Property::sometimes("the last coordinator answers", |_, world: &World| {
                let last = world.coordinators.len();
                let answered =
                    |me: &Coordinator| usize::from(me.epoch) == last && me.decided > 0 && me.step == Step::Serve;
                world.coordinators.iter().any(answered)
            }),
        ]
    }
}

fn names(coordinators: usize, decisions: u8, rules: Rules) -> Names {
    Names {
        coordinators,
        decisions,
        rules,
    }
}

const GOOD: [&str; 1] = ["the last coordinator answers"];
const BAD: &str = "the name leads to the file that was answered";

#[test]
fn inv_96_names_are_whole_in_every_interleaving() {
    let (found, states) = explore(names(3, 3, Rules::default()));
    assert_eq!(found, GOOD);
    assert!(states > 10_000, "{states} states are too few to say anything");
}

#[test]
fn inv_96_with_stage_directories_that_are_renamed_names_break() {
    let rules = Rules {
        rename_stage: true,
        ..Rules::default()
    };
    let (found, _) = explore(names(3, 3, rules));
    assert!(found.contains(&BAD), "{found:?}");
}

#[test]
fn inv_96_without_looking_whether_a_file_was_deleted_names_break() {
    let rules = Rules {
        no_look: true,
        ..Rules::default()
    };
    let (found, _) = explore(names(2, 3, rules));
    assert!(found.contains(&BAD), "{found:?}");
}

#[test]
fn inv_96_without_a_check_after_looking_names_break() {
    let rules = Rules {
        no_check: true,
        ..Rules::default()
    };
    let (found, _) = explore(names(3, 3, rules));
    assert!(found.contains(&BAD), "{found:?}");
}
