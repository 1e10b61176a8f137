//! The programs that are compared, each with an image of its own that it has mounted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bare::Bare;
use crate::images::{Images, run};

pub(crate) const NATIVE: &str = "native";
pub(crate) const BARE: &str = "bare";
pub(crate) const PASSTHROUGH: &str = "passthrough";
pub(crate) const OURS: &str = "vhd";
const DAEMON: &str = "qemu-storage-daemon";
const NBDFUSE: &str = "nbdfuse";
const VHDIMOUNT: &str = "vhdimount";
pub(crate) const PEERS: [&str; 3] = [DAEMON, NBDFUSE, VHDIMOUNT];
const KINDS: [&str; 3] = ["fixed", "dynamic", "chain of 8"];

/// A program that shows a disk as a file, as long as this is there.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) image: &'static str,
    /// The disk as it shows it.
    pub(crate) file: PathBuf,
    serving: Option<Serving>,
}

/// What is to be ended.
enum Serving {
    Bare(#[allow(dead_code, reason = "unmounts when it is dropped")] Bare),
    Process { child: Option<Child>, place: PathBuf },
}

impl Program {
    /// All that are installed; for writes, those that write.
    pub(crate) fn all(images: &Images, vhd: &Path, writes: bool) -> Result<Vec<Self>> {
        let round = if writes { "writes" } else { "reads" };
        let named = |name: &str| format!("{round}-{name}");
        let mut all = vec![Self {
            name: NATIVE,
            image: "raw",
            file: images.make(&named(NATIVE), "raw")?,
            serving: None,
        }];
        let place = images.dir.join(named("bare-mnt"));
        fs::create_dir(&place)?;
        let (bare, file) = Bare::mount(&images.make(&named(BARE), "raw")?, &place)?;
        all.push(Self {
            name: BARE,
            image: "raw",
            file,
            serving: Some(Serving::Bare(bare)),
        });
        if !writes {
            let base = images.make(&named(PASSTHROUGH), "raw")?;
            let leaf = base.with_file_name("leaf.vhd");
            run(Command::new(vhd)
                .args(["create", "--from", "raw"])
                .arg(&leaf)
                .arg("--parent")
                .arg(&base))?;
            let mut command = Command::new(vhd);
            let mut parent = std::ffi::OsString::from("raw:");
            parent.push(&base);
            command
                .args(["mount", "--foreground", "--parent"])
                .arg(parent)
                .arg(&leaf);
            all.push(Self::served(
                images,
                command,
                (PASSTHROUGH, "raw", &named(PASSTHROUGH)),
                "layers/1.raw",
            )?);
        }
        for kind in KINDS {
            let name = named(&format!("vhd-{kind}"));
            let image = images.make(&name, kind)?;
            let mut command = Command::new(vhd);
            command
                .args(["mount", "--foreground"])
                .args(writes.then_some("--rw"))
                .arg(&image);
            all.push(Self::served(images, command, (OURS, kind, &name), "disk.raw")?);
            for peer in PEERS {
                let chain = kind == KINDS[2];
                if !installed(peer) || chain && peer != VHDIMOUNT || writes && peer == VHDIMOUNT {
                    continue;
                }
                let name = named(&format!("{peer}-{kind}"));
                let image = images.make(&name, kind)?;
                all.push(Self::peer(images, peer, kind, &name, &image)?);
            }
        }
        Ok(all)
    }

    fn peer(images: &Images, peer: &'static str, kind: &'static str, name: &str, image: &Path) -> Result<Self> {
        let image = image.display();
        match peer {
            DAEMON => {
                let file = images.dir.join(format!("{name}-export"));
                File::create(&file)?;
                let mut command = Command::new(DAEMON);
                command.args(["--blockdev", &format!("driver=file,filename={image},node-name=file")]);
                command.args(["--blockdev", "driver=vpc,file=file,node-name=disk"]);
                let export = format!(
                    "type=fuse,id=e,node-name=disk,mountpoint={},writable=on",
                    file.display()
                );
                command.args(["--export", &export]);
                let child = quiet(&mut command).spawn()?;
                let child = Some(child);
                Self::ready(peer, kind, file.clone(), Serving::Process { child, place: file })
            }
            NBDFUSE => {
                let mut command = Command::new(NBDFUSE);
                let place = images.dir.join(format!("{name}-mnt"));
                fs::create_dir(&place)?;
                command.arg(place.join("disk"));
                command.args(["[", "qemu-nbd", "-f", "vpc", &image.to_string(), "]"]);
                let child = Some(quiet(&mut command).spawn()?);
                Self::ready(peer, kind, place.join("disk"), Serving::Process { child, place })
            }
            _ => {
                let mut command = Command::new(VHDIMOUNT);
                command.arg(image.to_string());
                Self::served(images, command, (peer, kind, name), "vhdi1")
            }
        }
    }

    /// Starts a program whose last argument is a directory to mount on.
    fn served(
        images: &Images,
        mut command: Command,
        (name, image, unique): (&'static str, &'static str, &str),
        file: &str,
    ) -> Result<Self> {
        let place = images.dir.join(format!("{unique}-mnt"));
        fs::create_dir(&place)?;
        let child = Some(quiet(command.arg(&place)).spawn()?);
        Self::ready(name, image, place.join(file), Serving::Process { child, place })
    }

    /// Waits until the file is there, and reads it once, so that whatever is cached is.
    fn ready(name: &'static str, image: &'static str, file: PathBuf, serving: Serving) -> Result<Self> {
        let started = Instant::now();
        while file.metadata().map_or(0, |meta| meta.len()) == 0 {
            ensure!(
                started.elapsed() < Duration::from_secs(20),
                "{name} does not mount {image}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        std::io::copy(&mut File::open(&file)?, &mut std::io::sink())?;
        Ok(Self {
            name,
            image,
            file,
            serving: Some(serving),
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(Serving::Process { child, place }) = self.serving.take() {
            let unmounted = Command::new("umount").arg(&place).output();
            if !unmounted.is_ok_and(|output| output.status.success()) {
                let _ = Command::new("umount").arg("-l").arg(&place).output();
            }
            if let Some(mut child) = child {
                let pid = rustix::process::Pid::from_child(&child);
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                let _ = child.wait();
            }
        }
    }
}

fn installed(program: &str) -> bool {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let found = there(program) && (program != NBDFUSE || there("qemu-nbd"));
    if !found {
        eprintln!("left out: {program} is not installed");
    }
    found
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}
