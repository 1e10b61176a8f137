//! `vhd nbd`: serving disks over NBD.

mod background;
mod companion;
mod exports;
mod listen;
mod live;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use vhd_core::error::with_causes;
use vhd_nbd::server::{Listener, MIN_MEMORY, Server, ServerOptions};
use vhd_nbd::tls::TlsServer;

use crate::children::ChildrenArgs;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::SourceArgs;
use crate::interrupt;
use crate::output;
use crate::running::Name;
use crate::size::parse_bytes;
use background::{BackgroundArgs, PidFile};
use companion::Companion;
use exports::{NamedImage, Served};
use listen::AddressArgs;

pub(crate) const NAME: &str = "nbd";

const EXAMPLES: &str = "\
Examples:
  vhd nbd --unix /run/disk.sock disk.vhd
  vhd nbd --read-only disk.vhd                      on 127.0.0.1:10809
  vhd nbd --unix s.sock --export system=system.vhd --export data=data.avhd
  vhd nbd --unix s.sock --from raw disk.raw         for writing, what is not a VHD needs its format said
  vhd nbd --unix s.sock --export a=a.vhd --export b=raw:b.raw
  vhd nbd --unix s.sock v:/web.vhd                  a disk on the cluster volume v, or: --volume v web.vhd
  vhd nbd --unix s.sock --snapshot disk.vhd         writes are thrown away at the end
  vhd nbd --unix s.sock --resizable disk.vhd        vhd resize 'nbd+unix:///?socket=s.sock' 128G
  vhd nbd --tcp 0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem --tls-ca ca.pem disk.vhd
  vhd nbd --unix s.sock --export disk=vm.vhd@now    and each of its snapshots, disk@SNAPSHOT, for reading only
  vhd nbd --read-only --run 'qemu-img convert \"$uri\" copy.qcow2' disk.vhd
  nbdcopy 'nbd+unix:///?socket=/run/disk.sock' copy.raw

It serves in the foreground, says on standard error where it listens, and stops on SIGTERM or SIGINT: requests that were \
received are finished, and the images flushed and closed. SIGUSR1 says what was done so far. Started by a service manager \
that passes sockets (LISTEN_FDS), it uses those. Clients see what is allocated (base:allocation), in which layer \
(qemu:allocation-depth), and what changed since each ancestor (qemu:dirty-bitmap:FILE NAME) or snapshot \
(qemu:dirty-bitmap:SNAPSHOT).";

/// Arguments of `vhd nbd`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct NbdArgs {
    #[command(flatten)]
    address: AddressArgs,
    /// Refuse writes; the images are opened for reading only
    #[arg(long)]
    read_only: bool,
    /// Take writes into a temporary layer (in TMPDIR) that is thrown away at the end; the images do not change
    #[arg(long, conflicts_with = "read_only")]
    snapshot: bool,
    /// Let clients change the size of a disk: of one image without parent and children, or of a raw disk
    #[arg(long, conflicts_with_all = ["read_only", "snapshot"])]
    resizable: bool,
    /// The certificate of the server, as a PEM file: clients must use TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of this authority, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Serve an image under a name; the first is the default unless IMAGE is given. NAME=raw:FILE serves a raw disk,
    /// whatever --from says of the others
    #[arg(long = "export", value_name = "NAME=IMAGE")]
    exports: Vec<NamedImage>,
    /// Take the images from a cluster volume: DISK is V:/DISK
    #[arg(long, value_name = "V")]
    volume: Option<Name>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_connections: u32,
    /// Disconnect clients that send nothing for so many seconds while nothing is done for them, or that leave a message
    /// unfinished for so long (60 s without it)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: Option<u64>,
    /// Memory that all clients together may make the server take, 64M at least; requests wait for it or fail
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    memory: u64,
    /// Say at the end what was done: requests, bytes, latencies
    #[arg(long)]
    stats: bool,
    /// Do not listen for commands that take snapshots of the disks while they are served
    #[arg(long)]
    no_control: bool,
    /// Run a shell command that uses the disk, and stop when it ends, with its exit code; it finds the disk in "$uri", the
    /// socket in "$unixsocket", the name in "$exportname"
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["unix", "tcp", "vsock", "fork"])]
    run: Option<String>,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    background: BackgroundArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// The image to serve as the default
    #[arg(required_unless_present = "exports")]
    image: Option<PathBuf>,
}

pub(crate) fn run(args: &NbdArgs) -> Result<Exit, Failure> {
    if args.source.chain.search.force_share && !args.read_only {
        return Err(Failure::usage("--force-share takes no locks: it needs --read-only"));
    }
    if args.background.fork {
        return background::start(Listener::are_passed().map_err(listen::failure)?);
    }
    let options = ServerOptions {
        max_connections: usize::try_from(args.max_connections).unwrap_or(usize::MAX),
        idle_timeout: args.idle_timeout.map(Duration::from_secs),
        memory: args.memory,
        tls: tls(args)?,
        ..ServerOptions::default()
    };
    let companion = args.companion()?;
    let listeners = match &companion {
        Some(companion) => vec![Listener::unix(&companion.socket()).map_err(listen::failure)?],
        None => args.address.listen(options.tls.is_some())?,
    };
    let (served, exports) = Served::open(args)?;
    let server = Server::new(exports, options).map_err(|error| system("start the server", &error))?;
    let connections = server.max_connections();
    if connections < usize::try_from(args.max_connections).unwrap_or(usize::MAX) {
        output::warning(format_args!(
            "--memory allows {connections} connections, not {}",
            args.max_connections
        ));
    }
    let signals = handle_signals(&server)?;
    let _pid_file = args.background.pid_file.as_deref().map(PidFile::write).transpose()?;
    if companion.is_none() {
        for listener in &listeners {
            output::eprint(&format!("vhd: listening on {listener}\n"));
        }
    }
    args.background.ready()?;
    let running = companion
        .as_ref()
        .map(|companion| companion.start(&server))
        .transpose()?;
    let served_until = server.serve(&listeners);
    signals.close();
    if args.stats {
        output::eprint(&format!("vhd: {}\n", server.stats()));
    }
    drop(server);
    let flushed = served_until.map_err(|error| system("wait for connections", &error))?;
    let closed = served.close();
    flushed.map_err(Failure::from)?;
    closed?;
    running.map_or(Ok(Exit::Ok), companion::Running::exit)
}

impl NbdArgs {
    /// The command that uses the disks: the default one, or the first that has a name.
    fn companion(&self) -> Result<Option<Companion>, Failure> {
        let Some(command) = &self.run else {
            return Ok(None);
        };
        let export = match (&self.image, self.exports.first()) {
            (None, Some(named)) => named.name(),
            _ => "",
        };
        Companion::new(command, export).map(Some)
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < MIN_MEMORY {
        return Err(format!("at least {MIN_MEMORY} bytes are needed"));
    }
    Ok(bytes)
}

fn system(operation: &str, error: &io::Error) -> Failure {
    Failure::new(Kind::Listen, format!("can't {operation}: {error}"))
}

fn tls(args: &NbdArgs) -> Result<Option<TlsServer>, Failure> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    let tls = TlsServer::new(certificate, key, args.tls_ca.as_deref());
    tls.map(Some)
        .map_err(|error| Failure::new(Kind::Certificate, with_causes(&error)))
}

/// Stops the server on SIGTERM and SIGINT; SIGUSR1 says what was done so far.
fn handle_signals(server: &Arc<Server>) -> Result<Handle, Failure> {
    interrupt::is_handled_elsewhere(&[SIGTERM, SIGINT]);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1]).map_err(|error| system("handle signals", &error))?;
    let handle = signals.handle();
    let server = Arc::downgrade(server);
    thread::spawn(move || {
        for signal in signals.forever() {
            let Some(server) = server.upgrade() else {
                return;
            };
            if signal == SIGUSR1 {
                output::eprint(&format!("vhd: {}\n", server.stats()));
            } else {
                server.stop();
            }
        }
    });
    Ok(handle)
}
