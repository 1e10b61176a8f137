//! A copy of a volume's keys that follows them, so that nobody has to ask again and again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};

use super::EtcdEngine;
use crate::id::VolumeId;

/// How long until the keys are read again when the connection was lost.
const AGAIN: Duration = Duration::from_millis(200);

/// The keys of a volume by their names below it; nothing while they are not followed.
#[derive(Default)]
pub(super) struct View(Mutex<Option<BTreeMap<String, Vec<u8>>>>);

/// The keys, as they were at one moment. Who has this keeps changes away.
pub(super) struct Seen<'v>(MutexGuard<'v, Option<BTreeMap<String, Vec<u8>>>>);

impl View {
    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<String, Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> Option<Seen<'_>> {
        let keys = self.lock();
        keys.is_some().then_some(Seen(keys))
    }
}

impl Seen<'_> {
    fn keys(&self) -> &BTreeMap<String, Vec<u8>> {
        self.0.as_ref().expect("seen")
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.keys().contains_key(name)
    }

    pub(super) fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.keys().get(name).cloned()
    }

    /// The names and values below a name.
    pub(super) fn below(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let keys = self.keys().iter();
        keys.filter_map(|(key, value)| Some((key.strip_prefix(name)?.to_owned(), value.clone())))
            .collect()
    }
}

impl EtcdEngine {
    /// Follows the keys of a volume from now on, once in the life of the engine; `changed` is told of each change, and when the
    /// connection was lost or found.
    pub fn follow(&self, volume: VolumeId, changed: impl Fn() + Send + Sync + 'static) {
        let view = Arc::new(View::default());
        if self.view.set((volume, Arc::clone(&view))).is_err() {
            return;
        }
        let (client, prefix) = (self.client.clone(), self.key(volume, ""));
        self.runtime.spawn(async move {
            loop {
                if let Err(error) = follow(&client, &prefix, &view, &changed).await {
                    tracing::debug!(%error, "the keys are not followed any more");
                }
                *view.lock() = None;
                changed();
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// The copy of a volume's keys, if they are followed now.
    pub(super) fn view_of(&self, volume: VolumeId) -> Option<Seen<'_>> {
        let (followed, view) = self.view.get()?;
        (*followed == volume).then(|| view.seen())?
    }
}

async fn follow(client: &Client, prefix: &str, view: &View, changed: &impl Fn()) -> Result<(), etcd_client::Error> {
    let name = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
    let read = client
        .kv_client()
        .get(prefix, Some(GetOptions::new().with_prefix()))
        .await?;
    let keys = read.kvs().iter().map(|pair| (name(pair.key()), pair.value().to_vec()));
    *view.lock() = Some(keys.collect());
    changed();
    let revision = read.header().map_or(0, etcd_client::ResponseHeader::revision);
    let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
    let mut stream = client.watch_client().watch(prefix, Some(options)).await?;
    while let Some(message) = stream.message().await? {
        if message.canceled() {
            break;
        }
        if message.events().is_empty() {
            continue;
        }
        if let Some(keys) = view.lock().as_mut() {
            for event in message.events() {
                match (event.kv(), event.event_type()) {
                    (Some(pair), EventType::Put) => drop(keys.insert(name(pair.key()), pair.value().to_vec())),
                    (Some(pair), EventType::Delete) => drop(keys.remove(&name(pair.key()))),
                    (None, _) => {}
                }
            }
        }
        changed();
    }
    Ok(())
}
