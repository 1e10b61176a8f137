//! The state of each version as it was written once: it must be read for ever. The files are never written again; a new version
//! gets one beside them (`VHD_GOLDEN=FILE cargo test -p hypervisor --test saved golden` writes it).

use std::io::Write as _;

use prost::Message;

use super::container::{self, PREFACE, Section};
use super::messages::{Bus, Cmos, CpuTable, Function, Interrupts, Machine, Memory, Processor, Serial};
use super::{StateError, StateFile};
use crate::{MIN_MEMORY, MachineType};

/// A machine vhd-1 with two disks, one of which was served, of version 1.
const VERSION_1: &[u8] = include_bytes!("../../tests/golden/machine-1.state");

fn sections() -> Vec<Section> {
    container::decode(VERSION_1).unwrap()
}

/// The bytes as a file, with memory of holes.
fn file(bytes: &[u8]) -> Result<StateFile, StateError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(MIN_MEMORY + (1 << 20)).unwrap();
    StateFile::open(file)
}

/// Nothing of it is lost when it is read: a tag that vanished, or has another type, would be.
fn keeps<T: Message + Default>(section: &Section) {
    let message = T::decode(section.body.as_slice()).unwrap();
    assert_eq!(message.encode_to_vec(), section.body, "{}", section.kind);
}

#[test]
fn version_1_is_read() {
    let preface: &[u8; PREFACE] = VERSION_1.first_chunk().unwrap();
    assert_eq!(container::length(preface).unwrap(), VERSION_1.len() as u64);
    for section in sections() {
        match section.kind.as_str() {
            "machine" => keeps::<Machine>(&section),
            "memory" => keeps::<Memory>(&section),
            "cpuid" => keeps::<CpuTable>(&section),
            "processor" => keeps::<Processor>(&section),
            "interrupts" => keeps::<Interrupts>(&section),
            "com1" => keeps::<Serial>(&section),
            "cmos" => keeps::<Cmos>(&section),
            "bus" => keeps::<Bus>(&section),
            "function" => keeps::<Function>(&section),
            "owner" => assert_eq!(section.body, b"owner"),
            other => panic!("an unknown section {other}"),
        }
    }
    let state = file(VERSION_1).unwrap();
    assert_eq!(
        (state.machine_type(), state.cpus(), state.memory()),
        (MachineType::Vhd1, 1, MIN_MEMORY)
    );
    assert_eq!(state.slots(), [1, 2]);
    let functions: Vec<(usize, Function)> = state.devices().unwrap();
    let served: Vec<bool> = functions
        .iter()
        .map(|(_, function)| function.virtio.as_ref().unwrap().served.is_some())
        .collect();
    assert_eq!(served, [true, false]);
    let processors: Vec<Processor> = state.numbered("processor", 1).unwrap();
    assert_eq!((processors[0].regs.len(), processors[0].xsave.len()), (144, 4096));
}

#[test]
fn what_is_newer_or_not_there_is_refused() {
    let change = |change: &dyn Fn(&mut Vec<Section>)| {
        let mut sections = sections();
        change(&mut sections);
        file(&container::encode(&sections))
    };
    let at = |sections: &[Section], kind: &str| sections.iter().position(|section| section.kind == kind).unwrap();
    let newer = change(&|sections| {
        let at = at(sections, "bus");
        sections[at].version = 2;
    });
    assert!(matches!(newer, Err(StateError::Version { found: 2, known: 1, .. })));
    let needs = change(&|sections| {
        let at = at(sections, "function");
        sections[at].requires.push("packed-rings".to_owned());
    });
    assert!(matches!(needs, Err(StateError::Requirement { .. })));
    let unknown = change(&|sections| {
        let at = at(sections, "cmos");
        sections[at].kind = "hpet".to_owned();
    });
    assert!(matches!(unknown, Err(StateError::Requirement { .. })));
    // A field that a newer writer added, and that readers need not know.
    let more = change(&|sections| {
        let at = at(sections, "bus");
        sections[at].body.extend([0x98, 0x06, 0x01]);
    });
    assert_eq!(more.unwrap().slots(), [1, 2]);
    for kind in ["machine", "memory"] {
        let lost = change(&|sections| sections.retain(|section| section.kind != kind));
        assert!(matches!(lost, Err(StateError::Damaged { .. })));
        let twice = change(&|sections| {
            let again = sections[at(sections, kind)].clone();
            sections.push(again);
        });
        assert!(matches!(twice, Err(StateError::Damaged { .. })));
    }
    let larger = change(&|sections| {
        let at = at(sections, "machine");
        let machine = Machine {
            memory: MIN_MEMORY + 1,
            ..Machine::decode(sections[at].body.as_slice()).unwrap()
        };
        sections[at].body = machine.encode_to_vec();
    });
    assert!(matches!(larger, Err(StateError::Damaged { .. })));
}
