//! Where a coordinator listens, as text that an engine keeps.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use uuid::Uuid;

use crate::id::NodeId;

/// Where a coordinator listens: for the processes of its machine, and for other machines if it does.
///
/// As text it is the path of the socket, or `MACHINE,NODE,ADDR:PORT,PATH` with `-` for no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The machine; `None` if there is only one.
    pub machine: Option<Uuid>,
    /// The node, which its certificate has to name.
    pub node: NodeId,
    /// Where other machines find it.
    pub listens: Option<SocketAddr>,
    /// The socket for processes of the machine.
    pub socket: String,
}

impl Address {
    /// Whether the socket is one of this machine.
    #[must_use]
    pub fn is_here(&self, machine: Uuid) -> bool {
        self.machine.is_none_or(|found| found == machine)
    }

    /// Whether something of the socket's name is there: it goes with the term of the coordinator.
    #[must_use]
    pub fn has_socket(&self) -> bool {
        Path::new(&self.socket).exists()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, socket, .. } = self;
        match (self.machine, self.listens) {
            (None, _) => f.write_str(socket),
            (Some(machine), Some(listens)) => write!(f, "{machine},{node},{listens},{socket}"),
            (Some(machine), None) => write!(f, "{machine},{node},-,{socket}"),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self {
                machine: None,
                node: NodeId(String::new()),
                listens: None,
                socket: text.to_owned(),
            });
        }
        let bad = || format!("{text:?} is no address of a coordinator");
        let mut parts = text.splitn(4, ',');
        let mut part = || parts.next().ok_or_else(bad);
        let (machine, node, listens, socket) = (part()?, part()?, part()?, part()?);
        let listens = match listens {
            "-" => None,
            address => Some(address.parse().map_err(|_| bad())?),
        };
        Ok(Self {
            machine: Some(machine.parse().map_err(|_| bad())?),
            node: NodeId(node.to_owned()),
            listens,
            socket: socket.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_and_nothing_else_is_one() {
        let machine = Uuid::from_u128(7);
        for listens in [
            None,
            Some("10.0.0.1:7400".parse().unwrap()),
            Some("[::1]:1".parse().unwrap()),
        ] {
            let address = Address {
                machine: Some(machine),
                node: NodeId("web-1".into()),
                listens,
                socket: "/run/a, b/x.sock".into(),
            };
            assert_eq!(address.to_string().parse(), Ok(address.clone()));
            assert!(address.is_here(machine) && !address.is_here(Uuid::from_u128(8)));
        }
        let plain: Address = "/run/x,y".parse().unwrap();
        assert!(plain.is_here(machine) && plain.to_string() == "/run/x,y");
        for bad in [
            "",
            "x",
            "a,b,-,/x",
            "a,b,c",
            &format!("{machine},n,10.0.0.1,/x"),
            &format!("{machine},n,-"),
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
