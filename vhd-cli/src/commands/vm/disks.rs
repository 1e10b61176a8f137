//! The disks of a machine.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hypervisor::{MAX_DISKS, MachineDisk, MachineHandle, Reach, Sandbox};
use vhd_block::Disk;

use super::disk_spec::DiskSpec;
use super::guest::Guest;
use super::open_disk::{How, OpenDisk, Opened, open, serial};
use super::passed::Passed;
use super::reach;
use super::record::SavedDisk;
use super::run::RunArgs;
use super::snapshot::LivePart;
use super::worker::DiskInfo;
use crate::codes::Kind;
use crate::failure::Failure;
use crate::in_use;
use crate::input::{ChainArgs, Source, require_file};

/// The disks of the command line, in the guest's order.
fn specs(args: &RunArgs) -> Vec<DiskSpec> {
    let first = args.image.as_deref().map(DiskSpec::plain);
    first.into_iter().chain(args.disks.iter().cloned()).collect()
}

/// Refuses what no machine can have, before anything is opened.
pub(super) fn check(args: &RunArgs) -> Result<(), Failure> {
    let specs = specs(args);
    if specs.len() > MAX_DISKS {
        return Err(Failure::usage(format!("a machine has at most {MAX_DISKS} disks")));
    }
    specs
        .iter()
        .try_for_each(|spec| require_file(&spec.typed().path, "used"))
}

/// Opens the files of a disk where that is allowed.
pub(super) type Elsewhere<'a> = &'a dyn Fn() -> Result<(Passed, Vec<OwnedFd>), Failure>;

/// Disks that are open while a machine runs.
#[derive(Default)]
pub(super) struct OpenDisks {
    disks: Mutex<Vec<OpenDisk>>,
    guest: Guest,
}

impl OpenDisks {
    /// Opens those of the command line, and says what is odd about them.
    pub(super) fn open(&self, args: &RunArgs) -> Result<Vec<MachineDisk>, Failure> {
        let how = How {
            chain: args.chain.clone(),
            ignore_children: args.children.ignore_children,
        };
        specs(args).into_iter().map(|spec| self.open_one(spec, &how)).collect()
    }

    /// Opens those of a machine that was saved, by the slots in which it has disks still: each must be the disk that it was, and of those
    /// that `trust` is true for that is all.
    pub(super) fn reopen(
        &self,
        saved: &[SavedDisk],
        slots: &[usize],
        trust: &dyn Fn(&SavedDisk) -> bool,
    ) -> Result<Vec<(usize, MachineDisk)>, Failure> {
        let reopen = |disk: &SavedDisk| {
            let parents = disk.files.iter().skip(1);
            let how = How {
                chain: ChainArgs::with_parents(parents.map(|file| file.path.clone())),
                ignore_children: disk.ignore_children,
            };
            let about = |failure: Failure| failure.about(&disk.spec.image);
            let mut of_machine = self.open_one(disk.spec.clone(), &how)?;
            let mut disks = self.disks();
            let opened = disks.last_mut().expect("it was just opened");
            (opened.slot, opened.id) = (disk.slot, disk.id.clone());
            let now = opened.describe()?.stamped();
            disk.require_same(&now, trust(disk)).map_err(about)?;
            of_machine.name.clone_from(&disk.id);
            Ok((disk.slot, of_machine))
        };
        let mut saved: Vec<&SavedDisk> = saved.iter().filter(|disk| slots.contains(&disk.slot)).collect();
        saved.sort_by_key(|disk| disk.slot);
        saved.into_iter().map(reopen).collect()
    }

    fn open_one(&self, spec: DiskSpec, how: &How) -> Result<MachineDisk, Failure> {
        let source = Source::or_remote(&spec.typed().path, None)?;
        let read_only = spec.read_only || source.is_snapshot && !spec.snapshot;
        let opened = open(how, &spec, &source, read_only)?;
        let id = spec.id.clone().unwrap_or_else(|| serial(opened.disk().info().identity));
        Ok(self.keep(OpenDisk {
            image: source.name,
            file: source.path,
            id,
            read_only,
            slot: 0,
            spec: spec.absolute()?,
            ignore_children: how.ignore_children,
            opened,
            passed: None,
        }))
    }

    /// A disk whose files a command has opened and passed.
    fn receive(&self, spec: DiskSpec, passed: Passed, files: Vec<OwnedFd>) -> Result<MachineDisk, Failure> {
        let opened = Opened::Disk(in_use::Opened::Plain(passed.receive(files)?));
        let id = spec.id.clone().unwrap_or_else(|| serial(opened.disk().info().identity));
        Ok(self.keep(OpenDisk {
            image: spec.image.clone(),
            file: spec.path(),
            id,
            read_only: passed.read_only,
            slot: 0,
            spec,
            ignore_children: false,
            opened,
            passed: Some(passed.files),
        }))
    }

    fn keep(&self, open: OpenDisk) -> MachineDisk {
        let (disk, read_only, name) = (open.opened.disk(), open.read_only, open.id.clone());
        self.disks().push(open);
        MachineDisk {
            disk,
            read_only,
            name,
            // An engine that has its image by a path opens a file beside it for space that it sets aside, and a connection
            // to a server may have to be made again: they are under the rules for all threads alone.
            sandbox: Sandbox::Off,
        }
    }

    /// Opens another disk for a machine that runs; returns by which id it is known. With `elsewhere`, what cannot be opened here,
    /// or is not even to be tried here, is opened by a command, whose failure is told then.
    pub(super) fn add(
        &self,
        spec: DiskSpec,
        is_tried: bool,
        elsewhere: Option<Elsewhere<'_>>,
    ) -> Result<(String, MachineDisk), Failure> {
        let how = How {
            chain: ChainArgs::with_parents(std::iter::empty()),
            ignore_children: false,
        };
        let passed = |elsewhere: Elsewhere<'_>| {
            let (passed, files) = elsewhere()?;
            self.receive(spec.clone(), passed, files)
        };
        let of_machine = match elsewhere {
            None => self.open_one(spec, &how)?,
            Some(elsewhere) if !is_tried => passed(elsewhere)?,
            Some(elsewhere) => {
                let here = self.open_one(spec.clone(), &how);
                here.or_else(|_| passed(elsewhere))?
            }
        };
        let id = of_machine.name.clone();
        let mut disks = self.disks();
        if disks.iter().filter(|disk| disk.id == id).count() == 1 {
            drop(disks);
            let listens = self.listen();
            return match listens {
                Ok(()) => Ok((id, of_machine)),
                Err(failure) => self.close_one(&id).and(Err(failure)),
            };
        }
        let added = disks.pop();
        drop(disks);
        added.map_or(Ok(()), |disk| disk.opened.close())?;
        let message = format!("the machine has a disk {id} already; `,id=NAME` gives this one another serial number");
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// Commands can work on them from here on: their threads are started.
    pub(super) fn listen(&self) -> Result<(), Failure> {
        self.disks()
            .iter_mut()
            .try_for_each(|disk| disk.opened.listen(&disk.file, &self.guest))
    }

    /// What the process of the machine opens of them, and beside them, while it runs.
    pub(super) fn reach(&self, reach: &mut Reach) -> Result<(), Failure> {
        for disk in &*self.disks() {
            reach::allow_disk(reach, &disk.file, &disk.paths()?, disk.read_only || disk.spec.snapshot);
        }
        Ok(())
    }

    /// Says in which slot a disk is that was added.
    pub(super) fn put(&self, id: &str, slot: usize) {
        if let Some(disk) = self.disks().iter_mut().find(|disk| disk.id == id) {
            disk.slot = slot;
        }
    }

    /// The slot of a disk.
    pub(super) fn slot(&self, id: &str) -> Result<usize, Failure> {
        let disks = self.disks();
        let slots: Vec<usize> = disks
            .iter()
            .filter(|disk| disk.id == id)
            .map(|disk| disk.slot)
            .collect();
        let message = match slots[..] {
            [slot] => return Ok(slot),
            [] => format!("the machine has no disk {id}; `vhd vm info` shows all"),
            _ => format!("the machine has several disks {id}; they were given to it without an id of their own"),
        };
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// Refuses a smaller size that was not meant, and a disk whose size cannot change.
    pub(super) fn require_growth(&self, id: &str, size: u64, shrink: bool) -> Result<(), Failure> {
        let disks = self.disks();
        let Some(disk) = disks.iter().find(|disk| disk.id == id) else {
            return Ok(());
        };
        let now = disk.opened.disk().size();
        let message = match &disk.opened {
            Opened::Disk(_) => format!(
                "the machine was given {} without `,resizable`; `vhd resize` makes an image larger that the machine writes to, \
                 if it has no parent and no children",
                disk.image
            ),
            Opened::Resizable(..) if size < now && !shrink => {
                format!("{} has {now} bytes, more than {size}; --shrink cuts it off", disk.image)
            }
            Opened::Resizable(..) => return Ok(()),
        };
        Err(Failure::new(Kind::MachineCannot, message))
    }

    /// Closes a disk that is the machine's no longer.
    pub(super) fn close_one(&self, id: &str) -> Result<(), Failure> {
        let mut disks = self.disks();
        let Some(at) = disks.iter().rposition(|disk| disk.id == id) else {
            return Ok(());
        };
        let disk = disks.remove(at);
        drop(disks);
        disk.opened.close().map_err(|failure| failure.about(disk.image))
    }

    /// Says that they are in slots that follow each other.
    pub(super) fn place(&self, first: usize) {
        let mut disks = self.disks();
        (first..)
            .zip(disks.iter_mut())
            .for_each(|(slot, disk)| disk.slot = slot);
    }

    /// There is a guest now, which is told of its disks.
    pub(super) fn belong_to(&self, handle: MachineHandle) {
        self.guest.is_there(handle);
    }

    /// The guest that has them, if there is one.
    pub(super) fn guest(&self) -> Guest {
        self.guest.clone()
    }

    /// Those whose states can be kept while they are in use.
    pub(super) fn parts(&self) -> Result<Vec<LivePart>, Failure> {
        let disks = self.disks();
        let parts = disks.iter().filter_map(|disk| disk.part().transpose());
        parts.collect()
    }

    /// Refuses if a state of the machine would lack something of its disks.
    pub(super) fn require_keepable(&self) -> Result<(), Failure> {
        self.disks().iter().try_for_each(OpenDisk::require_keepable)
    }

    /// The machine has ended: commands begin nothing on the disks any more, and what one has begun comes to a safe end.
    pub(super) fn stop(&self) {
        self.disks().iter_mut().for_each(|disk| disk.opened.stop());
        self.guest.is_gone();
    }

    /// What is to be known of them to open them again.
    pub(super) fn describe(&self) -> Result<Vec<SavedDisk>, Failure> {
        self.disks().iter().map(OpenDisk::describe).collect()
    }

    /// Refuses disks that are gone when the machine has ended.
    pub(super) fn require_lasting(&self) -> Result<(), Failure> {
        match self.disks().iter().find(|disk| disk.spec.snapshot) {
            None => Ok(()),
            Some(disk) => {
                let message = format!(
                    "what the guest wrote to {} is in a temporary layer that ends with the machine, so the machine cannot be saved",
                    disk.image
                );
                Err(Failure::new(Kind::MachineCannot, message))
            }
        }
    }

    /// The first, under its name.
    pub(super) fn first(&self) -> Option<(String, Disk)> {
        let disks = self.disks();
        let disk = disks.first()?;
        Some((disk.image.clone(), disk.opened.disk()))
    }

    /// What they are, in the guest's order.
    pub(super) fn info(&self) -> Vec<DiskInfo> {
        let info = |disk: &OpenDisk| DiskInfo {
            id: disk.id.clone(),
            image: disk.image.clone(),
            read_only: disk.read_only,
            size: disk.opened.disk().size(),
        };
        self.disks().iter().map(info).collect()
    }

    fn disks(&self) -> MutexGuard<'_, Vec<OpenDisk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes all of them; the first failure is told.
    pub(super) fn close(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        for disk in std::mem::take(&mut *self.disks()) {
            let closed = disk.opened.close().map_err(|failure| failure.about(disk.image));
            result = result.and(closed);
        }
        result
    }
}
