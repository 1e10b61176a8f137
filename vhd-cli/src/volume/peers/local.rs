//! The nodes of one machine, in its registry.

use std::time::Duration;

use csv_lock::{CsvError, Event, KnownVolume, Leader, Member, NodeId, VolumeId};

use super::Peers;
use crate::volume::Machine;

/// The nodes of one machine.
pub(super) struct LocalPeers {
    machine: Machine,
    volume: VolumeId,
}

impl LocalPeers {
    pub(super) fn new(machine: &Machine, volume: &KnownVolume) -> Self {
        Self {
            machine: machine.clone(),
            volume: volume.id,
        }
    }
}

impl Peers for LocalPeers {
    fn join(&self, node: &NodeId) -> Result<bool, CsvError> {
        self.machine.registry().join(self.volume, node)
    }

    fn leave(&self, node: &NodeId) -> Result<bool, CsvError> {
        self.machine.registry().leave(self.volume, node)
    }

    fn members(&self) -> Result<Vec<Member>, CsvError> {
        self.machine.registry().members(self.volume)
    }

    fn set_condition(&self, node: &NodeId, condition: &str) -> Result<(), CsvError> {
        self.machine.registry().set_condition(self.volume, node, condition)
    }

    fn wish(&self, node: &NodeId, limit: Duration) -> Result<(), CsvError> {
        self.machine.registry().wish(self.volume, node, limit)
    }

    fn end_wish(&self, node: &NodeId) -> Result<(), CsvError> {
        self.machine.registry().end_wish(self.volume, node)
    }

    fn wished(&self) -> Result<Option<NodeId>, CsvError> {
        self.machine.registry().wished(self.volume)
    }

    fn note(&self, node: &NodeId, kind: &str, text: &str) -> Result<(), CsvError> {
        self.machine.registry().note(self.volume, node, kind, text)
    }

    fn events(&self) -> Result<Vec<Event>, CsvError> {
        self.machine.registry().events(self.volume)
    }

    fn running(&self) -> Result<Vec<NodeId>, CsvError> {
        let members = self.members()?.into_iter().map(|member| member.node);
        Ok(members.filter(|node| self.machine.has_agent(node)).collect())
    }

    fn coordinator(&self) -> Result<Option<Leader>, CsvError> {
        let leader = self.machine.registry().leader(self.volume)?;
        Ok(leader.filter(|leader| self.machine.listens(leader)))
    }

    fn expel(&self, _: &NodeId) -> Result<(), CsvError> {
        // The kernel has ended its term with its process.
        Ok(())
    }
}
