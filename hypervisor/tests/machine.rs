//! Machines on the KVM of this host, with guests that are assembled here.
#![cfg(target_arch = "x86_64")]

use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hypervisor::{
    CpuModel, End, Error, MAX_DISKS, MAX_MEMORY, MIN_MEMORY, Machine, MachineConfig, MachineDisk, MachineType, Sandbox,
};

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "common/payload.rs"]
mod payload;
#[path = "common/ram.rs"]
mod ram;

use payload::{FLUSH, Payload, READ, STORE, data, has_kvm};
use ram::Ram;

/// What a guest wrote to its console.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
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

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn config(kernel: &[u8], console: &Console) -> MachineConfig {
    MachineConfig {
        machine_type: MachineType::Mmio,
        cpus: 1,
        cpu: CpuModel::Host,
        memory: MIN_MEMORY,
        kernel: file(kernel),
        initrd: None,
        command_line: String::new(),
        append: String::new(),
        disks: Vec::new(),
        rng: false,
        console: Box::new(console.clone()),
        sandbox: Sandbox::On,
    }
}

/// Runs a guest with these disks; returns how it ended and what it wrote.
fn run(guest: &Payload, disks: Vec<MachineDisk>) -> (End, String) {
    run_in(MachineType::Mmio, guest, disks)
}

fn run_in(machine_type: MachineType, guest: &Payload, disks: Vec<MachineDisk>) -> (End, String) {
    let console = Console::default();
    let config = MachineConfig {
        machine_type,
        disks,
        ..config(&guest.elf(), &console)
    };
    let end = Machine::new(config).unwrap().run().unwrap();
    (end, console.text())
}

fn disk(ram: &vhd_block::Disk, read_only: bool) -> MachineDisk {
    MachineDisk {
        disk: ram.clone(),
        read_only,
        name: "test".into(),
        sandbox: Sandbox::On,
    }
}

#[test]
fn each_end_is_told_apart() {
    if !has_kvm("how guests end") {
        return;
    }
    let hello = Payload::new().print("hello\n");
    let cases = [
        (hello.clone().power_off(), End::PowerOff),
        (hello.clone().halt(), End::PowerOff),
        (hello.clone().out(0x64, 0xfe).spin(), End::Reset),
        (hello.clone().out(0xcf9, 6).spin(), End::Reset),
        (hello.clone().triple_fault(), End::Reset),
        (hello.clone().out(0x505, 1).spin(), End::Panic),
    ];
    for (guest, end) in cases {
        assert_eq!(run(&guest, vec![]), (end, "hello\n".to_owned()));
    }
    let text = "Kernel panic - not syncing: no init\n";
    let panics = Payload::new().print(text).out(0x64, 0xfe).spin();
    assert_eq!(run(&panics, vec![]), (End::Panic, text.to_owned()));
}

#[test]
fn a_bzimage_is_entered_with_64_bits() {
    if !has_kvm("a bzImage") {
        return;
    }
    let console = Console::default();
    let guest = Payload::new().print("unpacked").power_off();
    let machine = Machine::new(config(&guest.bzimage(), &console)).unwrap();
    assert_eq!(machine.run().unwrap(), End::PowerOff);
    assert_eq!(console.text(), "unpacked");
}

#[test]
fn a_guest_reads_writes_and_flushes_its_disk() {
    if !has_kvm("virtio-blk in a guest") {
        return;
    }
    for (machine_type, guest) in [
        (MachineType::Mmio, Payload::new()),
        (MachineType::Vhd1, Payload::on_pci()),
    ] {
        let (device, ram) = Ram::disk(1 << 20);
        let (other, _) = Ram::disk(1 << 20);
        device.write_at(b"written by the host", 3 * 512).unwrap();
        let guest = guest
            .start_disk(1)
            .request(1, READ, 3, 512)
            .print_status(1)
            .print_memory(data(1), 19)
            .request(1, STORE, 5, 512)
            .print_status(1)
            .request(1, FLUSH, 0, 0)
            .print_status(1)
            .power_off();
        let ended = run_in(machine_type, &guest, vec![disk(&other, false), disk(&device, false)]);
        let said = "0written by the host00".to_owned();
        assert_eq!(ended, (End::PowerOff, said), "{machine_type:?}");
        let mut copy = [0; 19];
        device.read_at(&mut copy, 5 * 512).unwrap();
        assert_eq!(&copy, b"written by the host");
        // By the guest, and at the end of the machine.
        assert_eq!(ram.flushes.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn disks_are_apart_and_failures_reach_the_guest() {
    if !has_kvm("several disks in a guest") {
        return;
    }
    let (first, _) = Ram::disk(1 << 20);
    let (second, broken) = Ram::disk(1 << 20);
    let (third, _) = Ram::disk(1 << 20);
    let guest = Payload::new()
        .start_disk(0)
        .start_disk(1)
        .start_disk(2)
        .store(data(2), u32::from_le_bytes(*b"disk"))
        .request(0, STORE, 0, 512)
        .print_status(0)
        .request(1, FLUSH, 0, 0)
        .print_status(1)
        .request(2, STORE, 2, 512)
        .print_status(2)
        .request(2, READ, 2048, 512)
        .print_status(2)
        .power_off();
    broken.fails.store(true, Ordering::Relaxed);
    let console = Console::default();
    let config = MachineConfig {
        disks: vec![disk(&first, true), disk(&second, false), disk(&third, false)],
        ..config(&guest.elf(), &console)
    };
    let ended = Machine::new(config).unwrap().run();
    assert_eq!(console.text(), "1101");
    // The second disk cannot be flushed at the end either, and that is told.
    assert!(matches!(ended, Err(Error::Disk(_))), "{ended:?}");
    let mut stored = [0; 4];
    third.read_at(&mut stored, 1024).unwrap();
    assert_eq!(&stored, b"disk");
}

#[test]
fn a_second_processor_is_started_by_the_first() {
    if !has_kvm("two processors") {
        return;
    }
    // mov dx, COM1; mov al, 'A'; out dx, al; mov word [0x4000], 1; cli; hlt; with 16 bits, at 0x3000.
    let code = [
        0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, 0xc7, 0x06, 0x00, 0x40, 0x01, 0x00, 0xfa, 0xf4, 0xeb, 0xfd,
    ];
    let (words, _) = code.as_chunks::<4>();
    let guest = (0x3000..)
        .step_by(4)
        .zip(words)
        .fold(Payload::new(), |guest, (at, word)| {
            guest.store(at, u32::from_le_bytes(*word))
        });
    // INIT and start-up to processor 1, through the local APIC.
    let command = [(0x310, 1 << 24), (0x300, 0x4500), (0x310, 1 << 24), (0x300, 0x4603)];
    let guest = guest.device(0xfee0_0000, &command).wait_for_word(0x4000, 1);
    let guest = guest.print("B").power_off();
    let console = Console::default();
    let config = MachineConfig {
        cpus: 2,
        cpu: CpuModel::Host,
        ..config(&guest.elf(), &console)
    };
    assert_eq!(Machine::new(config).unwrap().run().unwrap(), End::PowerOff);
    assert_eq!(console.text(), "AB");
}

#[test]
fn a_disk_is_added_and_removed_while_the_guest_runs() {
    if !has_kvm("hot-plug") {
        return;
    }
    let (device, ram) = Ram::disk(1 << 20);
    // Registers of hot-plug: what is new, what is to be released, what is released.
    let (added, leaving, eject) = (0x620, 0x624, 0x628);
    let guest = Payload::on_pci()
        .wait_for_port(added)
        .place_disk(0)
        .start_disk(0)
        .store(data(0), u32::from_le_bytes(*b"disk"))
        .request(0, STORE, 7, 512)
        .print_status(0)
        .wait_for_port(leaving)
        .out32(eject, 1 << 1)
        .print("released")
        .echo()
        .power_off();
    let console = Console::default();
    let config = MachineConfig {
        machine_type: MachineType::Vhd1,
        ..config(&guest.elf(), &console)
    };
    let machine = Machine::new(config).unwrap();
    let handle = machine.handle();
    let running = thread::spawn(move || machine.run());
    assert!(matches!(handle.remove_disk(1), Err(Error::NoDisk { slot: 1 })));
    let slot = handle.add_disk(disk(&device, false)).unwrap();
    assert_eq!(slot, 1);
    while console.text() != "0" {
        thread::sleep(Duration::from_millis(1));
    }
    let mut stored = [0; 4];
    device.read_at(&mut stored, 7 * 512).unwrap();
    assert_eq!(&stored, b"disk");
    // One that cannot be flushed stays, to be tried again.
    ram.fails.store(true, Ordering::Relaxed);
    while !matches!(handle.remove_disk(slot), Err(Error::Disk(_))) {
        thread::sleep(Duration::from_millis(1));
    }
    ram.fails.store(false, Ordering::Relaxed);
    assert!(handle.remove_disk(slot).unwrap());
    assert!(handle.remove_disk(slot).is_err());
    // The slot that was emptied is the last to be filled again; more disks than a machine has are refused.
    for number in 0..MAX_DISKS {
        assert_eq!(handle.add_disk(disk(&device, true)).unwrap(), number + 2);
    }
    let refused = handle.add_disk(disk(&device, true));
    assert!(
        matches!(refused, Err(Error::Disks { count }) if count == MAX_DISKS + 1),
        "{refused:?}"
    );
    handle.input(b"x");
    assert_eq!(running.join().unwrap().unwrap(), End::PowerOff);
    assert_eq!(console.text(), "0releasedx");
    assert!(matches!(handle.add_disk(disk(&device, false)), Err(Error::Ended)));
}

#[test]
fn a_disk_grows_while_the_guest_runs() {
    if !has_kvm("a disk that grows") {
        return;
    }
    let (device, ram) = Ram::disk(1 << 20);
    let guest = Payload::on_pci()
        .start_disk(0)
        .request(0, READ, 4000, 512)
        .print_status(0)
        .wait_for_capacity(0, 4096)
        .request(0, STORE, 4000, 512)
        .print_status(0)
        .power_off();
    let console = Console::default();
    let config = MachineConfig {
        machine_type: MachineType::Vhd1,
        disks: vec![disk(&device, false)],
        ..config(&guest.elf(), &console)
    };
    let machine = Machine::new(config).unwrap();
    let handle = machine.handle();
    let running = thread::spawn(move || machine.run());
    until(&console, |bytes| bytes == b"1");
    assert!(matches!(handle.resize_disk(2, 2 << 20), Err(Error::NoDisk { slot: 2 })));
    ram.fails.store(true, Ordering::Relaxed);
    assert!(matches!(handle.resize_disk(1, 2 << 20), Err(Error::Disk(_))));
    ram.fails.store(false, Ordering::Relaxed);
    handle.resize_disk(1, 2 << 20).unwrap();
    assert_eq!(running.join().unwrap().unwrap(), End::PowerOff);
    assert_eq!(console.text(), "10");
}

#[test]
fn a_machine_without_pci_has_no_hot_plug() {
    if !has_kvm("hot-plug without PCI") {
        return;
    }
    let machine = Machine::new(config(&Payload::new().power_off().elf(), &Console::default())).unwrap();
    let (device, _) = Ram::disk(4096);
    assert!(matches!(
        machine.handle().add_disk(disk(&device, false)),
        Err(Error::NoHotPlug)
    ));
    assert!(matches!(machine.handle().remove_disk(1), Err(Error::NoHotPlug)));
    assert!(matches!(machine.handle().resize_disk(1, 4096), Err(Error::NoHotPlug)));
}

#[test]
fn input_reaches_the_guest() {
    if !has_kvm("input of a guest") {
        return;
    }
    let console = Console::default();
    let guest = (0..5).fold(Payload::new(), |guest, _| guest.echo()).power_off();
    let machine = Machine::new(config(&guest.elf(), &console)).unwrap();
    machine.handle().input(b"typed");
    assert_eq!(machine.run().unwrap(), End::PowerOff);
    assert_eq!(console.text(), "typed");
}

#[test]
fn a_machine_is_stopped_from_outside() {
    if !has_kvm("stopping a guest") {
        return;
    }
    let machine = Machine::new(config(&Payload::new().spin().elf(), &Console::default())).unwrap();
    let handle = machine.handle();
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        handle.stop();
    });
    assert_eq!(machine.run().unwrap(), End::Stopped);
    stopper.join().unwrap();
}

/// Waits until something holds of what a guest wrote.
fn until(console: &Console, holds: impl Fn(&[u8]) -> bool) {
    while !holds(&console.0.lock().unwrap()) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_is_held_and_goes_on() {
    if !has_kvm("pausing a guest") {
        return;
    }
    for (machine_type, guest) in [
        (MachineType::Mmio, Payload::new()),
        (MachineType::Vhd1, Payload::on_pci()),
    ] {
        let (device, ram) = Ram::disk(8 << 20);
        let console = Console::default();
        let guest = guest.start_disk(0).count_on_disk(0, 1);
        let config = MachineConfig {
            machine_type,
            disks: vec![disk(&device, false)],
            ..config(&guest.elf(), &console)
        };
        let machine = Machine::new(config).unwrap();
        let handle = machine.handle();
        let running = thread::spawn(move || machine.run());
        let written = || console.0.lock().unwrap().len();
        for round in 1..=20 {
            let before = written();
            until(&console, |bytes| bytes.len() > before);
            assert!(!handle.is_paused().unwrap());
            handle.pause().unwrap();
            handle.pause().unwrap();
            assert!(handle.is_paused().unwrap());
            let held = (written(), ram.flushes.load(Ordering::Relaxed));
            thread::sleep(Duration::from_millis(5));
            assert_eq!((written(), ram.flushes.load(Ordering::Relaxed)), held, "round {round}");
            handle.resume().unwrap();
        }
        // One that is held can be ended too.
        handle.pause().unwrap();
        handle.stop();
        assert_eq!(running.join().unwrap().unwrap(), End::Stopped);
        assert!(matches!(handle.pause(), Err(Error::Ended)));
        assert!(matches!(handle.resume(), Err(Error::Ended)));
        // No number is missing or twice.
        for (number, line) in (1_u32..).zip(console.0.lock().unwrap().chunks_exact(5)) {
            assert_eq!(line[..4], number.to_le_bytes());
        }
    }
}

#[test]
fn a_power_button_is_pressed() {
    if !has_kvm("the power button") {
        return;
    }
    let console = Console::default();
    let guest = Payload::on_pci().print("up").wait_for_port(0x62c).power_off();
    let config = MachineConfig {
        machine_type: MachineType::Vhd1,
        ..config(&guest.elf(), &console)
    };
    let machine = Machine::new(config).unwrap();
    let handle = machine.handle();
    let running = thread::spawn(move || machine.run());
    until(&console, |bytes| bytes == b"up");
    handle.press_power_button().unwrap();
    assert_eq!(running.join().unwrap().unwrap(), End::PowerOff);
    let machine = Machine::new(self::config(&guest.elf(), &console)).unwrap();
    assert!(matches!(
        machine.handle().press_power_button(),
        Err(Error::NoPowerButton)
    ));
}

fn refused(config: MachineConfig) -> Error {
    match Machine::new(config) {
        Ok(_) => panic!("there is such a machine"),
        Err(error) => error,
    }
}

#[test]
fn what_is_no_kernel_is_refused_with_the_reason() {
    if !has_kvm("files that are no kernels") {
        return;
    }
    let elf = Payload::new().spin().elf();
    let changed = |at: usize, bytes: &[u8]| {
        let mut elf = elf.clone();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        elf
    };
    let old = {
        let mut bzimage = Payload::new().spin().bzimage();
        bzimage[0x236] = 0;
        bzimage
    };
    let longer = {
        let mut bzimage = Payload::new().spin().bzimage();
        bzimage[0x1f4..0x1f8].copy_from_slice(&0x1000_u32.to_le_bytes());
        bzimage
    };
    let cases: &[(&[u8], &str)] = &[
        (b"", "those of no kernel"),
        (b"#!/bin/sh\n", "those of no kernel"),
        (b"\x28\xb5\x2f\xfd rest", "zstd"),
        (b"\x1f\x8b rest", "gzip"),
        (&elf[..40], "cut off"),
        (&elf[..100], "program header 0"),
        (&elf[..0x1001], "cut off: part 0"),
        (&changed(4, &[1]), "another processor"),
        (&changed(18, &[0xb7]), "another processor"),
        (&changed(54, &[57]), "57 bytes"),
        (&changed(56, &[0]), "nothing of it"),
        (&changed(64 + 24, &[0, 0, 0]), "below 0x100000"),
        (&old, "no 64-bit entry"),
        (&Payload::new().spin().bzimage()[..0x300], "cut off"),
        (&longer, "0x202 of 0x10000"),
    ];
    for (kernel, reason) in cases {
        let error = refused(config(kernel, &Console::default()));
        let is_right = matches!(&error, Error::NotAKernel { reason: found } if found.contains(reason));
        assert!(is_right, "{reason}: {error}");
    }
    let mut high = elf.clone();
    high[64 + 24..64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = refused(config(&high, &Console::default()));
    assert!(matches!(error, Error::TooLittleMemory { .. }), "{error}");
}

#[test]
fn impossible_machines_are_refused() {
    let elf = Payload::new().spin().elf();
    let console = Console::default();
    for memory in [0, MIN_MEMORY - 4096, MIN_MEMORY + 1, MAX_MEMORY + 4096] {
        let error = refused(MachineConfig {
            memory,
            ..config(&elf, &console)
        });
        assert!(matches!(error, Error::MemorySize { size } if size == memory), "{error}");
    }
    for cpus in [0, 9] {
        let error = refused(MachineConfig {
            cpus,
            cpu: CpuModel::Host,
            ..config(&elf, &console)
        });
        assert!(matches!(error, Error::Cpus { count } if count == cpus), "{error}");
    }
    let (device, _) = Ram::disk(4096);
    let error = refused(MachineConfig {
        disks: (0..9).map(|_| disk(&device, false)).collect(),
        ..config(&elf, &console)
    });
    assert!(matches!(error, Error::Disks { count: 9 }), "{error}");
    if !has_kvm("an initramfs that does not fit") {
        return;
    }
    let large = tempfile::tempfile().unwrap();
    large.set_len(MIN_MEMORY).unwrap();
    let error = refused(MachineConfig {
        initrd: Some(large),
        ..config(&elf, &console)
    });
    assert!(matches!(error, Error::TooLittleMemory { .. }), "{error}");
    let error = refused(MachineConfig {
        append: "a".repeat(2048),
        ..config(&elf, &console)
    });
    assert!(matches!(error, Error::CommandLine { .. }), "{error}");
}
