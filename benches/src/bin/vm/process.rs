//! Machines as processes: how long a small kernel takes to user space beside qemu, what the process takes besides the guest's
//! memory, how long it takes to save a machine and to go on with it.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vhd_benches::spread;

use crate::guest::{Work, elf};

/// Memory of the guest that is saved.
const MIB: u64 = 256;
/// What the kernel needs where KVM emulates ring 0; nothing speaks against it elsewhere.
const OPTIONS: &str =
    "console=ttyS0 quiet noxsave nofsgsbase clearcpuid=cx16,rdrand,rdseed,smap,smep rodata=off reboot=k panic=-1";
const INIT: &str = "#include <unistd.h>\nint main(void) { write(1, \"\\nUSERSPACE\\n\", 11); for (;;) pause(); }\n";

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    /// Waits until it has written a text.
    fn says(&mut self, text: &[u8]) -> Result<()> {
        let out = self.0.stdout.as_mut().context("it has no output")?;
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(text) {
            let read = out.read(&mut byte)?;
            ensure!(
                read == 1,
                "it ended without a word: {}",
                String::from_utf8_lossy(&heard)
            );
            heard.push(byte[0]);
        }
        Ok(())
    }
}

/// Seconds until a command has written a text.
fn until(command: &mut Command, text: &[u8]) -> Result<f64> {
    let began = Instant::now();
    let mut process = Process::start(command)?;
    process.says(text)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Boots a kernel with both, in turn.
pub(crate) fn boot(dir: &Path, vhd: &Path, rounds: u64) -> Result<()> {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/guest-kernel/vmlinux.zst");
    if !packed.exists() {
        println!("\nNot measured: boot, as there is no {}", packed.display());
        return Ok(());
    }
    let (kernel, initrd) = (dir.join("vmlinux"), dir.join("initrd"));
    fs::write(dir.join("init.c"), INIT)?;
    let script = "zstd -dqf \"$0\" -o vmlinux && mkdir -p root/dev && cc -static -Os -o root/init init.c && cd root && \
                  { [ -e dev/console ] || mknod dev/console c 5 1; } && find . | cpio -o -H newc --quiet >../initrd";
    let made = Command::new("sh")
        .args(["-c", script])
        .arg(packed.canonicalize()?)
        .current_dir(dir)
        .status()?;
    ensure!(made.success(), "the initramfs can't be made");
    let khz = tsc_khz()?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let mut command = Command::new(vhd);
        command.args(["vm", "run", "--memory", "256M", "--append", OPTIONS]);
        let our = until(
            command.arg("--kernel").arg(&kernel).arg("--initrd").arg(&initrd),
            b"USERSPACE",
        )?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-M",
            "microvm,acpi=off",
            "-accel",
            "kvm",
            "-cpu",
            "host,-arch-capabilities",
            "-m",
            "256",
            "-nodefaults",
        ]);
        command.args(["-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.arg("-append").arg(format!("{OPTIONS} tsc_early_khz={khz}"));
        let their = until(
            command.arg("-kernel").arg(&kernel).arg("-initrd").arg(&initrd),
            b"USERSPACE",
        );
        let Ok(their) = their else {
            println!("\nqemu does not boot this kernel here: {:?}", their.err());
            return Ok(());
        };
        if round > 0 {
            ours.push(our);
            theirs.push(their);
            ratios.push(their / our);
        }
    }
    println!("\n| boot to user space | seconds, median | min | max |\n|---|---|---|---|");
    for (name, values) in [("vhd vm run", ours), ("qemu -M microvm", theirs), ("ratio", ratios)] {
        let (median, min, max) = spread(values);
        println!("| {name} | {median:.3} | {min:.3} | {max:.3} |");
    }
    Ok(())
}

/// What the clock of this host's processors runs at.
fn tsc_khz() -> Result<u64> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let mhz = info
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz"))
        .context("no clock rate")?;
    let mhz: f64 = mhz.trim_start_matches([':', '\t', ' ']).parse()?;
    Ok((mhz * 1000.0) as u64)
}

/// The memory of a process, and saving and restoring it.
pub(crate) fn save(dir: &Path, vhd: &Path, rounds: u64) -> Result<()> {
    let kernel = dir.join("fills");
    fs::write(&kernel, elf(&Work::Fill { until: (MIB - 1) << 20 })?)?;
    let disk = dir.join("disk.vhd");
    let made = Command::new(vhd)
        .args(["create", "--size", "64M"])
        .arg(&disk)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (mut beyond, mut private) = (Vec::new(), Vec::new());
    let (mut saving, mut reading, mut restoring, mut more) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (name, file) = (format!("measured-{}", std::process::id()), dir.join("state"));
        let _ = fs::remove_file(&file);
        let mut run = Command::new(vhd);
        run.args(["vm", "run", "--name", &name, "--memory", &format!("{MIB}M"), "--kernel"])
            .arg(&kernel);
        let mut machine = Process::start(run.arg("--machine").arg("mmio").arg("--disk").arg(&disk))?;
        machine.says(b"b...")?;
        let (all, own) = memory(machine.0.id())?;
        // Whatever it says must not stop it.
        let mut rest = machine.0.stdout.take().context("output")?;
        let sink = std::thread::spawn(move || std::io::copy(&mut rest, &mut std::io::sink()));
        let began = Instant::now();
        let saved = Command::new(vhd).args(["vm", "save", &name]).arg(&file).output()?;
        let save = began.elapsed().as_secs_f64();
        ensure!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
        drop(machine);
        let _ = sink.join();
        let read = read_whole(&file)?;
        let restore = until(Command::new(vhd).args(["vm", "restore"]).arg(&file), b".")?;
        std::thread::sleep(Duration::from_millis(50));
        if round > 0 {
            beyond.push(all);
            private.push(own);
            saving.push(save);
            reading.push(read);
            restoring.push(restore);
            more.push(restore - read);
        }
    }
    println!("\n| a machine of {MIB} MiB, all of it written | median | min | max |\n|---|---|---|---|");
    for (name, values) in [
        ("memory of the process beyond the guest's, MiB", beyond),
        ("- of that no pages of programs and libraries, MiB", private),
        ("vhd vm save, s", saving),
        ("reading the file, s", reading),
        ("vhd vm restore to the first sign of the guest, s", restoring),
        ("- beyond reading the file, s", more),
    ] {
        let (median, min, max) = spread(values);
        println!("| {name} | {median:.3} | {min:.3} | {max:.3} |");
    }
    Ok(())
}

fn read_whole(file: &PathBuf) -> Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let began = Instant::now();
    let mut file = File::open(file)?;
    while file.read(&mut buffer)? > 0 {}
    Ok(began.elapsed().as_secs_f64())
}

/// MiB of a process that are not the guest's memory: all that is there, and what is no page of a file.
fn memory(process: u32) -> Result<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let (mut is_guest, mut all, mut own) = (false, 0, 0);
    for line in text.lines() {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        if !name.ends_with(':') {
            is_guest = line.contains("vhd-guest-memory");
            continue;
        }
        let kib = || rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        match name {
            _ if is_guest => {}
            "Rss:" => all += kib(),
            "Anonymous:" => own += kib(),
            _ => {}
        }
    }
    Ok((all as f64 / 1024.0, own as f64 / 1024.0))
}
