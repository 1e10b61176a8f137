//! Where `vhd nbd` listens.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use vhd_core::error::with_causes;
use vhd_nbd::server::{ListenError, ListenFailure, Listener, TcpPolicy};

use crate::codes::Kind;
use crate::failure::Failure;

/// Where a server listens that is told nothing else.
const DEFAULT_ADDRESS: &str = "127.0.0.1:10809";

/// Where the server listens, and to whom.
#[derive(Args, Debug)]
pub(super) struct AddressArgs {
    /// Listen on a unix socket
    #[arg(long, value_name = "PATH", group = "address")]
    unix: Option<PathBuf>,
    /// Listen on a TCP address [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR:PORT", group = "address")]
    tcp: Option<SocketAddr>,
    /// Listen for virtual machines; CID is a number or `any`
    #[arg(long, value_name = "CID:PORT", group = "address")]
    vsock: Option<VsockAddress>,
    /// Let in TCP clients of this network only (ADDR/BITS), on passed sockets too; without TLS an address that others
    /// reach needs it
    #[arg(long = "allow", value_name = "NETWORK", conflicts_with_all = ["unix", "vsock"])]
    allowed: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug)]
struct VsockAddress {
    cid: u32,
    port: u32,
}

impl FromStr for VsockAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "CID:PORT is needed, two numbers or `any` and one".to_owned();
        let (cid, port) = text.split_once(':').ok_or_else(wrong)?;
        let cid = match cid {
            "any" => u32::MAX,
            number => number.parse().map_err(|_| wrong())?,
        };
        let port = port.parse().map_err(|_| wrong())?;
        Ok(Self { cid, port })
    }
}

impl AddressArgs {
    /// Listens; on the sockets of a service manager where nothing else is said.
    pub(super) fn listen(&self, tls: bool) -> Result<Vec<Listener>, Failure> {
        let policy = TcpPolicy {
            allowed: self.allowed.clone(),
            tls,
        };
        let passed = Listener::activated(&policy).map_err(failure)?;
        if !passed.is_empty() {
            if self.is_said() {
                return Err(Failure::usage(
                    "a service manager passed sockets (LISTEN_FDS): leave --unix, --tcp or --vsock out to use them",
                ));
            }
            return Ok(passed);
        }
        let listener = match (&self.unix, self.tcp, self.vsock) {
            (Some(path), ..) => Listener::unix(path),
            (.., Some(VsockAddress { cid, port })) => Listener::vsock(cid, port),
            (None, address, None) => {
                let default = || DEFAULT_ADDRESS.parse().expect("an address");
                Listener::tcp(address.unwrap_or_else(default), policy)
            }
        };
        Ok(vec![listener.map_err(failure)?])
    }

    fn is_said(&self) -> bool {
        self.unix.is_some() || self.tcp.is_some() || self.vsock.is_some()
    }
}

pub(super) fn failure(error: ListenError) -> Failure {
    let kind = match &error.source {
        ListenFailure::Policy(_) => {
            let message = with_causes(&error);
            return Failure::usage(format!("{message}: give --tls-cert and --tls-key, or --allow NETWORK"));
        }
        ListenFailure::Io(error) if error.kind() == io::ErrorKind::AddrInUse => Kind::AddressInUse,
        ListenFailure::Io(_) | ListenFailure::Passed(_) => Kind::Listen,
    };
    Failure::new(kind, with_causes(&error))
}
