//! The table: rates, and ratios of the same round.

use std::collections::{BTreeMap, BTreeSet};

use crate::fio::Work;
use crate::peers::{BARE, NATIVE, OURS, PASSTHROUGH, PEERS};

/// Rates of one program on one kind of image, a value for each round.
type Rates = BTreeMap<&'static str, Vec<f64>>;

#[derive(Default)]
pub(crate) struct Report(BTreeMap<Work, BTreeMap<&'static str, Rates>>);

impl Report {
    pub(crate) fn add(&mut self, work: Work, image: &'static str, program: &'static str, rate: f64) {
        let rates = self.0.entry(work).or_default().entry(image).or_default();
        rates.entry(program).or_default().push(rate);
    }

    /// One row for each kind of work and of image; `-` where a program cannot do it.
    pub(crate) fn print(&self) {
        println!(
            "| MB/s (median) | image | raw file | bare fuser | vhd mount | {} | of the raw file | of bare fuser | of the best other |",
            PEERS.join(" | ")
        );
        println!("|{}", "---|".repeat(8 + PEERS.len()));
        for (work, images) in &self.0 {
            let raw = images.get("raw").cloned().unwrap_or_default();
            let order: BTreeSet<_> = images.keys().filter(|image| **image != "raw").collect();
            if let Some(passed) = raw.get(PASSTHROUGH) {
                let with = |other: &str| spread(&ratios(passed, raw.get(other)));
                let none = " - |".repeat(PEERS.len());
                let (native, bare, ours) = (cell(raw.get(NATIVE)), cell(raw.get(BARE)), cell(Some(passed)));
                println!(
                    "| {work} | raw layer, passthrough | {native} | {bare} | {ours} |{none} {} | {} | - |",
                    with(NATIVE),
                    with(BARE)
                );
            }
            for image in order {
                let rates = &images[image];
                let Some(ours) = rates.get(OURS) else { continue };
                let peers: Vec<String> = PEERS.iter().map(|peer| cell(rates.get(peer))).collect();
                let others = PEERS
                    .iter()
                    .filter_map(|peer| rates.get(peer))
                    .max_by(|a, b| median(a).total_cmp(&median(b)));
                println!(
                    "| {work} | {image} | {} | {} | {} | {} | {} | {} | {} |",
                    cell(raw.get(NATIVE)),
                    cell(raw.get(BARE)),
                    cell(Some(ours)),
                    peers.join(" | "),
                    spread(&ratios(ours, raw.get(NATIVE))),
                    spread(&ratios(ours, raw.get(BARE))),
                    spread(&ratios(ours, others)),
                );
            }
        }
    }
}

fn ratios(ours: &[f64], others: Option<&Vec<f64>>) -> Vec<f64> {
    let others = others.map_or(&[][..], Vec::as_slice);
    ours.iter().zip(others).map(|(ours, other)| ours / other).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn cell(values: Option<&Vec<f64>>) -> String {
    values.map_or("-".into(), |values| format!("{:.0}", median(values)))
}

fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "-".into();
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2} to {most:.2})", median(values))
}
