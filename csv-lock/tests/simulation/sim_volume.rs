//! A file system that all nodes share. What a request names is looked up when it begins, and changed when it ends, which may be
//! long after: as in a kernel, a directory that was found stays found when its name goes.

use std::collections::{BTreeMap, HashMap};
use std::io::{Error, ErrorKind, Result};

use csv_lock::{VolumeFile, VolumeIo};

use crate::world::{Handle, Inner, Micros};

/// The table of the workload's disks: its place, its entries, and the bytes of a block.
pub(crate) const TABLE: csv_lock::Table = csv_lock::Table {
    offset: 512,
    entries: 24,
    block: 1024,
    bitmap: 512,
    footer: 512,
    full: true,
};
/// What a disk of the workload begins with.
pub(crate) const MAGIC: &[u8; 4] = b"DISK";

type Id = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    File(Id),
    Dir(Id),
}

/// The files and directories.
pub(crate) struct FileSystem {
    dirs: HashMap<Id, BTreeMap<String, Entry>>,
    files: HashMap<Id, Vec<u8>>,
    next: Id,
    /// Rules that this file system breaks.
    pub(crate) weakness: Weakness,
    stale: HashMap<(usize, String), (Micros, bool)>,
    /// What must never happen, and did.
    pub(crate) violations: Vec<String>,
}

/// What a file system may get wrong, to see that the protocol needs it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) enum Weakness {
    #[default]
    None,
    /// The check after the append finds nothing, ever.
    Blind,
    /// A node believes for a second that a name does not exist.
    StaleNames,
}

impl Default for FileSystem {
    fn default() -> Self {
        Self {
            dirs: [(0, BTreeMap::new())].into(),
            files: HashMap::new(),
            next: 1,
            weakness: Weakness::None,
            stale: HashMap::new(),
            violations: Vec::new(),
        }
    }
}

impl FileSystem {
    /// The directory that a path's last name is in, and that name.
    fn parent<'p>(&self, path: &'p str) -> Result<(Id, &'p str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(dir)?, name))
    }

    fn dir(&self, path: &str) -> Result<Id> {
        let mut id = 0;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match self.dirs.get(&id).and_then(|dir| dir.get(part)) {
                Some(Entry::Dir(next)) => id = *next,
                _ => return Err(ErrorKind::NotFound.into()),
            }
        }
        Ok(id)
    }

    fn entry(&self, dir: Id, name: &str) -> Option<Entry> {
        self.dirs.get(&dir)?.get(name).copied()
    }

    fn insert(&mut self, dir: Id, name: &str, entry: Entry) -> Result<()> {
        let dir = self.dirs.get_mut(&dir).ok_or(ErrorKind::NotFound)?;
        dir.insert(name.to_owned(), entry);
        Ok(())
    }

    fn new_id(&mut self) -> Id {
        self.next += 1;
        self.next
    }

    /// The files of the root directory with their content.
    pub(crate) fn root_files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.dirs[&0].iter().filter_map(|(name, entry)| match entry {
            Entry::File(id) => Some((name.clone(), self.files[id].clone())),
            Entry::Dir(_) => None,
        });
        files.collect()
    }

    /// The names in `.csv`.
    pub(crate) fn protocol_names(&self) -> Vec<String> {
        self.dir(".csv")
            .map(|dir| self.dirs[&dir].keys().cloned().collect())
            .unwrap_or_default()
    }

    fn write(&mut self, id: Id, bytes: &[u8], offset: u64) {
        let offset = usize::try_from(offset).unwrap();
        let file = self.files.entry(id).or_default();
        let before = file.clone();
        if file.len() < offset + bytes.len() {
            file.resize(offset + bytes.len(), 0);
        }
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        let wrong = table_violation(&before, file);
        self.violations.extend(wrong);
    }
}

/// A table entry is written once, and no place is given twice.
fn table_violation(before: &[u8], after: &[u8]) -> Option<String> {
    if !before.starts_with(MAGIC) {
        return None;
    }
    let (old, new) = (entries(before), entries(after));
    for (block, (old, new)) in old.iter().zip(&new).enumerate() {
        if old != new && *old != u32::MAX {
            return Some(format!("entry {block} went from {old:#x} to {new:#x}"));
        }
    }
    let mut used: Vec<u32> = new.into_iter().filter(|&entry| entry != u32::MAX).collect();
    used.sort_unstable();
    let twice = used.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(format!("two blocks have the place {:#x}", twice[0]))
}

/// The entries of a disk's table.
pub(crate) fn entries(file: &[u8]) -> Vec<u32> {
    let from = usize::try_from(TABLE.offset).unwrap();
    let table = &file[from..from + 4 * TABLE.entries as usize];
    table
        .chunks(4)
        .map(|entry| u32::from_be_bytes(entry.try_into().unwrap()))
        .collect()
}

/// A node's way to the volume.
#[derive(Clone)]
pub(crate) struct SimVolume(pub Handle);

/// An open file.
pub(crate) struct SimFile {
    handle: Handle,
    id: Id,
}

impl SimVolume {
    /// A request: `find` at its beginning, `change` at its end.
    fn request<F, T>(
        &self,
        find: impl FnOnce(&FileSystem) -> Result<F>,
        change: impl FnOnce(&mut Inner, F) -> Result<T>,
    ) -> Result<T> {
        let found = find(&self.0.world.lock().fs);
        let mut inner = self.0.pass(delay(&self.0));
        change(&mut inner, found?)
    }
}

fn delay(handle: &Handle) -> Micros {
    let latency = handle.latency();
    let inner = handle.world.lock();
    inner.nodes[handle.node].stalled_until.saturating_sub(inner.now) + latency
}

impl VolumeIo for SimVolume {
    type File = SimFile;

    fn create_new(&self, path: &str) -> Result<SimFile> {
        self.request(
            |fs| fs.parent(path),
            |inner, (dir, name)| {
                if inner.fs.entry(dir, name).is_some() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                let id = inner.fs.new_id();
                inner.fs.insert(dir, name, Entry::File(id))?;
                inner.fs.files.insert(id, Vec::new());
                Ok(SimFile {
                    handle: self.0.clone(),
                    id,
                })
            },
        )
    }

    fn open(&self, path: &str) -> Result<SimFile> {
        self.request(
            |fs| fs.parent(path),
            |inner, (dir, name)| match inner.fs.entry(dir, name) {
                Some(Entry::File(id)) => Ok(SimFile {
                    handle: self.0.clone(),
                    id,
                }),
                Some(Entry::Dir(_)) => Err(ErrorKind::InvalidInput.into()),
                None => Err(ErrorKind::NotFound.into()),
            },
        )
    }

    fn exists(&self, path: &str) -> Result<bool> {
        let parent = self.0.world.lock().fs.parent(path);
        let node = self.0.node;
        let mut inner = self.0.pass(delay(&self.0));
        let Ok((dir, name)) = parent else { return Ok(false) };
        let found = inner.fs.entry(dir, name).is_some();
        let now = inner.now;
        let weakness = if path.starts_with(".csv/epoch/") {
            inner.fs.weakness
        } else {
            Weakness::None
        };
        match weakness {
            Weakness::Blind => Ok(false),
            Weakness::StaleNames => {
                let fresh = (now + crate::world::SECOND, found);
                let known = inner.fs.stale.entry((node, path.to_owned())).or_insert(fresh);
                if known.0 <= now {
                    *known = fresh;
                }
                Ok(known.1)
            }
            _ => Ok(found),
        }
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        self.request(
            |fs| fs.dir(dir),
            |inner, dir| {
                let dir = inner.fs.dirs.get(&dir).ok_or(ErrorKind::NotFound)?;
                Ok(dir.keys().cloned().collect())
            },
        )
    }

    fn make_dir(&self, dir: &str) -> Result<()> {
        self.request(
            |fs| fs.parent(dir),
            |inner, (parent, name)| {
                if inner.fs.entry(parent, name).is_some() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                let id = inner.fs.new_id();
                inner.fs.insert(parent, name, Entry::Dir(id))?;
                inner.fs.dirs.insert(id, BTreeMap::new());
                Ok(())
            },
        )
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        self.request(
            |fs| fs.parent(dir),
            |inner, (parent, name)| {
                let Some(Entry::Dir(id)) = inner.fs.entry(parent, name) else {
                    return Err(ErrorKind::NotFound.into());
                };
                if !inner.fs.dirs[&id].is_empty() {
                    return Err(ErrorKind::DirectoryNotEmpty.into());
                }
                inner.fs.dirs.get_mut(&parent).ok_or(ErrorKind::NotFound)?.remove(name);
                inner.fs.dirs.remove(&id);
                Ok(())
            },
        )
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        self.request(
            |fs| Ok((fs.parent(from)?, fs.parent(to)?)),
            |inner, ((from_dir, from), (to_dir, to))| {
                let entry = inner.fs.entry(from_dir, from).ok_or(ErrorKind::NotFound)?;
                if !inner.fs.dirs.contains_key(&to_dir) {
                    return Err(ErrorKind::NotFound.into());
                }
                if !replace && inner.fs.entry(to_dir, to).is_some() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                inner.fs.insert(to_dir, to, entry)?;
                inner
                    .fs
                    .dirs
                    .get_mut(&from_dir)
                    .ok_or(ErrorKind::NotFound)?
                    .remove(from);
                Ok(())
            },
        )
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        self.request(
            |fs| fs.parent(path),
            |inner, (dir, name)| {
                let dir = inner.fs.dirs.get_mut(&dir).ok_or(ErrorKind::NotFound)?;
                dir.remove(name).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
            },
        )
    }

    fn clear(&self, path: &str) -> Result<()> {
        self.request(
            |fs| fs.parent(path),
            |inner, (dir, name)| {
                let Some(Entry::File(id)) = inner.fs.entry(dir, name) else {
                    return Err(ErrorKind::NotFound.into());
                };
                inner.fs.files.insert(id, Vec::new());
                Ok(())
            },
        )
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.request(|fs| fs.dir(dir), |_, _| Ok(()))
    }
}

impl VolumeFile for SimFile {
    fn len(&self) -> Result<u64> {
        let inner = self.handle.pass(delay(&self.handle));
        Ok(inner.fs.files[&self.id].len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let inner = self.handle.pass(delay(&self.handle));
        let file = &inner.fs.files[&self.id];
        let from = usize::try_from(offset).unwrap();
        let bytes = file.get(from..from + buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self.handle.try_pass(delay(&self.handle)) {
            Some(mut inner) => inner.fs.write(self.id, bytes, offset),
            None => {
                // Killed in the middle: a part of it may be there.
                let mut inner = self.handle.world.lock();
                let mut part = inner.rng.usize(..=bytes.len());
                if offset + bytes.len() as u64 <= inner.fs.files[&self.id].len() as u64 {
                    // Sectors are overwritten whole or not at all.
                    let end = (usize::try_from(offset).unwrap() + part) / 512 * 512;
                    part = end.saturating_sub(usize::try_from(offset).unwrap());
                }
                inner.fs.write(self.id, &bytes[..part], offset);
                drop(inner);
                std::panic::resume_unwind(Box::new(crate::world::Killed));
            }
        }
        Ok(())
    }

    fn extend_to(&self, end: u64) -> Result<()> {
        let mut inner = self.handle.pass(delay(&self.handle));
        let end = usize::try_from(end).unwrap();
        if end > 1 << 20 {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        let file = inner.fs.files.get_mut(&self.id).unwrap();
        if file.len() < end {
            file.resize(end, 0);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        drop(self.handle.pass(delay(&self.handle)));
        Ok(())
    }
}
