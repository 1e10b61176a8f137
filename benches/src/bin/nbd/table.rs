//! Results: medians, and ratios inside rounds with their spread.

use std::time::Duration;

use vhd_benches::spread;

use crate::images::Image;
use crate::servers::{Program, Server};

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Requests.
    pub(crate) per_second: f64,
    /// Seconds of the server's processor time per request.
    pub(crate) cpu: f64,
    pub(crate) p99: Duration,
}

/// The measurements of one load.
pub(crate) struct Table {
    pub(crate) title: &'static str,
    /// One sample per round.
    rows: Vec<(Server, Vec<Sample>)>,
}

impl Table {
    pub(crate) fn new(title: &'static str) -> Self {
        Self {
            title,
            rows: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn add(&mut self, server: Server, sample: Sample) {
        match self.rows.iter_mut().find(|(known, _)| *known == server) {
            Some((_, samples)) => samples.push(sample),
            None => self.rows.push((server, vec![sample])),
        }
    }

    pub(crate) fn print(&self) {
        println!();
        println!(
            "| {} | requests/s | to nbdkit | to qemu-nbd | to our dynamic | to the former build | CPU us | p99 us |",
            self.title
        );
        println!("|---|---|---|---|---|---|---|---|");
        for (server, samples) in &self.rows {
            let median_of = |value: fn(&Sample) -> f64| spread(samples.iter().map(value).collect()).0;
            let ratio = |is_base: &dyn Fn(&Server) -> bool| self.ratio(server, samples, is_base);
            println!(
                "| {} | {:.0} | {} | {} | {} | {} | {:.1} | {:.0} |",
                server.name(),
                median_of(|sample| sample.per_second),
                ratio(&|base| base.program == Program::Nbdkit),
                ratio(&|base| is_qemu(base) && base.tls == server.tls && rivals(server.image, base.image)),
                ratio(&|base| base.program == Program::Vhd && base.image == Image::Dynamic && !base.tls),
                ratio(&|base| {
                    server.program == Program::Vhd && base.program == Program::Former && base.image == server.image
                }),
                median_of(|sample| sample.cpu * 1e6),
                median_of(|sample| sample.p99.as_secs_f64() * 1e6),
            );
        }
    }

    /// The ratios to the best of the bases of each round: median, minimum, maximum.
    fn ratio(&self, server: &Server, samples: &[Sample], is_base: &dyn Fn(&Server) -> bool) -> String {
        let bases: Vec<&Vec<Sample>> = self
            .rows
            .iter()
            .filter(|(base, _)| base != server && is_base(base))
            .map(|(_, samples)| samples)
            .collect();
        if bases.is_empty() || (is_qemu(server) && is_base(server)) {
            return String::new();
        }
        let ratios = samples.iter().enumerate().map(|(round, sample)| {
            let best = bases.iter().filter_map(|base| base.get(round));
            sample.per_second / best.map(|sample| sample.per_second).fold(f64::MIN_POSITIVE, f64::max)
        });
        let (median, min, max) = spread(ratios.collect());
        format!("{median:.2} ({min:.2} to {max:.2})")
    }
}

fn is_qemu(server: &Server) -> bool {
    matches!(server.program, Program::Qemu(..))
}

/// Whether qemu-nbd on `base` is what a server of `image` is compared with: it can't read chains, and has no use for raw
/// files here.
fn rivals(image: Image, base: Image) -> bool {
    image == base || (base == Image::Dynamic && matches!(image, Image::Chain | Image::Pieces))
}
