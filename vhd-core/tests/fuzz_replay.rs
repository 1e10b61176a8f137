//! The fuzz targets of images, records and deltas, for a bounded time.
#![cfg(not(loom))]
#![allow(unreachable_pub, reason = "parts of another package")]

#[path = "../../fuzz/src/change_image.rs"]
mod change_image;
#[path = "../../fuzz/src/delta_import.rs"]
mod delta_import;
#[path = "../../fuzz/src/lab.rs"]
mod lab;
#[path = "../../fuzz/src/locators.rs"]
mod locators;
#[path = "../../fuzz/src/open_image.rs"]
mod open_image;
#[path = "../../fuzz/src/probe.rs"]
mod probe;
#[path = "../../fuzz/src/records.rs"]
mod records;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn changed_images() {
    replay::replay("change_image", 3000, change_image::change_image);
}

#[test]
fn deltas() {
    replay::replay("delta_import", 300, delta_import::delta_import);
}

#[test]
fn images() {
    replay::replay("open_image", 5000, open_image::open_image);
}

#[test]
fn locators_of_children() {
    replay::replay("locators", 500, locators::locators);
}

#[test]
fn records_of_all_kinds() {
    replay::replay("records", 1500, records::records);
}
