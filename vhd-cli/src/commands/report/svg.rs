//! Trees and maps as SVG inside the page.

use std::fmt::Write as _;

use super::page::escaped;
use crate::commands::tree::TreeReport;
use crate::diagnosis::{Diagnosis, Weight};

/// Pixels of a line of a tree.
const LINE: usize = 24;
/// Pixels by which a child stands further to the right, and the deepest level that is drawn so.
const INDENT: usize = 22;
const DRAWN_LEVELS: usize = 24;
/// Pixels of a letter, on the safe side.
const LETTER: usize = 9;
/// Pixels of a map's cell.
const CELL: usize = 3;
const MAP_HEIGHT: usize = 18;
/// Colours of layers by their depth; deeper ones share the last.
const LAYERS: [&str; 6] = ["#1f5fbf", "#d9822b", "#3d9970", "#a05195", "#b5a642", "#8899a6"];

/// The trees, each image below its parent, coloured by the worst that was found of it.
pub(super) fn trees(diagnosis: &Diagnosis) -> String {
    let tree = &diagnosis.tree;
    let rows: Vec<Row> = tree
        .branches
        .iter()
        .map(|branch| Row::of(diagnosis, tree, branch.file, branch.depth()))
        .collect();
    let width = rows
        .iter()
        .map(|row| row.x() + 20 + LETTER * row.text.chars().count())
        .max()
        .unwrap_or(1);
    let mut svg = format!(
        "<svg class=\"tree\" role=\"img\" aria-label=\"the images and their parents\" width=\"{width}\" height=\"{}\">\n",
        LINE * rows.len().max(1)
    );
    // The line in which the last image of each level stands.
    let mut above: Vec<usize> = Vec::new();
    for (line, row) in rows.iter().enumerate() {
        let y = line * LINE + LINE / 2;
        above.truncate(row.depth);
        if let Some(&parent) = above.last() {
            let (x, parent_y) = (row.x() - INDENT, parent * LINE + LINE / 2);
            push(
                &mut svg,
                format_args!("<path d=\"M{x} {parent_y}V{y}H{}\"/>\n", row.x()),
            );
        }
        above.push(line);
    }
    for (line, row) in rows.iter().enumerate() {
        let y = line * LINE + LINE / 2;
        push(
            &mut svg,
            format_args!(
                "<circle class=\"{}\" cx=\"{}\" cy=\"{y}\" r=\"6\"/>",
                row.class,
                row.x()
            ),
        );
        push(
            &mut svg,
            format_args!(
                "<text x=\"{}\" y=\"{}\">{}</text>\n",
                row.x() + 12,
                y + 5,
                escaped(&row.text)
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// An image's line in the drawing.
struct Row {
    depth: usize,
    text: String,
    class: &'static str,
}

impl Row {
    fn of(diagnosis: &Diagnosis, tree: &TreeReport, file: usize, depth: usize) -> Self {
        let worst = diagnosis
            .findings
            .iter()
            .filter(|finding| finding.member == file)
            .map(|finding| finding.severity)
            .min();
        Self {
            depth: depth.min(DRAWN_LEVELS),
            text: tree.files[file].to_string(),
            class: worst.map_or("sound", Weight::name),
        }
    }

    fn x(&self) -> usize {
        10 + self.depth * INDENT
    }
}

/// A map: what is stored, coloured by the depth of the layer that stores it.
pub(super) fn map(cells: &[Option<u32>]) -> String {
    let width = CELL * cells.len();
    let mut svg = format!(
        "<svg class=\"map\" role=\"img\" aria-label=\"allocation map\" width=\"{width}\" height=\"{MAP_HEIGHT}\">"
    );
    push(
        &mut svg,
        format_args!("<rect class=\"hole\" width=\"{width}\" height=\"{MAP_HEIGHT}\"/>"),
    );
    let mut at = 0;
    for run in cells.chunk_by(|a, b| a == b) {
        if let Some(depth) = run[0] {
            let (x, width) = (at * CELL, run.len() * CELL);
            push(
                &mut svg,
                format_args!(
                    "<rect fill=\"{}\" x=\"{x}\" width=\"{width}\" height=\"{MAP_HEIGHT}\"/>",
                    colour(depth)
                ),
            );
        }
        at += run.len();
    }
    svg.push_str("</svg>");
    svg
}

/// What the colours of maps mean.
pub(super) fn legend() -> String {
    let mut text = String::from("<p class=\"legend\">");
    for (depth, colour) in LAYERS.iter().enumerate() {
        let what = match depth {
            0 => "the image itself".to_owned(),
            1 => "its parent".to_owned(),
            depth if depth + 1 == LAYERS.len() => format!("{depth} or more layers below"),
            depth => format!("{depth} layers below"),
        };
        push(
            &mut text,
            format_args!("<span style=\"background:{colour}\"></span> {what} "),
        );
    }
    text.push_str("<span class=\"hole\"></span> not stored, or zero</p>\n");
    text
}

fn colour(depth: u32) -> &'static str {
    let depth = usize::try_from(depth).unwrap_or(usize::MAX);
    LAYERS[depth.min(LAYERS.len() - 1)]
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a string takes everything");
}
