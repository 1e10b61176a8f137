//! The fuzz target of images, for a bounded time.
#![cfg(not(loom))]

#[allow(unreachable_pub, reason = "a part of another package")]
#[path = "../../fuzz/src/open_image.rs"]
mod open_image;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn images() {
    replay::replay("open_image", 5000, open_image::open_image);
}
