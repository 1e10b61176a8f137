//! The fuzz targets of NBD, for a bounded time.

#[allow(unreachable_pub, missing_docs, reason = "a part of another package")]
#[path = "../../fuzz/src/nbd.rs"]
mod nbd;
#[allow(unreachable_pub, missing_docs, reason = "a part of another package")]
#[path = "../../fuzz/src/nbd_client.rs"]
mod nbd_client;
#[allow(unreachable_pub, missing_docs, reason = "a part of another package")]
#[path = "../../fuzz/src/nbd_uri.rs"]
mod nbd_uri;
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

#[test]
fn servers() {
    let target = nbd_client::Target::new();
    replay::replay("nbd_client", 1000, |input| target.run(input));
}

#[test]
fn uris() {
    replay::replay("nbd_uri", 10_000, nbd_uri::run);
}
