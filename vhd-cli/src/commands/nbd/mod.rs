//! `vhd nbd`: serving disks over NBD.

mod exports;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use vhd_nbd::server::{ListenError, Listener, Server, ServerOptions};

use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::SourceArgs;
use crate::output;
use exports::{NamedImage, Served};

pub(crate) const NAME: &str = "nbd";

/// Where a server listens that is told nothing else.
const DEFAULT_ADDRESS: &str = "127.0.0.1:10809";

const EXAMPLES: &str = "\
Examples:
  vhd nbd --unix /run/disk.sock disk.vhd
  vhd nbd --tcp 127.0.0.1:10809 --read-only disk.vhd
  vhd nbd --unix s.sock --export system=system.vhd --export data=data.avhd
  vhd nbd --unix s.sock --snapshot disk.vhd
  nbdcopy nbd+unix:///?socket=/run/disk.sock copy.raw";

/// Arguments of `vhd nbd`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct NbdArgs {
    /// Listen on a unix socket
    #[arg(long, value_name = "PATH", group = "address")]
    unix: Option<PathBuf>,
    /// Listen on a TCP address
    #[arg(long, value_name = "ADDR:PORT", group = "address")]
    tcp: Option<SocketAddr>,
    /// Refuse writes; the images are opened for reading only
    #[arg(long)]
    read_only: bool,
    /// Take writes into a temporary layer that is thrown away at the end; the images do not change
    #[arg(long, conflicts_with = "read_only")]
    snapshot: bool,
    /// Serve an image under a name; the first is the default unless IMAGE is given
    #[arg(long = "export", value_name = "NAME=IMAGE")]
    exports: Vec<NamedImage>,
    /// Say at the end what was done: requests, bytes, latencies (SIGUSR1 says it at any time)
    #[arg(long)]
    stats: bool,
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
    let (served, exports) = Served::open(args)?;
    let server = Server::new(exports, ServerOptions::default()).map_err(|error| system("start the server", &error))?;
    let listener = listen(args)?;
    let signals = handle_signals(&server)?;
    output::eprint(&format!("vhd: listening on {listener}\n"));
    let served_until = server.serve(&[listener]);
    signals.close();
    if args.stats {
        output::eprint(&format!("vhd: {}\n", server.stats()));
    }
    drop(server);
    let flushed = served_until.map_err(|error| system("wait for connections", &error))?;
    let closed = served.close();
    flushed.map_err(Failure::from)?;
    closed?;
    Ok(Exit::Ok)
}

fn system(operation: &str, error: &io::Error) -> Failure {
    Failure::new(Kind::Listen, format!("can't {operation}: {error}"))
}

fn listen(args: &NbdArgs) -> Result<Listener, Failure> {
    let listener = match (&args.unix, args.tcp) {
        (Some(path), _) => Listener::unix(path),
        (None, Some(address)) => Listener::tcp(address),
        (None, None) => Listener::tcp(DEFAULT_ADDRESS.parse().expect("an address")),
    };
    listener.map_err(|error: ListenError| {
        let kind = match error.source.kind() {
            io::ErrorKind::AddrInUse => Kind::AddressInUse,
            _ => Kind::Listen,
        };
        Failure::new(kind, format!("{error}: {}", error.source))
    })
}

/// Stops the server on SIGTERM and SIGINT; SIGUSR1 says what was done so far.
fn handle_signals(server: &Arc<Server>) -> Result<signal_hook::iterator::Handle, Failure> {
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
