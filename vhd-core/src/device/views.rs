//! The snapshots that are read in the open files of a disk in use: layers that become one become one for all of them.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use vhd_block::Users;

use super::layered::{Joined, Reopened};
use super::live::hold;
use super::{Layer, LayeredDevice, LiveDevice};
use crate::image::Image;

/// How long readers that have just gone may take to be gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How long requests that are on their way may take: a flush takes as long as it takes.
const LONGEST_REQUEST: Duration = Duration::from_secs(20);

/// Waits until nobody has these images any more. Who is on his way with a former chain has its files, and their locks, for a
/// moment.
pub(crate) fn wait_until_closed(images: &[Weak<Image>]) {
    soon(LONGEST_REQUEST, || images.iter().all(|image| image.strong_count() == 0));
}

/// Waits for something that is about to happen; whether it did.
pub(crate) fn soon(patience: Duration, done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > patience {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// What goes along when layers of a disk become one.
#[derive(Default)]
pub(super) struct Companions {
    views: Mutex<Vec<Weak<LiveDevice>>>,
    marks: Mutex<Vec<Weak<LayerMark>>>,
}

/// A layer of a disk in use, wherever in its chain it is by now.
pub struct LayerMark(Mutex<Weak<Image>>);

impl LayerMark {
    fn of(image: &Arc<Image>) -> Self {
        Self(Mutex::new(Arc::downgrade(image)))
    }

    /// How many layers are above it in a chain of the disk; `None` if it is not in that one, or its content is in one file
    /// with that of another layer above it.
    #[must_use]
    pub fn depth_in(&self, chain: &LayeredDevice) -> Option<usize> {
        let marked = self.image().as_ptr();
        (0..chain.layers().len()).find(|&depth| {
            let image = chain.shared_image(depth);
            image.is_some_and(|image| std::ptr::eq(Arc::as_ptr(image), marked))
        })
    }

    fn image(&self) -> Weak<Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn move_to(&self, image: &Arc<Image>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(image);
    }
}

impl LiveDevice {
    /// The disk of the layer so far below the leaf, for reading only, in the same open files. When layers of this disk
    /// become one they do in it too. `None` if that is no VHD, or the leaf itself.
    #[must_use]
    pub fn view(&self, depth: usize) -> Option<Arc<Self>> {
        let chain = self.present().from_layer(depth).filter(|_| depth > 0)?;
        let view = Arc::new(Self::new(Arc::new(chain)));
        add(&self.companions.views, &view);
        Some(view)
    }

    /// Marks the layer so far below the leaf; `None` if that is no VHD.
    #[must_use]
    pub fn mark(&self, depth: usize) -> Option<Arc<LayerMark>> {
        let mark = Arc::new(LayerMark::of(self.present().shared_image(depth)?));
        add(&self.companions.marks, &mark);
        Some(mark)
    }

    /// Whether somebody in this process reads a layer otherwise than through the layer above it. Those who read it there
    /// do not notice when what that one holds is written to it.
    pub(crate) fn is_read_alone(&self, depth: usize) -> bool {
        let present = self.present();
        let Some(image) = present.shared_image(depth) else {
            return false;
        };
        let views = self.views();
        let chains: Vec<_> = views.iter().map(|view| view.present()).collect();
        let through = chains.iter().chain([&present]).map(|chain| chain.uses_below_top(image));
        Arc::strong_count(image) > through.sum()
    }

    /// `layer` reads what `count` layers from `first` on read, and takes their place, for the disk and all who read it
    /// beside: at one instant, in which no request to any of them runs. Nothing is read or written. `false` if the disk does
    /// not have those layers (any more).
    pub fn join_layers(&self, first: &Arc<Image>, count: usize, layer: &Layer) -> bool {
        let joined = &Joined { first, count, layer };
        let views = self.views();
        let mut disks: Vec<&Self> = views.iter().map(|view| &**view).collect();
        // In one order, as in a switch.
        disks.sort_by_key(|disk| std::ptr::from_ref(*disk).addr());
        disks.push(self);
        let Some((mut held, _)) = hold(&disks, Users::Writers) else {
            return false;
        };
        // INV-73: what reads through one of the layers is replaced everywhere, or nowhere.
        if held
            .last()
            .is_none_or(|present| present.value().joined(joined).is_none())
        {
            return false;
        }
        for held in &mut held {
            if let Some(next) = held.value().joined(joined) {
                held.replace(&Arc::new(next));
            }
        }
        self.move_marks(joined);
        true
    }

    /// What was above the topmost layer is above the one; what was above one of the others nobody can tell any more.
    fn move_marks(&self, joined: &Joined<'_>) {
        let Layer::Vhd(image) = joined.layer else { return };
        let first = Arc::downgrade(joined.first);
        let moved = alive(&self.companions.marks).into_iter();
        moved
            .filter(|mark| mark.image().ptr_eq(&first))
            .for_each(|mark| mark.move_to(image));
    }

    /// What marked a layer marks it as it was opened anew.
    pub(super) fn move_marks_to(&self, reopened: &[Reopened]) {
        for mark in alive(&self.companions.marks) {
            let marked = mark.image();
            let layer = reopened
                .iter()
                .find(|layer| marked.as_ptr() == Arc::as_ptr(&layer.former));
            if let Some(layer) = layer {
                mark.move_to(&layer.now);
            }
        }
    }

    pub(super) fn views(&self) -> Vec<Arc<Self>> {
        alive(&self.companions.views)
    }
}

fn add<T>(list: &Mutex<Vec<Weak<T>>>, item: &Arc<T>) {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.retain(|item| item.strong_count() > 0);
    list.push(Arc::downgrade(item));
}

fn alive<T>(list: &Mutex<Vec<Weak<T>>>) -> Vec<Arc<T>> {
    let list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.iter().filter_map(Weak::upgrade).collect()
}
