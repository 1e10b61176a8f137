//! How many durable allocations a coordinator answers per second, over unix sockets, with 1 and 32 clients; each asks for one block
//! at a time and waits for the answer.
//!
//! `cargo run --release -p csv-lock --example allocations -- DIR [SECONDS]`; DIR is on the file system to measure and is left empty.
//! With the feature `etcd` and `ETCD=HOST:PORT` guarded transactions of that etcd follow: the peer.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use csv_lock::{
    Answer, Ask, Client, ClusterId, HostVolume, LocalEngine, Node, NodeId, Outcome, SystemClock, Table, UnixNet,
    VolumeFormat, VolumeId, incoming, init_volume,
};
use uuid::Uuid;

const TABLE: Table = Table {
    offset: 512,
    entries: 1 << 20,
    block: 512,
    bitmap: 0,
    footer: 0,
    full: false,
};
const LIMIT: Duration = Duration::from_secs(30);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().expect("a directory");
    let seconds = arguments.next().map_or(5, |seconds| seconds.parse().expect("seconds"));
    let dir = tempfile::tempdir_in(dir).expect("a directory that can be written");
    let format = VolumeFormat::new(VolumeId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2)), "v");
    init_volume(&HostVolume::new(dir.path()), &format).expect("a volume");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| node(dir.path(), &format).run(&|| stop.load(Ordering::Relaxed)));
        for clients in [1, 32] {
            let rate = measure(clients, seconds, |index, end, count| {
                client(dir.path(), &format, clients, index, end, count)
            });
            println!("{clients:3} clients: {rate:.0} allocations/s");
        }
        stop.store(true, Ordering::Relaxed);
    });
    #[cfg(feature = "etcd")]
    if let Ok(endpoint) = std::env::var("ETCD") {
        for clients in [1, 32] {
            let rate = measure(clients, seconds, |index, end, count| etcd(&endpoint, index, end, count));
            println!("{clients:3} clients: {rate:.0} guarded transactions/s of etcd");
        }
    }
}

fn engine(dir: &Path, name: &str) -> LocalEngine {
    LocalEngine::open(dir, &dir.join(".csv/registry.db"), NodeId(name.into()), None).expect("a registry")
}

fn node(dir: &Path, format: &VolumeFormat) -> Node<SystemClock, UnixNet, HostVolume, LocalEngine> {
    Node {
        clock: SystemClock,
        net: UnixNet::default(),
        volume: HostVolume::new(dir),
        engine: engine(dir, "n"),
        format: format.clone(),
        node: NodeId("n".into()),
        address: dir.join(".csv/n.sock").to_str().expect("a path in Unicode").to_owned(),
        patience: Duration::from_millis(20),
    }
}

/// Runs `work` in so many threads for so long: what all of them counted, per second.
fn measure(clients: u64, seconds: u64, work: impl Fn(u64, Instant, &AtomicU64) + Sync) -> f64 {
    let count = AtomicU64::new(0);
    let begin = Instant::now();
    thread::scope(|scope| {
        for index in 0..clients {
            let (work, count) = (&work, &count);
            scope.spawn(move || work(index, begin + Duration::from_secs(seconds), count));
        }
    });
    #[allow(clippy::cast_precision_loss)]
    let counted = count.load(Ordering::Relaxed) as f64;
    counted / begin.elapsed().as_secs_f64()
}

/// A client with a disk of its own.
fn client(dir: &Path, format: &VolumeFormat, clients: u64, index: u64, end: Instant, count: &AtomicU64) {
    let name = format!("{clients}-{index}");
    let id = Uuid::from_u128(u128::from(clients) << 32 | u128::from(index));
    let mut client = Client::new(
        SystemClock,
        UnixNet::default(),
        engine(dir, &name),
        format.clone(),
        NodeId(name.clone()),
        id,
    );
    let mut bytes = vec![0; 512];
    bytes.resize(512 + 4 * TABLE.entries as usize, 0xff);
    std::fs::write(dir.join(incoming(&name)), bytes).expect("a prepared file");
    let path = format!("{name}.vhd");
    let create = Ask::Create {
        path: path.clone(),
        incoming: name,
        table: Some(TABLE),
    };
    client.ask(create, LIMIT).expect("a disk");
    let Answer::Outcome(Outcome::Writer(generation)) =
        client.ask(Ask::Open { path: path.clone() }, LIMIT).expect("the right")
    else {
        panic!("no right to write");
    };
    for block in 0..TABLE.entries {
        if Instant::now() >= end {
            return;
        }
        let alloc = Ask::Alloc {
            path: path.clone(),
            generation,
            blocks: vec![block],
        };
        client.ask(alloc, LIMIT).expect("a place");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The peer: a transaction that puts a key if it is not there yet.
#[cfg(feature = "etcd")]
fn etcd(endpoint: &str, index: u64, end: Instant, count: &AtomicU64) {
    use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut client = Client::connect([endpoint], None).await.expect("etcd");
        for block in 0.. {
            if Instant::now() >= end {
                return;
            }
            let key = format!("/bench/{}/{index}/{block}", std::process::id());
            let free = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
            let put = TxnOp::put(key, block.to_string(), None);
            client
                .txn(Txn::new().when([free]).and_then([put]))
                .await
                .expect("an answer");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
}
