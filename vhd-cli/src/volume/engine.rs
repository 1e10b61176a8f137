//! Which engine elects the coordinator of a volume, as users name it and volumes remember it.

use std::fmt;
use std::str::FromStr;

/// The engine of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EngineName {
    /// A lock of the kernel: the processes of one machine.
    Local,
    /// etcd, at these addresses.
    Etcd(Vec<String>),
}

impl FromStr for EngineName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        let Some(list) = text.strip_prefix("etcd://") else {
            return Err("it is local, or etcd://HOST:PORT[,HOST:PORT...]".into());
        };
        let endpoints: Vec<String> = list.split(',').map(str::to_owned).collect();
        let is_endpoint = |text: &String| {
            let (host, port) = text.rsplit_once(':')?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
            let good = !host.is_empty() && host.bytes().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0);
            good.then_some(())
        };
        match endpoints.iter().find(|text| is_endpoint(text).is_none()) {
            Some(bad) => Err(format!(
                "{bad:?} is not HOST:PORT; it is etcd://HOST:PORT[,HOST:PORT...]"
            )),
            None => Ok(Self::Etcd(endpoints)),
        }
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Etcd(endpoints) => write!(f, "etcd://{}", endpoints.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_come_back_and_nothing_else_is_one() {
        for good in [
            "local",
            "etcd://h:1",
            "etcd://10.0.0.1:2379,[::1]:2379,etcd-3.example:65535",
        ] {
            assert_eq!(good.parse::<EngineName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "Local",
            "etcd://",
            "etcd://h",
            "etcd://h:0",
            "etcd://h:65536",
            "etcd://h:1,",
            "etcd://:1",
            "http://h:1",
        ] {
            assert!(bad.parse::<EngineName>().is_err(), "{bad}");
        }
        for bad in ["etcd://h:1/x", "etcd://u@h:1", "etcd://h:1, i:2", "etcd:h:1"] {
            assert!(bad.parse::<EngineName>().is_err(), "{bad}");
        }
    }
}
