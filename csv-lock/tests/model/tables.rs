//! Places of blocks: journals, seals, checks and table entries.

use stateright::{Model, Property};

use crate::explore;

/// What a variant leaves out.
#[derive(Clone, Copy, Default)]
struct Rules {
    /// A new coordinator writes no seal: its successors read all journals to their ends.
    no_seal: bool,
    /// Check, append, apply.
    check_before: bool,
    /// A block that has a place may get another one in the same file.
    relocate: bool,
}

struct Tables {
    coordinators: usize,
    blocks: usize,
    /// Decisions per coordinator.
    decisions: u8,
    rules: Rules,
}

/// Block, place.
type Entry = (u8, u8);

/// The record of an epoch.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
struct Journal {
    /// What was found before; `None` while there is no seal.
    seal: Option<Vec<Entry>>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
enum Step {
    /// Has not begun.
    Idle,
    /// Reads the journal of this epoch next; has found this in newer ones (only without seals).
    Read {
        next: u8,
        later: Vec<Entry>,
    },
    /// Has found this, writes its seal.
    Seal(Vec<Entry>),
    CheckSeal(Vec<Entry>),
    /// Applies again from here on.
    Redo(usize),
    Serve,
    Append(Entry),
    Check(Entry),
    Apply(Entry),
    Answer(Entry),
    Over,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Coordinator {
    epoch: u8,
    /// All that took effect, as it believes.
    view: Vec<Entry>,
    decided: u8,
    step: Step,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct World {
    journals: Vec<Journal>,
    table: Vec<Option<u8>>,
    answered: Vec<Option<u8>>,
    coordinators: Vec<Coordinator>,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Go(usize),
    Decide(usize, u8),
}

impl Coordinator {
    fn place(&self, block: u8) -> Option<u8> {
        self.view
            .iter()
            .rev()
            .find(|entry| entry.0 == block)
            .map(|entry| entry.1)
    }

    fn fresh(&self) -> u8 {
        self.view.iter().map(|entry| entry.1 + 1).max().unwrap_or(0)
    }
}

impl World {
    fn is_over(&self, epoch: u8) -> bool {
        self.journals.len() > usize::from(epoch)
    }

    /// One step of reading: the journal `next` (counted from 1), or the beginning of the volume.
    fn read(&self, next: u8, later: Vec<Entry>, rules: Rules) -> Step {
        let Some(below) = next.checked_sub(1) else {
            return Step::Seal(later);
        };
        let journal = &self.journals[usize::from(below)];
        if rules.no_seal {
            let found = [journal.entries.clone(), later].concat();
            return Step::Read {
                next: below,
                later: found,
            };
        }
        match &journal.seal {
            Some(seal) => Step::Seal([seal.clone(), journal.entries.clone()].concat()),
            None => Step::Read { next: below, later },
        }
    }

    fn go(&mut self, index: usize, rules: Rules) {
        let over = self.is_over(self.coordinators[index].epoch);
        let mut me = self.coordinators[index].clone();
        let journal = usize::from(me.epoch).saturating_sub(1);
        me.step = match me.step {
            Step::Idle => {
                self.journals.push(Journal::default());
                me.epoch = u8::try_from(self.journals.len()).unwrap();
                Step::Read {
                    next: me.epoch - 1,
                    later: Vec::new(),
                }
            }
            Step::Read { next, later } => self.read(next, later, rules),
            Step::Seal(found) => {
                self.journals[journal].seal = Some(found.clone());
                Step::CheckSeal(found)
            }
            Step::CheckSeal(_) if over => Step::Over,
            Step::CheckSeal(found) => {
                me.view = found;
                Step::Redo(0)
            }
            Step::Redo(done) if done == me.view.len() => Step::Serve,
            Step::Redo(done) => {
                let (block, place) = me.view[done];
                self.table[usize::from(block)] = Some(place);
                Step::Redo(done + 1)
            }
            Step::Append(entry) => {
                self.journals[journal].entries.push(entry);
                if rules.check_before {
                    Step::Apply(entry)
                } else {
                    Step::Check(entry)
                }
            }
            Step::Check(_) if over => Step::Over,
            Step::Check(entry) => {
                if rules.check_before {
                    Step::Append(entry)
                } else {
                    Step::Apply(entry)
                }
            }
            Step::Apply((block, place)) => {
                self.table[usize::from(block)] = Some(place);
                Step::Answer((block, place))
            }
            Step::Answer((block, place)) => {
                me.view.push((block, place));
                self.answered[usize::from(block)] = Some(place);
                Step::Serve
            }
            step @ (Step::Serve | Step::Over) => step,
        };
        self.coordinators[index] = me;
    }
}

impl Model for Tables {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let idle = Coordinator {
            epoch: 0,
            view: Vec::new(),
            decided: 0,
            step: Step::Idle,
        };
        vec![World {
            journals: Vec::new(),
            table: vec![None; self.blocks],
            answered: vec![None; self.blocks],
            coordinators: vec![idle; self.coordinators],
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (index, me) in world.coordinators.iter().enumerate() {
            match me.step {
                Step::Over => {}
                // Coordinators are alike: the first one that is idle begins.
                Step::Idle => {
                    if world.coordinators[..index].iter().all(|other| other.step != Step::Idle) {
                        actions.push(Action::Go(index));
                    }
                }
                Step::Serve => {
                    if me.decided < self.decisions {
                        let free = |block: &u8| self.rules.relocate || me.place(*block).is_none();
                        let blocks = 0..u8::try_from(self.blocks).unwrap();
                        actions.extend(blocks.filter(free).map(|block| Action::Decide(index, block)));
                    }
                }
                _ => actions.push(Action::Go(index)),
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Go(index) => world.go(index, self.rules),
            Action::Decide(index, block) => {
                let me = &mut world.coordinators[index];
                let entry = (block, me.fresh());
                me.decided += 1;
                me.step = if self.rules.check_before {
                    Step::Check(entry)
                } else {
                    Step::Append(entry)
                };
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no place is given twice", |_, world: &World| {
                let places: Vec<_> = world.table.iter().flatten().collect();
                (1..places.len()).all(|index| !places[..index].contains(&places[index]))
            }),
            Property::always("what was answered stays", |_, world: &World| {
                world
                    .answered
                    .iter()
                    .zip(&world.table)
                    .all(|(answered, entry)| answered.is_none() || answered == entry)
            }),
            Property::sometimes("the last coordinator answers", |_, world: &World| {
                world.coordinators.iter().any(|me| {
                    usize::from(me.epoch) == world.coordinators.len() && me.decided > 0 && me.step == Step::Serve
                })
            }),
        ]
    }
}

fn tables(coordinators: usize, blocks: usize, rules: Rules) -> Tables {
    Tables {
        coordinators,
        blocks,
        decisions: 2,
        rules,
    }
}

const GOOD: [&str; 1] = ["the last coordinator answers"];

#[test]
fn inv_91_tables_are_whole_in_every_interleaving() {
    let (found, states) = explore(tables(4, 2, Rules::default()));
    assert_eq!(found, GOOD);
    assert!(states > 10_000, "{states} states are too few to say anything");
}

#[test]
fn inv_93_without_seals_tables_break() {
    let rules = Rules {
        no_seal: true,
        ..Rules::default()
    };
    let (found, _) = explore(tables(3, 2, rules));
    assert!(
        found.contains(&"no place is given twice") || found.contains(&"what was answered stays"),
        "{found:?}"
    );
}

#[test]
fn inv_91_with_the_check_before_the_append_alone_tables_break() {
    let rules = Rules {
        check_before: true,
        ..Rules::default()
    };
    let (found, _) = explore(tables(2, 2, rules));
    assert!(found.contains(&"no place is given twice"), "{found:?}");
}

#[test]
fn inv_95_with_relocation_in_place_tables_break() {
    let rules = Rules {
        relocate: true,
        ..Rules::default()
    };
    let (found, _) = explore(tables(2, 1, rules));
    assert!(found.contains(&"what was answered stays"), "{found:?}");
}
