//! The file: a container, then guest memory with holes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use prost::Message;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vhd_block::units::{u64_from, usize_from};

use super::container::{self, LONGEST, PREFACE, Section, section};
use super::error::io;
use super::messages::{self, Function, Machine};
use super::{StateError, memory};
use crate::kvm;
use crate::virtio::rng::VIRTIO_ID_RNG;
use crate::{CpuDescription, Error, MAX_CPUS, MAX_MEMORY, MEMORY_UNIT, MIN_MEMORY, MachineType};

/// Kinds of sections, with the newest version of each.
const KNOWN: &[(&str, u32)] = &[
    ("machine", 1),
    ("memory", 1),
    ("cpuid", 1),
    ("processor", 1),
    ("interrupts", 1),
    ("com1", 1),
    ("cmos", 1),
    ("bus", 1),
    ("function", 1),
    ("mmio", 1),
    ("owner", 1),
];
/// Bytes to which memory in the file is aligned.
const ALIGNMENT: u64 = 4096;
/// Bytes of what the owner adds at most.
const LONGEST_OWNER: usize = 256 << 10;
/// Bytes that a piece of memory takes in the container at most.
const PER_PIECE: u64 = 64;

/// The state of a machine without its memory.
pub(crate) struct SavedState {
    pub(crate) machine: Machine,
    pub(crate) sections: Vec<Section>,
}

/// A machine whose memory and devices are in a file that is to be completed.
#[derive(Debug)]
pub struct Saved {
    file: File,
    sections: Vec<Section>,
    /// Bytes before the memory.
    room: u64,
}

/// Writes the memory of a machine to an empty file, and sets aside what the rest needs.
pub(crate) fn write(state: SavedState, memory: &File, file: File) -> Result<Saved, StateError> {
    let SavedState { machine, mut sections } = state;
    let size = machine.memory;
    sections.insert(0, section("machine", 0, &machine));
    // Room for the table of all pieces, whether or not they are zero.
    let pieces = size.div_ceil(1 << 20) * PER_PIECE;
    let fixed = u64_from(container::encode(&sections).len() + LONGEST_OWNER);
    let room = (fixed + pieces + ALIGNMENT).next_multiple_of(ALIGNMENT);
    match fallocate(&file, FallocateFlags::empty(), 0, room) {
        // Not every file system can.
        Err(Errno::OPNOTSUPP) => {}
        set_aside => set_aside.map_err(|error| io("set aside space in the file")(error.into()))?,
    }
    let memory = memory::write(memory, size, &file, room)?;
    sections.insert(1, section("memory", 0, &memory));
    file.sync_data().map_err(io("make the file durable"))?;
    Ok(Saved { file, sections, room })
}

impl Saved {
    /// Completes the file with what the owner of the machine wants to find in it; it is durable on return.
    ///
    /// # Errors
    /// [`StateError::Io`]; [`StateError::Damaged`] where the owner's part is longer than 256 KiB.
    pub fn complete(mut self, owner: &[u8]) -> Result<(), StateError> {
        if owner.len() > LONGEST_OWNER - 1024 {
            return Err(StateError::damaged("owner", "is too long"));
        }
        self.sections.push(Section {
            kind: "owner".to_owned(),
            instance: 0,
            version: 1,
            requires: Vec::new(),
            body: owner.to_vec(),
        });
        let bytes = container::encode(&self.sections);
        assert!(u64_from(bytes.len()) <= self.room.min(LONGEST), "the room was enough");
        self.file.write_all_at(&bytes, 0).map_err(io("write to the file"))?;
        self.file.sync_all().map_err(io("make the file durable"))
    }
}

/// A file with a machine, whose container was read and is sound.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    machine: Machine,
    machine_type: MachineType,
    memory: messages::Memory,
    sections: Vec<Section>,
}

impl StateFile {
    /// Reads everything but guest memory.
    ///
    /// # Errors
    /// Why it cannot be restored; whether memory was altered is known when it is read.
    pub fn open(file: File) -> Result<Self, StateError> {
        let sections = read_sections(&file)?;
        sections.iter().try_for_each(check)?;
        let machine: Machine = only(&sections, "machine")?;
        let memory: messages::Memory = only(&sections, "memory")?;
        let machine_type = MachineType::from_name(&machine.machine_type);
        let machine_type = machine_type.ok_or(StateError::Requirement {
            section: "machine".to_owned(),
            feature: format!("machine type {}", machine.machine_type),
        })?;
        let cpus = (1..=u32::from(MAX_CPUS)).contains(&machine.cpus);
        let size = (MIN_MEMORY..=MAX_MEMORY).contains(&machine.memory) && machine.memory.is_multiple_of(MEMORY_UNIT);
        if !cpus || !size || memory.offset > LONGEST * 2 {
            return Err(StateError::damaged("machine", "is of a machine that is not possible"));
        }
        let expected = memory.offset + machine.memory;
        let found = file.metadata().map_err(io("look at the file"))?.len();
        if found < expected {
            return Err(StateError::Truncated { expected, found });
        }
        Ok(Self {
            file,
            machine,
            machine_type,
            memory,
            sections,
        })
    }

    /// The type of the machine.
    #[must_use]
    pub fn machine_type(&self) -> MachineType {
        self.machine_type
    }

    /// Its processors.
    #[must_use]
    pub fn cpus(&self) -> u8 {
        u8::try_from(self.machine.cpus).unwrap_or(MAX_CPUS)
    }

    /// Bytes of its memory.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.machine.memory
    }

    /// What the machine's owner added.
    ///
    /// # Errors
    /// There is no such section.
    pub fn owner(&self) -> Result<&[u8], StateError> {
        let mut owners = self.sections.iter().filter(|section| section.kind == "owner");
        let owner = owners.next().ok_or(StateError::damaged("owner", "is missing"))?;
        Ok(&owner.body)
    }

    /// The slots in which the machine has disks; for `mmio`, their numbers.
    #[must_use]
    pub fn slots(&self) -> Vec<usize> {
        self.slots_of(&|device_type| device_type != VIRTIO_ID_RNG)
    }

    /// The slots with sources of random numbers.
    pub(crate) fn rng_slots(&self) -> Vec<usize> {
        self.slots_of(&|device_type| device_type == VIRTIO_ID_RNG)
    }

    fn slots_of(&self, is_meant: &dyn Fn(u32) -> bool) -> Vec<usize> {
        let kind = self.device_kind();
        let devices = self.sections.iter().filter(|section| section.kind == kind);
        let is_meant = |section: &&Section| is_meant(device_type(self.machine_type, section));
        let devices = devices.filter(is_meant);
        devices.map(|section| usize_from(section.instance.into())).collect()
    }

    /// What its guest was told of its processors.
    ///
    /// # Errors
    /// That is not in it.
    pub fn processor(&self) -> Result<CpuDescription, StateError> {
        self.one("cpuid").map(CpuDescription::from_table)
    }

    /// Whether this host can go on with it, and its memory is what was written: what [`Machine::restore`](crate::Machine::restore)
    /// would refuse only when it has begun.
    ///
    /// # Errors
    /// [`Error::State`] with the reason, [`Error::NoKvm`], [`Error::Kvm`].
    pub fn verify(&self) -> Result<(), Error> {
        kvm::require_processor(self.one("cpuid")?)?;
        Ok(memory::verify(&self.file, &self.memory, self.machine.memory)?)
    }

    fn device_kind(&self) -> &'static str {
        match self.machine_type {
            MachineType::Vhd1 => "function",
            MachineType::Mmio => "mmio",
        }
    }

    /// Reads guest memory into a file of zeroes.
    pub(crate) fn read_memory(&self, memory: &File) -> Result<(), StateError> {
        memory::read(&self.file, &self.memory, memory, self.machine.memory)
    }

    /// The message of the only section of a kind.
    pub(crate) fn one<T: Message + Default>(&self, kind: &str) -> Result<T, StateError> {
        only(&self.sections, kind)
    }

    /// The messages of all sections of a kind, which are numbered from zero.
    pub(crate) fn numbered<T: Message + Default>(&self, kind: &str, count: usize) -> Result<Vec<T>, StateError> {
        let all: Vec<(usize, T)> = self.each(kind)?;
        let in_order = all
            .iter()
            .enumerate()
            .all(|(number, (instance, _))| number == *instance);
        if all.len() != count || !in_order {
            return Err(StateError::damaged(kind, &format!("is not there {count} times")));
        }
        Ok(all.into_iter().map(|(_, message)| message).collect())
    }

    /// The messages of all devices, by their slots.
    pub(crate) fn devices<T: Message + Default>(&self) -> Result<Vec<(usize, T)>, StateError> {
        self.each(self.device_kind())
    }

    fn each<T: Message + Default>(&self, kind: &str) -> Result<Vec<(usize, T)>, StateError> {
        let sections = self.sections.iter().filter(|section| section.kind == kind);
        let message = |section: &Section| Ok((usize_from(section.instance.into()), message(section)?));
        sections.map(message).collect()
    }
}

fn read_sections(file: &File) -> Result<Vec<Section>, StateError> {
    let found = file.metadata().map_err(io("look at the file"))?.len();
    let mut preface = [0; PREFACE];
    if found < u64_from(PREFACE) {
        return Err(StateError::NotAState);
    }
    file.read_exact_at(&mut preface, 0).map_err(io("read the file"))?;
    let expected = container::length(&preface)?;
    if found < expected {
        return Err(StateError::Truncated { expected, found });
    }
    let mut bytes = vec![0; usize_from(expected)];
    file.read_exact_at(&mut bytes, 0).map_err(io("read the file"))?;
    container::decode(&bytes)
}

/// Refuses what this program does not know.
fn check(section: &Section) -> Result<(), StateError> {
    let Some((_, known)) = KNOWN.iter().find(|(kind, _)| *kind == section.kind) else {
        return Err(StateError::Requirement {
            section: section.kind.clone(),
            feature: "that section".to_owned(),
        });
    };
    if section.version == 0 || section.version > *known {
        return Err(StateError::Version {
            what: format!("its section {}", section.kind),
            found: section.version,
            known: *known,
        });
    }
    // Nothing was ever required yet.
    match section.requires.first() {
        Some(feature) => Err(StateError::Requirement {
            section: section.kind.clone(),
            feature: feature.clone(),
        }),
        None => Ok(()),
    }
}

/// What kind of device a section is of. One that cannot be read is refused when the device is restored.
fn device_type(machine_type: MachineType, section: &Section) -> u32 {
    let virtio = match machine_type {
        MachineType::Vhd1 => message(section).ok().and_then(|function: Function| function.virtio),
        MachineType::Mmio => message(section).ok(),
    };
    virtio.map_or(0, |virtio| virtio.device_type)
}

fn only<T: Message + Default>(sections: &[Section], kind: &str) -> Result<T, StateError> {
    let mut of_kind = sections.iter().filter(|section| section.kind == kind);
    match (of_kind.next(), of_kind.next()) {
        (Some(section), None) => message(section),
        _ => Err(StateError::damaged(kind, "is not there once")),
    }
}

fn message<T: Message + Default>(section: &Section) -> Result<T, StateError> {
    T::decode(section.body.as_slice()).map_err(|error| StateError::damaged(&section.kind, &error.to_string()))
}
