//! What a volume's metadata is: the fold of its journals. Pure; the same on every node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{Generation, OpId, Session};
use crate::journal::{Op, Outcome, RequestId, Table};

/// So many sessions are remembered for requests that are asked twice.
const SESSIONS: usize = 1024;

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The operation that put the file there. A file that takes its place has another one.
    pub file: OpId,
    /// Its block table, if the coordinator allocates for it.
    pub table: Option<Table>,
    /// Where the next new block begins, in bytes. Never goes back in the life of the file.
    pub end: u64,
    /// The last right to write that was given away, 0 if none was.
    pub generation: Generation,
    /// Who has that right now.
    pub writer: Option<Session>,
}

/// The metadata of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The disks by path.
    pub disks: BTreeMap<String, Disk>,
    /// The last generation that was given away on the volume: none comes twice.
    last: Generation,
    /// The last request of each session, and what came of it.
    #[serde(with = "as_list")]
    answered: BTreeMap<Session, Answered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answered {
    number: u64,
    by: OpId,
    outcome: Outcome,
}

/// A state, with the operations whose effects may be missing from the volume, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The state after these operations.
    pub state: State,
    /// What has to be carried out again before anything else.
    pub unsettled: Vec<(OpId, Op)>,
}

impl Sealed {
    /// Applies an operation that takes effect.
    pub fn apply(&mut self, id: OpId, request: &RequestId, op: &Op) -> Outcome {
        if op.has_effect() {
            self.unsettled.push((id, op.clone()));
        }
        self.state.apply(id, request, op)
    }
}

impl State {
    /// What came of a request that was asked before.
    #[must_use]
    pub fn answered(&self, request: &RequestId) -> Option<&Outcome> {
        let answered = self.answered.get(&request.session)?;
        (answered.number == request.number).then_some(&answered.outcome)
    }

    /// Whether a later request of the same session was answered: the message was on its way too long.
    #[must_use]
    pub fn is_late(&self, request: &RequestId) -> bool {
        let answered = self.answered.get(&request.session);
        answered.is_some_and(|answered| answered.number > request.number)
    }

    /// Applies an operation that takes effect.
    fn apply(&mut self, id: OpId, request: &RequestId, op: &Op) -> Outcome {
        let outcome = self.change(id, op);
        let answered = Answered {
            number: request.number,
            by: id,
            outcome: outcome.clone(),
        };
        self.answered.insert(request.session.clone(), answered);
        if self.answered.len() > SESSIONS {
            let oldest = self.answered.iter().min_by_key(|(_, answered)| answered.by);
            let oldest = oldest.map(|(session, _)| session.clone()).expect("not empty");
            self.answered.remove(&oldest);
        }
        outcome
    }

    fn change(&mut self, id: OpId, op: &Op) -> Outcome {
        match op {
            Op::Adopt { path, table, end } | Op::Create { path, table, end, .. } => {
                self.insert(path, id, *table, *end);
            }
            Op::Replace { path, table, end, .. } => {
                // The right to write the file that is gone ends with it.
                self.insert(path, id, *table, *end);
            }
            Op::Delete { path } => {
                self.disks.remove(path);
            }
            Op::Open { path, holder } | Op::Handover { path, to: holder } => {
                return self.grant(path, Some(holder.clone()));
            }
            Op::Close { path } => {
                if let Some(disk) = self.disks.get_mut(path) {
                    disk.writer = None;
                }
            }
            Op::Fenced { session, .. } => {
                // Its messages that are still on their way are too late for ever.
                let last = Answered {
                    number: u64::MAX,
                    by: id,
                    outcome: Outcome::Done(id),
                };
                self.answered.insert(session.clone(), last);
                for disk in self
                    .disks
                    .values_mut()
                    .filter(|disk| disk.writer.as_ref() == Some(session))
                {
                    disk.writer = None;
                    disk.generation = disk.generation.next();
                }
            }
            Op::Alloc { path, blocks, end, .. } => {
                if let Some(disk) = self.disks.get_mut(path) {
                    disk.end = disk.end.max(*end);
                }
                return Outcome::Blocks(blocks.clone());
            }
        }
        Outcome::Done(id)
    }

    fn insert(&mut self, path: &str, file: OpId, table: Option<Table>, end: u64) {
        let disk = Disk {
            file,
            table,
            end,
            generation: Generation::default(),
            writer: None,
        };
        self.disks.insert(path.to_owned(), disk);
    }

    fn grant(&mut self, path: &str, writer: Option<Session>) -> Outcome {
        let Some(disk) = self.disks.get_mut(path) else {
            return Outcome::Writer(Generation::default());
        };
        self.last = self.last.next();
        disk.generation = self.last;
        disk.writer = writer;
        Outcome::Writer(disk.generation)
    }
}

/// Maps with keys that are no strings, for JSON.
mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer, K: Serialize, V: Serialize>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, K: Ord + Deserialize<'de>, V: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }

    #[cfg(test)]
    mod tests {
        #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
        struct Holder {
            #[serde(with = "super")]
            map: std::collections::BTreeMap<(u8, u8), u8>,
        }

        #[test]
        fn a_map_comes_back() {
            let holder = Holder {
                map: [((1, 2), 3), ((4, 5), 6)].into(),
            };
            let text = serde_json::to_string(&holder).unwrap();
            assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), holder);
        }
    }
}
