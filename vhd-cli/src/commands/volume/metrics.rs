//! What an agent tells Prometheus, over HTTP.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::codes::Kind;
use crate::failure::Failure;
use crate::output;

/// How long a client may take for a request, and for reading the answer. There is one at a time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request at most.
const REQUEST: usize = 8192;

/// What is known of a node's part in a volume.
pub(super) struct Sample {
    pub(super) volume: String,
    pub(super) node: String,
    /// The epoch that the node coordinates, if it does.
    pub(super) epoch: Option<u64>,
    /// How often it became the coordinator, and how often it tried in vain, since the agent began.
    pub(super) terms: u64,
    pub(super) failures: u64,
}

/// Answers at an address, for as long as the process lives.
pub(super) fn serve(address: SocketAddr, look: impl Fn() -> Vec<Sample> + Send + 'static) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => Kind::AddressInUse,
            _ => Kind::Listen,
        };
        Failure::new(kind, format!("can't listen on {address} for metrics: {error}"))
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    output::eprint(&format!("vhd: metrics on http://{bound}/metrics\n"));
    let answer = move || {
        for stream in listener.incoming() {
            match stream {
                // A client that goes away in the middle gets no answer.
                Ok(stream) => drop(answer(&stream, &look)),
                // No descriptors are left, for a moment.
                Err(_) => thread::sleep(PATIENCE),
            }
        }
    };
    let thread = thread::Builder::new().name("metrics".into());
    thread.spawn(answer).map_err(failed)?;
    Ok(())
}

fn answer(mut stream: &TcpStream, look: &impl Fn() -> Vec<Sample>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = head(stream)?;
    let (status, body) = match request.starts_with(b"GET /metrics ") {
        true => ("200 OK", text(&look())),
        false => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// A request up to its empty line: a client that is answered before it has sent all of it may not read the answer.
fn head(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let begin = Instant::now();
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = stream.read(&mut piece)?;
        head.extend_from_slice(&piece[..len]);
        if len == 0 || head.len() > REQUEST || begin.elapsed() > PATIENCE {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(head)
}

/// The samples in Prometheus' format. Names of volumes and nodes have no character that it would read otherwise.
fn text(samples: &[Sample]) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Sample) -> Option<u64>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for sample in samples {
            let Sample { volume, node, .. } = sample;
            if let Some(value) = value(sample) {
                let _ = writeln!(text, "{name}{{volume=\"{volume}\",node=\"{node}\"}} {value}");
            }
        }
    };
    let coordinates = "Whether the node coordinates the volume.";
    family("vhd_volume_coordinates", "gauge", coordinates, &|sample| {
        Some(sample.epoch.is_some().into())
    });
    let epoch = "The epoch in which the node coordinates the volume.";
    family("vhd_volume_epoch", "gauge", epoch, &|sample| sample.epoch);
    let terms = "How often the node became the coordinator since its agent began.";
    family("vhd_volume_terms_total", "counter", terms, &|sample| Some(sample.terms));
    let failures = "How often the node tried to coordinate and failed since its agent began.";
    family("vhd_volume_failures_total", "counter", failures, &|sample| {
        Some(sample.failures)
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_head_and_a_line_per_volume_that_has_a_value() {
        let sample = |volume: &str, epoch| Sample {
            volume: volume.into(),
            node: "a".into(),
            epoch,
            terms: 2,
            failures: 0,
        };
        let text = text(&[sample("v", Some(7)), sample("w", None)]);
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE ")).count(), 4);
        for line in [
            "vhd_volume_coordinates{volume=\"v\",node=\"a\"} 1",
            "vhd_volume_coordinates{volume=\"w\",node=\"a\"} 0",
            "vhd_volume_epoch{volume=\"v\",node=\"a\"} 7",
            "vhd_volume_terms_total{volume=\"w\",node=\"a\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("epoch{volume=\"w\""));
    }
}
