//! Who may connect over TCP.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Who may connect over TCP: one rule for every socket, whoever opened it.
#[derive(Clone, Debug, Default)]
pub struct TcpPolicy {
    /// The networks that clients may come from; any, if there is none.
    pub allowed: Vec<IpNet>,
    /// Clients must use TLS.
    pub tls: bool,
}

/// Whoever reaches a socket could read and write the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("whoever reaches {0} could read and write the disk: TLS, or networks that clients may come from, are needed")]
pub struct OpenToAll(pub SocketAddr);

impl TcpPolicy {
    /// Whether a server may listen there: where only this machine's programs come, or with TLS, or for some networks.
    pub(super) fn may_listen(&self, address: SocketAddr) -> Result<(), OpenToAll> {
        if is_loopback(address.ip()) || self.tls || !self.allowed.is_empty() {
            return Ok(());
        }
        Err(OpenToAll(address))
    }

    /// Whether a client may come.
    pub(super) fn may_connect(&self, peer: IpAddr) -> bool {
        // An IPv4 peer of an IPv6 socket is an IPv4 peer.
        let peer = peer.to_canonical();
        self.allowed.is_empty() || self.allowed.iter().any(|network| network.contains(&peer))
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allowed: &[&str], tls: bool) -> TcpPolicy {
        let allowed = allowed.iter().map(|network| network.parse().unwrap()).collect();
        TcpPolicy { allowed, tls }
    }

    #[test]
    fn peers_are_allowed_by_network() {
        let some = policy(&["10.1.0.0/16", "2001:db8::/32"], false);
        let is_allowed = |peer: &str, policy: &TcpPolicy| policy.may_connect(peer.parse().unwrap());
        for peer in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            assert!(is_allowed(peer, &some), "{peer}");
        }
        for peer in ["10.2.2.3", "::1", "::ffff:10.2.0.1"] {
            assert!(!is_allowed(peer, &some), "{peer}");
            assert!(is_allowed(peer, &TcpPolicy::default()));
        }
    }

    #[test]
    fn what_others_reach_needs_a_rule() {
        for (address, open) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(TcpPolicy::default().may_listen(address).is_ok(), open, "{address}");
            assert_eq!(policy(&[], true).may_listen(address), Ok(()));
            assert_eq!(policy(&["10.0.0.0/8"], false).may_listen(address), Ok(()));
        }
    }
}
