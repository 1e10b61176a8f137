//! NBD servers side by side over a unix socket, everything in the page cache: ours, qemu-nbd with its options, and
//! `nbdkit file` on a raw file. Each round has every server in turn; ratios are taken inside a round.
//!
//! ```text
//! cargo build --release -p vhd-cli && cargo run --release -p vhd-benches --bin nbd -- --dir DIR
//! ```
#![forbid(unsafe_code)]

mod client;
mod fio;
mod images;
mod load;
mod servers;
mod table;
mod traced;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

use client::Client;
use images::{Image, Images};
use load::{LOADS, Load, NEW_BLOCKS};
use servers::{Places, Program, Server};
use table::{Sample, Table};
use vhd_benches::running::Running;

/// NBD servers side by side.
#[derive(Debug, Parser)]
struct Args {
    /// Where the images go: on the file system to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The program to measure; the one beside this program if not given
    #[arg(long)]
    vhd: Option<PathBuf>,
    /// A former build, to be measured beside it with VHD images
    #[arg(long)]
    former: Option<PathBuf>,
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Seconds per measurement
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// MiB of the disks
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Only servers whose name contains this; may be given several times
    #[arg(long = "server", value_name = "PART")]
    servers: Vec<String>,
    /// Only loads whose name contains this; may be given several times
    #[arg(long = "load", value_name = "PART")]
    loads: Vec<String>,
    /// Also with fio as the client (4 KiB, depth 32)
    #[arg(long)]
    fio: bool,
    /// Also count system calls with strace
    #[arg(long)]
    strace: bool,
}

/// Ours as it was, for what may have become slower.
fn former_servers() -> Vec<Server> {
    let images = [
        Image::Fixed,
        Image::Dynamic,
        Image::Chain,
        Image::Pieces,
        Image::EmptyDynamic,
    ];
    let former = |image| Server {
        program: Program::Former,
        image,
        tls: false,
    };
    images.map(former).into()
}

/// All servers. Cached: `none` reads the device each time, but its writes may be the faster ones.
fn servers() -> Vec<Server> {
    let server = |program, image, tls| Server { program, image, tls };
    let qemu = [
        Program::Qemu("writeback", "threads"),
        Program::Qemu("writeback", "io_uring"),
        Program::Qemu("none", "native"),
    ];
    let mut servers = vec![server(Program::Nbdkit, Image::Raw, false)];
    let ours = [Image::Raw, Image::Fixed, Image::Dynamic, Image::Chain, Image::Pieces];
    servers.extend(ours.map(|image| server(Program::Vhd, image, false)));
    servers.extend(qemu.map(|program| server(program, Image::Dynamic, false)));
    servers.push(server(qemu[0], Image::Fixed, false));
    servers.push(server(Program::Vhd, Image::Dynamic, true));
    servers.push(server(qemu[0], Image::Dynamic, true));
    servers.push(server(Program::Nbdkit, Image::EmptyRaw, false));
    servers.push(server(Program::Vhd, Image::EmptyDynamic, false));
    servers.extend(qemu.map(|program| server(program, Image::EmptyDynamic, false)));
    servers
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir_in(&args.dir)?;
    let vhd = match &args.vhd {
        Some(vhd) => vhd.clone(),
        None => std::env::current_exe()?.with_file_name("vhd"),
    };
    let bench = Bench {
        places: Places {
            vhd,
            former: args.former.clone().unwrap_or_default(),
            socket: dir.path().join("socket"),
            certificates: dir.path().to_owned(),
        },
        images: Images {
            dir: dir.path(),
            size: args.mib << 20,
        },
        args: &args,
    };
    servers::make_certificates(dir.path())?;
    bench.images.build()?;
    bench.run()
}

struct Bench<'a> {
    args: &'a Args,
    images: Images<'a>,
    places: Places,
}

impl Bench<'_> {
    fn run(&self) -> Result<()> {
        println!(
            "load average before: {}",
            std::fs::read_to_string("/proc/loadavg")?.trim()
        );
        let former = self.args.former.iter().flat_map(|_| former_servers());
        let servers: Vec<Server> = (servers().into_iter().chain(former))
            .filter(|server| is_chosen(&self.args.servers, &server.name()))
            .collect();
        let mut tables: Vec<Table> = LOADS
            .iter()
            .chain(&NEW_BLOCKS)
            .map(|load| Table::new(load.name))
            .collect();
        // The first round warms up.
        for round in 0..=self.args.rounds {
            for server in &servers {
                for (load, sample) in self.measure(server, round)? {
                    let table = tables.iter_mut().find(|table| table.title == load.name && round > 0);
                    table.into_iter().for_each(|table| table.add(*server, sample));
                }
            }
        }
        for table in tables.iter().filter(|table| !table.is_empty()) {
            table.print();
        }
        println!(
            "load average after: {}",
            std::fs::read_to_string("/proc/loadavg")?.trim()
        );
        let is_plain = |server: &&Server| !server.tls && matches!(server.image, Image::Raw | Image::Dynamic);
        let plain = || servers.iter().filter(is_plain);
        if self.args.strace {
            traced::print(plain(), self)?;
        }
        // Last: it leaves no stamps.
        if self.args.fio {
            fio::print(plain(), self)?;
        }
        Ok(())
    }

    /// Runs the chosen loads on one server.
    fn measure(&self, server: &Server, round: u32) -> Result<Vec<(Load, Sample)>> {
        let loads: &[Load] = if server.image.is_empty() { &NEW_BLOCKS } else { &LOADS };
        let chosen = loads.iter().filter(|load| is_chosen(&self.args.loads, load.name));
        let mut samples = Vec::new();
        let mut running: Option<Running> = None;
        for load in chosen {
            // Loads that allocate need an image of their own.
            if running.is_none() || server.image.is_empty() {
                drop(running.take());
                self.images.prepare(server.image)?;
                running = Some(self.start(server)?);
            }
            let running = running.as_ref().context("it was started")?;
            let mut client = self.connect(server)?;
            let random = fastrand::Rng::with_seed(round.into());
            let mut places = load.places(client.size(), random);
            let cpu = running.cpu()?;
            let outcome = client.run(load, &mut places, Duration::from_secs_f64(self.args.seconds))?;
            #[expect(clippy::cast_precision_loss, reason = "a count of some millions")]
            let requests = outcome.requests as f64;
            samples.push((
                *load,
                Sample {
                    per_second: requests / outcome.seconds,
                    cpu: (running.cpu()? - cpu) / requests,
                    p99: outcome.p99,
                },
            ));
        }
        Ok(samples)
    }

    fn start(&self, server: &Server) -> Result<Running> {
        server.start(&self.images.path(server.image), &self.places)
    }

    fn connect(&self, server: &Server) -> Result<Client> {
        let authority = self.places.certificates.join("ca-cert.pem");
        Client::connect(&self.places.socket, server.tls.then_some(authority.as_path())).with_context(|| server.name())
    }
}

fn is_chosen(wanted: &[String], name: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
}
