//! Threads of a machine that do what they may not end their process: this test runs itself again for each try.
#![cfg(target_arch = "x86_64")]

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Seek as _, Write};
use std::net::TcpStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Output};

use hypervisor::{Access, CpuModel, End, MIN_MEMORY, Machine, MachineConfig, MachineDisk, MachineType, Reach, Sandbox};
use vhd_block::{BlockDevice, ByteRange, DeviceError, DeviceInfo, Disk, ExtentVisitor, ZeroOptions};

#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "common/payload.rs"]
mod payload;
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "common/ram.rs"]
mod ram;

use payload::{Payload, READ, STORE, has_kvm};
use ram::Ram;

/// What a thread is told to do, which thread, and under which rules.
const DEED: &str = "VHD_TEST_DEED";
const THREAD: &str = "VHD_TEST_THREAD";
const RULES: &str = "VHD_TEST_RULES";

/// Does it.
fn deed() {
    match std::env::var(DEED).expect("it is told what to do").as_str() {
        "nothing" => {}
        "open" => drop(File::open("/etc/passwd")),
        // On success it does not return.
        "exec" => drop(Command::new("/bin/true").exec()),
        "open outside" => {
            let opened = File::open("/etc/passwd");
            let refused = opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            println!("{}", if refused { "refused" } else { "opened" });
        }
        "connect" => drop(TcpStream::connect("127.0.0.1:9")),
        "ptrace" => {
            // SAFETY: there is no process 0 to attach to: where it is allowed, it fails and changes nothing.
            let _ = unsafe { libc::ptrace(libc::PTRACE_ATTACH, 0, 0, 0) };
        }
        "code" => {
            let (read, write, code) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: new memory at an address that the kernel chooses; nothing is done with it.
            let _ = unsafe { libc::mmap(std::ptr::null_mut(), 4096, read | write | code, flags, -1, 0) };
        }
        other => panic!("no such deed: {other}"),
    }
}

/// A console whose writer does it: on the thread of a processor.
struct Doer;

impl Write for Doer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        deed();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that does it when it is read: on its own thread.
struct DoingDisk(std::sync::Arc<Ram>);

impl BlockDevice for DoingDisk {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        deed();
        self.0.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        self.0.write_vectored_at(bufs, offset, fua)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush()
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.0.write_zeroes(range, options)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.0.discard(range)
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.0.extents(range, visitor)
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.0.resize(size)
    }
}

fn machine(guest: &Payload, console: Box<dyn Write + Send>, disk: Disk, sandbox: Sandbox) -> Machine {
    Machine::new(config(guest, console, disk, sandbox)).unwrap()
}

fn config(guest: &Payload, console: Box<dyn Write + Send>, disk: Disk, sandbox: Sandbox) -> MachineConfig {
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&guest.elf()).unwrap();
    kernel.rewind().unwrap();
    let disk = MachineDisk {
        disk,
        read_only: false,
        name: "test".into(),
        sandbox,
    };
    MachineConfig {
        machine_type: MachineType::Mmio,
        cpus: 1,
        cpu: CpuModel::Host,
        rng: false,
        memory: MIN_MEMORY,
        kernel,
        initrd: None,
        command_line: String::new(),
        append: String::new(),
        disks: vec![disk],
        console,
        sandbox,
    }
}

/// What a machine with its disks in a directory reaches.
fn reach(inside: &Path) -> Reach {
    let mut reach = Reach::default();
    reach.allow(inside, Access::Change);
    reach.allow("/dev/kvm", Access::Use);
    reach.allow(std::env::temp_dir(), Access::Read);
    reach
}

/// Files come and go beside the disks, and nowhere else; no descriptor is lost that was there.
fn keeps_to_its_directory(inside: &Path) {
    let (one, other) = (inside.join("one"), inside.join("other"));
    fs::write(&one, "1").unwrap();
    fs::rename(&one, &other).unwrap();
    fs::create_dir(&one).unwrap();
    fs::rename(&other, one.join("deep")).unwrap();
    let outside = std::env::temp_dir().join(format!("vhd-outside-{}", std::process::id()));
    let refused = [
        fs::write(&outside, "1"),
        fs::create_dir(&outside),
        fs::rename(one.join("deep"), &outside),
        fs::hard_link(one.join("deep"), &outside),
        std::os::unix::net::UnixListener::bind(&outside).map(drop),
        std::os::unix::fs::symlink("/etc", &outside),
        fs::read_dir("/etc").map(drop),
        std::net::TcpListener::bind("127.0.0.1:0").map(drop),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        let error = refused.expect_err(&format!("deed {number} is refused"));
        // A rename or link to where less is allowed is said to be one to another device.
        let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::CrossesDevices];
        assert!(kinds.contains(&error.kind()), "deed {number}: {error}");
    }
    fs::remove_file(one.join("deep")).unwrap();
    fs::remove_dir(&one).unwrap();
}

/// The process that is told to do it; does nothing in an ordinary run of the tests.
#[test]
fn told() {
    let Ok(thread) = std::env::var(THREAD) else {
        return;
    };
    let sandbox = match std::env::var(RULES).unwrap().as_str() {
        "on" => Sandbox::On,
        "log" => Sandbox::Log,
        _ => Sandbox::Off,
    };
    let (disk, ram) = Ram::disk(1 << 20);
    match thread.as_str() {
        "processor" => {
            let machine = machine(&Payload::new().print("x").power_off(), Box::new(Doer), disk, sandbox);
            assert_eq!(machine.run().unwrap(), End::PowerOff);
        }
        "disk" => {
            let guest = Payload::new().start_disk(0).request(0, READ, 0, 512).power_off();
            let disk = Disk::new(std::sync::Arc::new(DoingDisk(ram)) as _);
            let machine = machine(&guest, Box::new(io::sink()), disk, sandbox);
            assert_eq!(machine.run().unwrap(), End::PowerOff);
        }
        // As the process of a machine does it: seccomp leaves files to this thread.
        "confined disk" => {
            let inside = tempfile::tempdir().unwrap();
            let guest = Payload::new().start_disk(0).request(0, READ, 0, 512).power_off();
            let disk = Disk::new(std::sync::Arc::new(DoingDisk(ram)) as _);
            let config = config(&guest, Box::new(io::sink()), disk, Sandbox::Off);
            println!("{}", sandbox.confine_files(&reach(inside.path())).unwrap());
            assert_eq!(Machine::new(config).unwrap().run().unwrap(), End::PowerOff);
            keeps_to_its_directory(inside.path());
        }
        "other" => {
            sandbox.confine_process().unwrap();
            std::thread::spawn(deed).join().unwrap();
        }
        other => panic!("no such thread: {other}"),
    }
    println!("it was done");
}

fn tell(thread: &str, deed: &str, rules: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "told", "--nocapture"]);
    command.env(THREAD, thread).env(DEED, deed).env(RULES, rules);
    command.output().unwrap()
}

#[test]
fn whoever_breaks_the_rules_dies() {
    if !has_kvm("the sandbox of machines") {
        return;
    }
    for (thread, deeds) in [
        ("processor", &["open", "exec", "connect", "ptrace", "code"][..]),
        ("disk", &["open", "exec", "connect", "ptrace", "code"]),
        ("other", &["exec", "ptrace"]),
    ] {
        for deed in deeds {
            let told = tell(thread, deed, "on");
            assert_eq!(told.status.signal(), Some(libc::SIGSYS), "{thread} {deed}: {told:?}");
            // What is not allowed is the deed, not something beside it.
            if *deed != "exec" {
                let done = tell(thread, deed, "off");
                assert!(done.status.success(), "{thread} {deed}: {done:?}");
                assert!(
                    String::from_utf8_lossy(&done.stdout).contains("it was done"),
                    "{thread} {deed}"
                );
                assert!(tell(thread, deed, "log").status.success(), "{thread} {deed}");
            }
        }
        let nothing = tell(thread, "nothing", "on");
        assert!(nothing.status.success(), "{thread}: {nothing:?}");
    }
}

#[test]
fn a_disk_keeps_to_the_files_of_its_machine() {
    if !has_kvm("the files of a confined machine") {
        return;
    }
    let told = tell("confined disk", "open outside", "on");
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    if said.contains("no landlock") {
        assert!(std::env::var_os("CI").is_none(), "CI needs a kernel with landlock");
        let not_tested = "NOT TESTED: machines that keep to their files, as this kernel has no landlock";
        return writeln!(io::stderr(), "{not_tested}").unwrap();
    }
    assert!(told.status.success(), "{told:?}");
    assert!(said.contains("refused") && said.contains("it was done"), "{told:?}");
    for rules in ["off", "log"] {
        let free = tell("disk", "open outside", rules);
        assert!(String::from_utf8_lossy(&free.stdout).contains("opened"), "{free:?}");
    }
    // What it may not do at all ends it all the same.
    for deed in ["exec", "ptrace"] {
        assert_eq!(tell("other", deed, "on").status.signal(), Some(libc::SIGSYS), "{deed}");
    }
}

#[test]
fn disks_work_under_the_rules() {
    if !has_kvm("disks under the rules of the sandbox") {
        return;
    }
    let (disk, ram) = Ram::disk(1 << 20);
    let guest = Payload::new()
        .start_disk(0)
        .request(0, STORE, 0, 512)
        .print_status(0)
        .power_off();
    let machine = machine(&guest, Box::new(io::sink()), disk, Sandbox::On);
    assert_eq!(machine.run().unwrap(), End::PowerOff);
    assert_eq!(ram.bytes.lock().unwrap().len(), 1 << 20);
}
