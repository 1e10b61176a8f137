//! What a disk would start: kernel, initramfs and command line, as its boot loader is configured. Read-only.
//!
//! ```text
//!   find_boot     which of these, in this order                                   mod.rs
//!      +-- entries of the Boot Loader Specification, the default or the newest    entries.rs
//!      +-- grub.cfg, its default entry                                            grub/
//!      +-- the newest vmlinuz-VERSION with its initramfs                          images.rs
//!      +-- the links vmlinuz and initrd.img                                       images.rs
//!   Volumes       files by the paths that configurations name                     volumes.rs
//! ```
//!
//! Nothing that the disk says is trusted: files of configuration are read up to a limit, their language has no loops here,
//! and what is found is a path in one of the disk's own file systems.

mod entries;
mod environment;
mod grub;
mod images;
mod version;
mod volumes;

pub use volumes::BootFile;

use crate::files::Files;
use volumes::Volumes;

/// What a disk would start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel.
    pub kernel: BootFile,
    /// The parts of the initramfs, in order.
    pub initrds: Vec<BootFile>,
    /// The kernel's command line. `None` where nothing on the disk says one.
    pub options: Option<String>,
    /// What named the kernel, for people.
    pub source: String,
    /// The file system that holds the system, as far as that can be seen, by its position.
    pub root: Option<usize>,
}

/// What was found, and what was passed over with the reason.
#[derive(Debug)]
pub struct Search {
    /// What the disk would start, if that was found.
    pub boot: Option<Boot>,
    /// Configurations that could not be used.
    pub remarks: Vec<String>,
}

/// An entry of a boot loader's menu.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    title: String,
    kernel: String,
    initrds: Vec<String>,
    options: String,
}

/// Looks for what a disk would start in its file systems, each with its name for people. The first configuration whose files
/// are all there is taken: entries of the Boot Loader Specification, then `grub.cfg`, then the newest kernel by its name,
/// then the links in the root directory.
#[must_use]
pub fn find_boot(volumes: &[(String, &Files)]) -> Search {
    let mut volumes = Volumes::new(volumes);
    let found = entries::find(&mut volumes)
        .or_else(|| grub::find(&mut volumes))
        .or_else(|| images::find_newest(&mut volumes))
        .or_else(|| images::find_links(&mut volumes));
    let root = volumes.root();
    Search {
        boot: found.map(|boot| Boot { root, ..boot }),
        remarks: volumes.into_remarks(),
    }
}

impl Entry {
    /// The files that an entry names, or a remark on what is missing. `home` is the file system with the configuration.
    fn locate(&self, volumes: &mut Volumes<'_>, home: usize, configuration: &str) -> Option<Boot> {
        let mut find = |path: &str| {
            let found = volumes.find(home, path);
            if found.is_none() {
                let (title, place) = (&self.title, volumes.shown(home, configuration));
                volumes.remark(format!("{place}: \"{title}\" names {path}, which is not there"));
            }
            found
        };
        Some(Boot {
            kernel: find(&self.kernel)?,
            initrds: self.initrds.iter().map(|path| find(path)).collect::<Option<_>>()?,
            options: Some(self.options.clone()),
            source: format!("\"{}\" of {}", self.title, volumes.shown(home, configuration)),
            root: None,
        })
    }
}
