//! NBD URIs: where a server is, and which export is meant.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};

use super::{Address, UriError};

/// The port that a URI without one means.
pub const DEFAULT_PORT: u16 = 10809;

/// The context number of a virtual machine's host, which a vsock URI without one means.
const HOST_CID: u32 = vsock::VMADDR_CID_HOST;

/// What stands for itself in the path of a URI.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What does not stand for itself in the name of a host: an address of IPv6 has colons.
const HOST: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'/')
    .add(b'?')
    .add(b'#')
    .add(b'%')
    .add(b'@')
    .add(b'[')
    .add(b']');

/// A server and an export of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where the server is.
    pub address: Address,
    /// The export; the default one if empty.
    pub export: String,
    /// How TLS is to be used; `None` if it is not.
    pub tls: Option<UriTls>,
}

/// What a URI says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UriTls {
    /// The directory with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` if the server wants to see them;
    /// with `None` the system's authorities are believed.
    pub certificates: Option<PathBuf>,
    /// The name that the server's certificate must have, instead of that of the host.
    pub hostname: Option<String>,
}

/// What connects a scheme with a kind of address.
#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    Unix,
    Vsock,
}

const SCHEMES: [(&str, Transport, bool); 6] = [
    ("nbd", Transport::Tcp, false),
    ("nbds", Transport::Tcp, true),
    ("nbd+unix", Transport::Unix, false),
    ("nbds+unix", Transport::Unix, true),
    ("nbd+vsock", Transport::Vsock, false),
    ("nbds+vsock", Transport::Vsock, true),
];

impl NbdUri {
    /// Whether a text is meant as an NBD URI, right or wrong.
    #[must_use]
    pub fn is_uri(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        scheme.is_some_and(|scheme| {
            let family = scheme.split('+').next().unwrap_or_default();
            family == "nbd" || family == "nbds"
        })
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let scheme = scheme.to_ascii_lowercase();
        let known = SCHEMES.iter().find(|(name, ..)| *name == scheme);
        let &(_, transport, with_tls) = known.ok_or(UriError::Scheme)?;
        if rest.contains('#') {
            return Err(UriError::Unexpected { what: "a fragment" });
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            // Only pre-shared keys have users, and there are none here.
            return Err(UriError::Unexpected { what: "a user name" });
        }
        let mut parameters = Parameters::parse(query)?;
        let address = match transport {
            Transport::Tcp => tcp(authority)?,
            Transport::Unix if authority.is_empty() => Address::Unix(parameters.take_path("socket", "the socket")?),
            Transport::Unix => return Err(UriError::Unexpected { what: "a host" }),
            Transport::Vsock => vsock(authority)?,
        };
        let tls = with_tls.then(|| parameters.take_tls()).transpose()?;
        parameters.end()?;
        Ok(Self {
            address,
            export: decode(path, "the name of the export")?,
            tls,
        })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls.is_some() { "s" } else { "" };
        match &self.address {
            Address::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "nbd{s}://{open}{}{close}:{port}", utf8_percent_encode(host, HOST))?;
            }
            Address::Unix(_) => write!(f, "nbd{s}+unix://")?,
            Address::Vsock { cid, port } => write!(f, "nbd{s}+vsock://{cid}:{port}")?,
        }
        write!(f, "/{}", utf8_percent_encode(&self.export, PATH))?;
        let mut separator = '?';
        let mut parameter = |f: &mut fmt::Formatter<'_>, name, value: &[u8]| {
            write!(f, "{separator}{name}={}", percent_encode(value, PATH))?;
            separator = '&';
            Ok(())
        };
        if let Address::Unix(path) = &self.address {
            parameter(f, "socket", path.as_os_str().as_bytes())?;
        }
        let tls = self.tls.as_ref();
        if let Some(path) = tls.and_then(|tls| tls.certificates.as_ref()) {
            parameter(f, "tls-certificates", path.as_os_str().as_bytes())?;
        }
        if let Some(name) = tls.and_then(|tls| tls.hostname.as_ref()) {
            parameter(f, "tls-hostname", name.as_bytes())?;
        }
        Ok(())
    }
}

fn tcp(authority: &str) -> Result<Address, UriError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or(UriError::Missing { what: "a bracket" })?;
            let unexpected = UriError::Unexpected {
                what: "text behind the bracket",
            };
            let port = match behind {
                "" => None,
                _ => Some(behind.strip_prefix(':').ok_or(unexpected)?),
            };
            (host, port)
        }
        None => match authority.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err(UriError::Missing {
                    what: "the pair of brackets around an IPv6 address",
                });
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let host = decode(host, "the host")?;
    if host.is_empty() {
        return Err(UriError::Missing { what: "the host" });
    }
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => number(port, "port")?,
    };
    Ok(Address::Tcp { host, port })
}

fn vsock(authority: &str) -> Result<Address, UriError> {
    let (cid, port) = match authority.split_once(':') {
        None => (authority, ""),
        Some(pair) => pair,
    };
    let cid = match cid {
        "" => HOST_CID,
        cid => number(cid, "context number")?,
    };
    let port = match port {
        "" => u32::from(DEFAULT_PORT),
        port => number(port, "port")?,
    };
    Ok(Address::Vsock { cid, port })
}

fn number<T: FromStr>(text: &str, what: &'static str) -> Result<T, UriError> {
    let wrong = || UriError::Number {
        what,
        found: text.to_owned(),
    };
    // The parser of the standard library takes a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

/// The bytes that a part stands for.
fn decode_bytes(part: &str) -> Result<Vec<u8>, UriError> {
    let mut escapes = part.split('%');
    escapes.next();
    // The decoder takes a percent sign with anything else behind it for itself.
    for escape in escapes {
        let digits = escape.as_bytes().get(..2);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(UriError::Escape { part: part.to_owned() });
        }
    }
    Ok(percent_decode_str(part).collect())
}

fn decode(part: &str, what: &'static str) -> Result<String, UriError> {
    match String::from_utf8(decode_bytes(part)?) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(UriError::NotText { what }),
    }
}

/// What stands behind the question mark, as long as nobody has asked for it.
struct Parameters<'a>(Vec<(String, &'a str)>);

impl<'a> Parameters<'a> {
    fn parse(query: &'a str) -> Result<Self, UriError> {
        let mut parameters: Vec<(String, &str)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, "the name of a parameter")?;
            if parameters.iter().any(|(other, _)| *other == name) {
                return Err(UriError::Repeated { name });
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let index = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(index).1)
    }

    fn take_path(&mut self, name: &str, what: &'static str) -> Result<PathBuf, UriError> {
        let bytes = decode_bytes(self.take(name).unwrap_or_default())?;
        if bytes.is_empty() {
            return Err(UriError::Missing { what });
        }
        Ok(OsString::from_vec(bytes).into())
    }

    fn take_tls(&mut self) -> Result<UriTls, UriError> {
        for (name, only) in [("tls-type", "x509"), ("tls-verify-peer", "1")] {
            if let Some(value) = self.take(name)
                && value != only
            {
                return Err(UriError::Unsupported {
                    name,
                    value: value.to_owned(),
                });
            }
        }
        let has = |parameters: &Self, name| parameters.0.iter().any(|(other, _)| other == name);
        let certificates = has(self, "tls-certificates")
            .then(|| self.take_path("tls-certificates", "the directory of certificates"))
            .transpose()?;
        let hostname = self.take("tls-hostname");
        Ok(UriTls {
            certificates,
            hostname: hostname.map(|name| decode(name, "tls-hostname")).transpose()?,
        })
    }

    /// Nothing must be left.
    fn end(self) -> Result<(), UriError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(UriError::Parameter { name }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<NbdUri, UriError> {
        text.parse()
    }

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri {
            address: Address::Tcp {
                host: host.into(),
                port,
            },
            export: export.into(),
            tls: None,
        }
    }

    #[test]
    fn what_the_specification_shows() {
        for (text, expected) in [
            ("nbd://example.com/disk", tcp("example.com", 10809, "disk")),
            ("nbd://example.com/", tcp("example.com", 10809, "")),
            ("NBD://example.com", tcp("example.com", 10809, "")),
            ("nbd://example.com//disk", tcp("example.com", 10809, "/disk")),
            (
                "nbd://example.com/hello%20world",
                tcp("example.com", 10809, "hello world"),
            ),
            ("nbd://[2001:db8::1]:7/a/../b+c", tcp("2001:db8::1", 7, "a/../b+c")),
            ("nbd://localhost:1", tcp("localhost", 1, "")),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let unix = parse("nbds+unix:///x?socket=%00/abstract&tls-hostname=h&tls-certificates=/etc/pki").unwrap();
        assert_eq!(unix.address, Address::Unix("\0/abstract".into()));
        let tls = UriTls {
            certificates: Some("/etc/pki".into()),
            hostname: Some("h".into()),
        };
        assert_eq!(unix.tls, Some(tls));
        let vsock = |cid, port| Ok(Address::Vsock { cid, port });
        assert_eq!(parse("nbd+vsock://").map(|uri| uri.address), vsock(2, 10809));
        assert_eq!(parse("nbd+vsock://3:99/x").map(|uri| uri.address), vsock(3, 99));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        for (text, expected) in [
            ("http://x/", "it begins with none of"),
            ("nbd+ssh://x/", "it begins with none of"),
            ("nbd:///x", "the host is missing"),
            ("nbd://::1/x", "brackets around an IPv6 address is missing"),
            ("nbd://[::1/x", "a bracket is missing"),
            ("nbd://[::1]7/x", "text behind the bracket"),
            ("nbd://h:70000", "\"70000\" is no port"),
            ("nbd://h:+7", "\"+7\" is no port"),
            ("nbd://h/%zz", "a percent sign"),
            ("nbd://h/%4", "a percent sign"),
            ("nbd://h/%ff", "the name of the export is not text"),
            ("nbd://h/%00", "the name of the export is not text"),
            ("nbd://h/x#y", "a fragment has no place here"),
            ("nbd://me@h/x", "a user name has no place here"),
            ("nbd+unix:///x", "the socket is missing"),
            ("nbd+unix://h/x?socket=s", "a host has no place here"),
            ("nbd://h/x?socket=s", "the parameter \"socket\" is not known"),
            (
                "nbd://h/x?tls-hostname=s",
                "the parameter \"tls-hostname\" is not known",
            ),
            ("nbd+unix:///?socket=a&socket=b", "stands there twice"),
            ("nbds://h/?tls-type=psk", "tls-type=psk is not supported"),
            ("nbds://h/?tls-verify-peer=0", "tls-verify-peer=0 is not supported"),
            (
                "nbds://h/?tls-certificates=",
                "the directory of certificates is missing",
            ),
        ] {
            assert!(error(text).contains(expected), "{text}: {}", error(text));
        }
    }

    #[test]
    fn files_are_told_from_uris() {
        for uri in ["nbd://x", "NBDS://x", "nbd+unix:///", "nbd+what://"] {
            assert!(NbdUri::is_uri(uri), "{uri}");
        }
        for file in ["nbd", "nbd:x", "./nbd://x", "disk.vhd", "nbdx://y", "-"] {
            assert!(!NbdUri::is_uri(file), "{file}");
        }
    }

    fn addresses() -> impl Strategy<Value = Address> {
        let socket = prop::collection::vec(any::<u8>(), 1..30);
        prop_oneof![
            ("[a-z0-9.-]{1,20}|[0-9a-f:]{1,9}::1", any::<u16>()).prop_map(|(host, port)| Address::Tcp { host, port }),
            socket.prop_map(|bytes| Address::Unix(OsString::from_vec(bytes).into())),
            (any::<u32>(), any::<u32>()).prop_map(|(cid, port)| Address::Vsock { cid, port }),
        ]
    }

    proptest! {
        #[test]
        fn uris_there_and_back(
            address in addresses(), export in "[^\\x00]{0,30}", with_tls: bool, directory in "[^\\x00]{1,20}",
            hostname in prop::option::of("[a-z.]{1,20}"), given: bool,
        ) {
            let certificates = given.then(|| directory.into());
            let tls = with_tls.then_some(UriTls { certificates, hostname });
            let uri = NbdUri { address, export, tls };
            prop_assert_eq!(parse(&uri.to_string()), Ok(uri.clone()), "{}", uri);
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "(nbds?(\\+unix|\\+vsock)?://)?\\PC{0,60}") {
            if let Ok(uri) = parse(&text) {
                prop_assert_eq!(parse(&uri.to_string()), Ok(uri));
            }
        }
    }
}
