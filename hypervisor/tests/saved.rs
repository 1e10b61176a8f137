//! Machines that are saved and go on elsewhere, with guests that are assembled here.
#![cfg(target_arch = "x86_64")]

use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypervisor::{
    CpuModel, End, Error, MIN_MEMORY, Machine, MachineConfig, MachineDisk, MachineHandle, MachineType, Sandbox, Saved,
    StateError, StateFile,
};

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "common/payload.rs"]
mod payload;
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "common/ram.rs"]
mod ram;

use payload::{Payload, has_kvm};
use ram::Ram;
use vhd_block::Disk;

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn wait_for(&self, len: usize) {
        while self.len() < len {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn disk(disk: &Disk) -> MachineDisk {
    MachineDisk {
        disk: disk.clone(),
        read_only: false,
        name: "test".into(),
        sandbox: Sandbox::On,
    }
}

fn machine(machine_type: MachineType, guest: &Payload, disks: &[&Disk], console: &Console) -> Machine {
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&guest.elf()).unwrap();
    kernel.rewind().unwrap();
    let config = MachineConfig {
        machine_type,
        cpus: 1,
        cpu: CpuModel::Host,
        memory: MIN_MEMORY,
        kernel,
        initrd: None,
        command_line: String::new(),
        append: String::new(),
        disks: disks.iter().map(|it| disk(it)).collect(),
        rng: false,
        console: Box::new(console.clone()),
        sandbox: Sandbox::On,
    };
    Machine::new(config).unwrap()
}

fn start(machine: Machine) -> (MachineHandle, JoinHandle<Result<End, Error>>) {
    let handle = machine.handle();
    (handle, thread::spawn(move || machine.run()))
}

/// Saves a machine that runs.
fn save(handle: &MachineHandle, running: JoinHandle<Result<End, Error>>) -> File {
    let file = tempfile::tempfile().unwrap();
    let taken = Arc::new(Mutex::new(None::<Saved>));
    let of_commit = Arc::clone(&taken);
    let commit = move |saved| {
        *of_commit.lock().unwrap() = Some(saved);
        Ok(())
    };
    handle.save(file.try_clone().unwrap(), commit).unwrap();
    assert_eq!(running.join().unwrap().unwrap(), End::Saved);
    taken.lock().unwrap().take().unwrap().complete(b"owner").unwrap();
    file
}

fn restore(file: &File, disks: &[(usize, &Disk)], console: &Console) -> Result<Machine, Error> {
    let state = StateFile::open(file.try_clone().unwrap())?;
    assert_eq!(state.owner().unwrap(), b"owner");
    let disks = disks.iter().map(|(slot, it)| (*slot, disk(it))).collect();
    Machine::restore(&state, disks, Box::new(console.clone()), Sandbox::On)
}

/// A guest with a disk, by its type; where the disk is.
fn kinds() -> [(MachineType, Payload, usize); 2] {
    [
        (MachineType::Mmio, Payload::new(), 0),
        (MachineType::Vhd1, Payload::on_pci(), 1),
    ]
}

/// How often a machine is saved and restored.
fn rounds() -> usize {
    let rounds = std::env::var("VHD_SAVE_ROUNDS").ok();
    rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(10)
}

#[test]
fn a_guest_that_writes_goes_on_where_it_was_saved() {
    if !has_kvm("saving and restoring a machine") {
        return;
    }
    for (machine_type, guest, slot) in kinds() {
        let console = Console::default();
        let (ram, _) = Ram::disk(256 << 20);
        let guest = guest.start_disk(0).count_on_disk(0, 1);
        let (mut handle, mut running) = start(machine(machine_type, &guest, &[&ram], &console));
        for round in 0..rounds() {
            // At another moment each time.
            console.wait_for(console.len() + 10 + round % 7);
            let file = save(&handle, running);
            let held = console.len();
            let machine = restore(&file, &[(slot, &ram)], &console).unwrap();
            assert_eq!(console.len(), held, "{machine_type:?}");
            (handle, running) = start(machine);
        }
        console.wait_for(console.len() + 50);
        handle.stop();
        assert_eq!(running.join().unwrap().unwrap(), End::Stopped);
        let said = console.0.lock().unwrap().clone();
        for (number, line) in (1_u32..).zip(said.chunks_exact(5)) {
            assert_eq!(line[..4], number.to_le_bytes(), "{machine_type:?}");
            let mut stored = [0; 4];
            ram.read_at(&mut stored, u64::from(number) * 4096).unwrap();
            assert_eq!(stored, number.to_le_bytes(), "{machine_type:?}");
        }
    }
}

#[test]
fn a_machine_that_cannot_be_saved_goes_on() {
    if !has_kvm("machines that cannot be saved") {
        return;
    }
    let console = Console::default();
    let (ram, broken) = Ram::disk(64 << 20);
    let guest = Payload::new().start_disk(0).print("0").count_on_disk(0, 1);
    let (handle, running) = start(machine(MachineType::Mmio, &guest, &[&ram], &console));
    console.wait_for(20);
    // The file cannot be written; it cannot get its name; a disk cannot be flushed.
    let read_only = File::open("/dev/null").unwrap();
    assert!(matches!(
        handle.save(read_only, |_| Ok(())),
        Err(Error::State(StateError::Io { .. }))
    ));
    let named = handle.save(tempfile::tempfile().unwrap(), |_| Err(io::Error::other("taken")));
    assert!(matches!(named, Err(Error::Host { .. })), "{named:?}");
    console.wait_for(console.len() + 20);
    handle.pause().unwrap();
    broken.fails.store(true, std::sync::atomic::Ordering::Relaxed);
    let flushed = handle.save(tempfile::tempfile().unwrap(), |_| Ok(()));
    assert!(matches!(flushed, Err(Error::Disk(_))), "{flushed:?}");
    broken.fails.store(false, std::sync::atomic::Ordering::Relaxed);
    // One that was held stays so.
    assert!(handle.is_paused().unwrap());
    handle.resume().unwrap();
    console.wait_for(console.len() + 20);
    handle.stop();
    running.join().unwrap().unwrap();
}

#[test]
fn two_files_of_a_machine_that_did_not_run_are_equal() {
    if !has_kvm("saving a machine twice") {
        return;
    }
    for (machine_type, guest, slot) in kinds() {
        let console = Console::default();
        let (ram, _) = Ram::disk(16 << 20);
        let guest = guest.start_disk(0).count_on_disk(0, 1);
        let (handle, running) = start(machine(machine_type, &guest, &[&ram], &console));
        console.wait_for(50);
        let first = save(&handle, running);
        let machine = restore(&first, &[(slot, &ram)], &console).unwrap();
        // It is saved before the guest is let go.
        let handle = machine.handle();
        let saving = thread::spawn(move || {
            let file = tempfile::tempfile().unwrap();
            let taken = Arc::new(Mutex::new(None::<Saved>));
            let of_commit = Arc::clone(&taken);
            let commit = move |saved| {
                *of_commit.lock().unwrap() = Some(saved);
                Ok(())
            };
            handle.save(file.try_clone().unwrap(), commit).unwrap();
            taken.lock().unwrap().take().unwrap().complete(b"owner").unwrap();
            file
        });
        assert_eq!(machine.run_held().unwrap(), End::Saved);
        let second = saving.join().unwrap();
        let content = |file: &File| {
            let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let (first, second) = (content(&first), content(&second));
        assert_eq!(first.len(), second.len());
        // Memory is equal to the byte.
        let memory = first.len() - usize::try_from(MIN_MEMORY).unwrap();
        assert!(first[memory..] == second[memory..], "{machine_type:?}");
    }
}

#[test]
fn a_file_that_is_not_whole_is_refused_with_the_reason() {
    if !has_kvm("files of machines that are not whole") {
        return;
    }
    let console = Console::default();
    let (ram, _) = Ram::disk(16 << 20);
    let guest = Payload::on_pci().start_disk(0).count_on_disk(0, 1);
    let (handle, running) = start(machine(MachineType::Vhd1, &guest, &[&ram], &console));
    console.wait_for(50);
    let file = save(&handle, running);
    let len = file.metadata().unwrap().len();
    let mut preface = [0; 24];
    file.read_exact_at(&mut preface, 0).unwrap();
    let state = u64::from_le_bytes(preface[16..].try_into().unwrap());
    let refused = || restore(&file, &[(1, &ram)], &Console::default()).err().unwrap();

    // Any byte of the state, and of the first megabytes of memory that are used.
    let mut positions: Vec<u64> = (0..state).step_by(97).collect();
    positions.extend([
        len - MIN_MEMORY + 0x500,
        len - MIN_MEMORY + 0x10_0001,
        len - MIN_MEMORY + 0x20_3000,
    ]);
    for at in positions {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let error = refused();
        assert!(matches!(error, Error::State(_)), "{at}: {error}");
        file.write_all_at(&byte, at).unwrap();
    }
    file.set_len(len - 1).unwrap();
    assert!(matches!(refused(), Error::State(StateError::Truncated { .. })));
    file.set_len(100).unwrap();
    assert!(matches!(refused(), Error::State(StateError::Truncated { .. })));
    file.set_len(0).unwrap();
    assert!(matches!(refused(), Error::State(StateError::NotAState)));
    file.set_len(len).unwrap();
    assert!(matches!(refused(), Error::State(StateError::Unfinished)));
}

#[test]
fn disks_that_are_not_there_are_refused() {
    if !has_kvm("disks of saved machines") {
        return;
    }
    let console = Console::default();
    let (first, second) = (Ram::disk(16 << 20).0, Ram::disk(16 << 20).0);
    let guest = Payload::on_pci().start_disk(1).print("up").spin();
    let (handle, running) = start(machine(MachineType::Vhd1, &guest, &[&first, &second], &console));
    console.wait_for(2);
    let file = save(&handle, running);
    let state = StateFile::open(file.try_clone().unwrap()).unwrap();
    assert_eq!(
        (state.slots(), state.cpus(), state.memory()),
        (vec![1, 2], 1, MIN_MEMORY)
    );
    for disks in [
        &[][..],
        &[(1, &first)],
        &[(1, &first), (3, &second)],
        &[(2, &second), (1, &first)],
    ] {
        let error = restore(&file, disks, &console).err().unwrap();
        assert!(matches!(error, Error::State(StateError::Disks { .. })), "{error}");
    }
    restore(&file, &[(1, &first), (2, &second)], &console).unwrap();
}

/// Writes the golden file of a new version, where the environment names one.
#[test]
fn golden() {
    let Some(path) = std::env::var_os("VHD_GOLDEN") else {
        return;
    };
    let console = Console::default();
    let (first, second) = (Ram::disk(16 << 20).0, Ram::disk(16 << 20).0);
    let guest = Payload::on_pci().start_disk(0).count_on_disk(0, 1);
    let (handle, running) = start(machine(MachineType::Vhd1, &guest, &[&first, &second], &console));
    handle.input(b"typed");
    console.wait_for(50);
    let file = save(&handle, running);
    let mut preface = [0; 24];
    file.read_exact_at(&mut preface, 0).unwrap();
    let mut state = vec![0; usize::try_from(u64::from_le_bytes(preface[16..].try_into().unwrap())).unwrap()];
    file.read_exact_at(&mut state, 0).unwrap();
    std::fs::write(path, state).unwrap();
}
