//! Where `vhd nbd` listens.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use vhd_core::error::with_causes;
use vhd_nbd::server::{ListenError, Listener};

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
    /// Let in TCP clients of this network only (ADDR/BITS); without TLS an address that others reach needs it
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
        let listener = match (&self.unix, self.tcp, self.vsock) {
            (Some(path), ..) => Listener::unix(path),
            (_, Some(address), _) => return self.listen_tcp(address, tls),
            (.., Some(VsockAddress { cid, port })) => Listener::vsock(cid, port),
            (None, None, None) => {
                let passed = Listener::activated().map_err(failure)?;
                if !passed.is_empty() {
                    return Ok(passed);
                }
                return self.listen_tcp(DEFAULT_ADDRESS.parse().expect("an address"), tls);
            }
        };
        Ok(vec![listener.map_err(failure)?])
    }

    fn listen_tcp(&self, address: SocketAddr, tls: bool) -> Result<Vec<Listener>, Failure> {
        if !address.ip().to_canonical().is_loopback() && !tls && self.allowed.is_empty() {
            return Err(Failure::usage(format!(
                "whoever reaches {address} could read and write the disk: use TLS, or say with --allow who may"
            )));
        }
        let listener = Listener::tcp(address, self.allowed.clone());
        Ok(vec![listener.map_err(failure)?])
    }
}

fn failure(error: ListenError) -> Failure {
    let kind = match error.source.kind() {
        io::ErrorKind::AddrInUse => Kind::AddressInUse,
        _ => Kind::Listen,
    };
    Failure::new(kind, with_causes(&error))
}
