//! Adds disks to a machine that runs and removes them in another order, for `scripts/vm-test`:
//! `hotplug KERNEL INITRD ROUNDS`. The guest says `DISKS` and the serial numbers that it sees whenever they change, after
//! it has written the serial number to each new disk.

#[cfg(not(target_arch = "x86_64"))]
fn main() {}

#[cfg(target_arch = "x86_64")]
#[path = "../tests/common/ram.rs"]
mod ram;

#[cfg(target_arch = "x86_64")]
fn main() {
    guest::main();
}

#[cfg(target_arch = "x86_64")]
mod guest {
    use std::fs::File;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use hypervisor::{CpuModel, End, Machine, MachineConfig, MachineDisk, MachineHandle, MachineType, Sandbox};
    use vhd_block::Disk;

    use super::ram::Ram;

    /// Bytes of a disk.
    const SIZE: usize = 1 << 20;
    /// Disks beside the first.
    const ADDED: usize = 4;
    /// How long the guest may take for anything.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[derive(Clone, Default)]
    struct Console(Arc<Mutex<String>>);

    impl Write for Console {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Console {
        /// Waits until the guest sees exactly these disks; returns how long that took.
        fn await_disks(&self, names: &[String]) -> Duration {
            let mut names = names.to_vec();
            names.sort();
            let start = Instant::now();
            while start.elapsed() < PATIENCE {
                let said = self.0.lock().unwrap().clone();
                let last = said.lines().rev().find_map(|line| line.strip_prefix("DISKS"));
                let mut seen: Vec<&str> = last.unwrap_or_default().split_whitespace().collect();
                seen.sort_unstable();
                if seen == names {
                    return start.elapsed();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            panic!("the guest does not see {names:?}: {}", self.0.lock().unwrap());
        }
    }

    fn disk(name: &str) -> (MachineDisk, Disk) {
        let (disk, _) = Ram::disk(SIZE);
        let of_machine = MachineDisk {
            disk: disk.clone(),
            read_only: false,
            name: name.to_owned(),
            sandbox: Sandbox::On,
        };
        (of_machine, disk)
    }

    /// One round: all are added, written to by the guest, and removed, those in the middle first.
    fn round(machine: &MachineHandle, console: &Console, number: usize) {
        let mut names = vec!["first".to_owned()];
        let mut added = Vec::new();
        for count in 0..ADDED {
            let name = format!("r{number}d{count}");
            let (of_machine, disk) = disk(&name);
            added.push((machine.add_disk(of_machine).expect("a free slot"), name.clone(), disk));
            names.push(name);
        }
        let seen = console.await_disks(&names);
        println!("HOTPLUG {ADDED} disks seen after {} ms", seen.as_millis());
        for (_, name, disk) in &added {
            let mut bytes = vec![0; name.len()];
            disk.read_at(&mut bytes, 0).expect("a read of memory");
            assert_eq!(bytes, name.as_bytes(), "what the guest has written");
        }
        added.rotate_left(ADDED / 2);
        for (slot, name, _) in added {
            let start = Instant::now();
            assert!(!machine.remove_disk(slot).expect("a disk in the slot"));
            while !machine.remove_disk(slot).expect("a disk in the slot") {
                assert!(start.elapsed() < PATIENCE, "the guest does not let go of {name}");
                std::thread::sleep(Duration::from_millis(20));
            }
            let released = start.elapsed();
            assert!(machine.remove_disk(slot).is_err(), "there is no disk any more");
            names.retain(|other| *other != name);
            console.await_disks(&names);
            println!("HOTPLUG {name} released after {} ms", released.as_millis());
        }
    }

    pub(super) fn main() {
        let args: Vec<String> = std::env::args().collect();
        let [_, kernel, initrd, rounds] = args.as_slice() else {
            panic!("usage: hotplug KERNEL INITRD ROUNDS");
        };
        let console = Console::default();
        let (first, _) = disk("first");
        let machine = Machine::new(MachineConfig {
            machine_type: MachineType::Vhd1,
            cpus: 1,
            cpu: CpuModel::Host,
            memory: 192 << 20,
            kernel: File::open(kernel).expect("a kernel"),
            initrd: Some(File::open(initrd).expect("an initramfs")),
            command_line: "quiet".to_owned(),
            append: String::new(),
            disks: vec![first],
            rng: false,
            console: Box::new(console.clone()),
            sandbox: Sandbox::On,
        });
        let machine = machine.expect("a machine");
        let handle = machine.handle();
        let running = std::thread::spawn(move || machine.run());
        console.await_disks(&["first".to_owned()]);
        for number in 0..rounds.parse().expect("a number of rounds") {
            round(&handle, &console, number);
        }
        handle.input(b"end\n");
        let end = running.join().expect("no panic").expect("an end");
        assert_eq!(end, End::PowerOff, "{}", console.0.lock().unwrap());
        assert!(handle.remove_disk(1).is_err(), "the machine has ended");
        let said = console.0.lock().unwrap();
        assert!(!said.contains("COMPLAINS"), "{said}");
        println!("HOTPLUG done");
    }
}
