//! The fuzz targets of NBD, for a bounded time.

#[allow(unreachable_pub, missing_docs, reason = "a part of another package")]
#[path = "../../fuzz/src/nbd.rs"]
mod nbd;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn handshakes() {
    let target = nbd::Target::new();
    replay::replay("nbd_handshake", 1000, |input| target.handshake(input));
}

#[test]
fn transmissions() {
    let target = nbd::Target::new();
    replay::replay("nbd_transmission", 1000, |input| target.transmission(input));
}
