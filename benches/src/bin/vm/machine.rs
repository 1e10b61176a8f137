//! A machine in this process, for as long as its guest works.

use std::io::{self, Seek as _, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hypervisor::{CpuModel, End, MIN_MEMORY, Machine, MachineConfig, MachineDisk, MachineType, Sandbox};
use vhd_core::device::Disk;

use crate::guest::{Work, elf};

/// What became of a guest.
pub(crate) struct Ran {
    /// Seconds from its first word to its last.
    pub(crate) seconds: f64,
    /// How often it rang, what it did to warm up included.
    pub(crate) bells: u32,
    /// How often this process wrote to a descriptor meanwhile: interrupts, where the disk is only read.
    pub(crate) writes: u64,
}

#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    began: Option<(Instant, u64)>,
    ended: Option<(Instant, u64)>,
}

/// The console: it notes when the guest says something.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Heard>>);

impl Write for Ear {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = (Instant::now(), writes()?);
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            match heard.bytes.len() {
                0 => heard.began = Some(now),
                1 => heard.ended = Some(now),
                _ => {}
            }
            heard.bytes.push(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a guest to its end. `dir` is for its kernel.
pub(crate) fn run(dir: &Path, work: &Work<'_>, disk: &Disk) -> Result<Ran> {
    let mut kernel = tempfile::tempfile_in(dir)?;
    kernel.write_all(&elf(work)?)?;
    kernel.rewind()?;
    let ear = Ear::default();
    let machine = Machine::new(MachineConfig {
        machine_type: MachineType::Mmio,
        cpus: 1,
        cpu: CpuModel::Host,
        memory: MIN_MEMORY,
        kernel,
        initrd: None,
        command_line: String::new(),
        append: String::new(),
        disks: vec![MachineDisk {
            disk: disk.clone(),
            read_only: false,
            name: "measured".into(),
            sandbox: Sandbox::On,
        }],
        rng: false,
        console: Box::new(ear.clone()),
        sandbox: Sandbox::Off,
    })?;
    let end = machine.run()?;
    ensure!(end == End::PowerOff, "the guest ended otherwise: {end:?}");
    let heard = ear.0.lock().unwrap_or_else(PoisonError::into_inner);
    let (began, ended) = (heard.began.context("no beginning")?, heard.ended.context("no end")?);
    let bells = heard.bytes.get(2..6).context("the guest said too little")?;
    Ok(Ran {
        seconds: (ended.0 - began.0).as_secs_f64(),
        bells: u32::from_le_bytes(bells.try_into()?),
        writes: ended.1 - began.1,
    })
}

/// System calls of this process that wrote.
fn writes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("syscw: "));
    line.and_then(|number| number.parse().ok())
        .ok_or(io::ErrorKind::InvalidData.into())
}
