//! Files that are swapped while a job opens them: what is read and changed is what was checked, or nothing.
//!
//! The swaps go on in another thread, as fast as they can, while the same job is done many times: every moment between two
//! of its system calls is met. `renameat2` exchanges two names at once, so that there is never no file.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::temp_dir;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::format::{Timestamp, UniqueId};
use vhd_core::image::create_dynamic;
use vhd_core::ops::reparent::Relink;
use vhd_core::ops::resize::{Request, Resize};
use vhd_core::storage::StagedFile;

const SIZE: u64 = 2 << 20;
/// How often a job is done at least, and how often files are exchanged meanwhile.
const ROUNDS: usize = 1000;
const SWAPS: usize = 200;

/// An image whose disk is full of `byte`.
fn image(path: &Path, byte: u8) {
    let staged = StagedFile::create_beside(path).unwrap();
    create_dynamic(&*staged.storage(), SIZE, 2 << 20).unwrap();
    staged.publish(false, true).unwrap();
    let opened = OpenOptions::new().write(true).open(path).unwrap();
    opened.disk().write_at(&[byte; 4096], 0).unwrap();
    opened.close().unwrap();
}

fn first_byte(path: &Path) -> Result<u8, vhd_core::chain::ChainError> {
    let opened = OpenOptions::new().open(path)?;
    let mut byte = [0];
    opened.disk().read_at(&mut byte, 0).unwrap();
    Ok(byte[0])
}

/// Exchanges two files again and again while `step` is done, at least so many times and until they were exchanged often,
/// and leaves them as they were.
fn while_swapping(a: &Path, b: &Path, rounds: usize, mut step: impl FnMut()) {
    let exchange = || renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
    let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                exchange();
                swaps.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let work = || {
            let mut done = 0;
            while done < rounds || swaps.load(Ordering::Relaxed) < SWAPS {
                step();
                done += 1;
            }
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    if !swaps.into_inner().is_multiple_of(2) {
        exchange();
    }
}

fn id_of(path: &Path) -> UniqueId {
    common::disk::open_alone(path).unique_id()
}

struct Pair {
    _dir: tempfile::TempDir,
    base: PathBuf,
    other: PathBuf,
    child: PathBuf,
}

fn pair() -> Pair {
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name);
    let (base, child) = (at("base.vhd"), at("child.avhd"));
    // In a directory of its own: by its own name it is no place to look in.
    fs::create_dir(at("elsewhere")).unwrap();
    let other = at("elsewhere/other.img");
    image(&base, 1);
    image(&other, 2);
    create_child(&child, &base, None, &OpenOptions::new()).unwrap();
    Pair {
        _dir: dir,
        base,
        other,
        child,
    }
}

#[test]
fn inv_34_a_parent_that_is_swapped_while_it_is_opened_is_never_another_disk() {
    let pair = pair();
    let (mut right, mut refused) = (0, 0);
    while_swapping(&pair.base, &pair.other, ROUNDS, || match first_byte(&pair.child) {
        Ok(byte) => {
            assert_eq!(byte, 1, "the child was read over another disk");
            right += 1;
        }
        Err(error) => {
            let kind = error.kind();
            let expected = [ErrorKind::ParentMismatch, ErrorKind::Io, ErrorKind::NotFound];
            assert!(expected.contains(&kind), "{error}");
            refused += 1;
        }
    });
    println!("{right} right, {refused} refused");
    assert_eq!(first_byte(&pair.child).unwrap(), 1);
}

#[test]
fn inv_34_a_parent_that_is_swapped_for_no_image_is_never_read() {
    let pair = pair();
    fs::write(&pair.other, vec![9; 3 << 20]).unwrap();
    while_swapping(&pair.base, &pair.other, ROUNDS, || {
        if let Ok(byte) = first_byte(&pair.child) {
            assert_eq!(byte, 1);
        }
    });
}

#[test]
fn inv_34_a_child_is_made_of_the_disk_that_was_opened() {
    let pair = pair();
    let made = pair.base.with_file_name("made.avhd");
    let time = |path: &Path| Timestamp::from_system_time(path.metadata().unwrap().modified().unwrap());
    let file = |path: &Path| fs::File::options().write(true).open(path).unwrap();
    let day = std::time::Duration::from_secs(86_400);
    let before = std::time::SystemTime::now() - day;
    file(&pair.other).set_modified(before).unwrap();
    let facts = [&pair.base, &pair.other].map(|path| (id_of(path), time(path)));
    while_swapping(&pair.base, &pair.other, 100, || {
        if create_child(&made, &pair.base, None, &OpenOptions::new()).is_ok() {
            let image = common::disk::open_alone(&made);
            let header = image.header().unwrap();
            // The identity and the time are of one file.
            assert!(facts.contains(&(header.parent_id, header.parent_timestamp)));
            fs::remove_file(&made).unwrap();
        }
    });
}

#[test]
fn inv_34_a_resize_changes_the_file_that_it_looked_at() {
    let pair = pair();
    fs::remove_file(&pair.child).unwrap();
    let before = fs::read(&pair.other).unwrap();
    let options = OpenOptions::new();
    let cancel = AtomicBool::new(false);
    let request = Request {
        image: &pair.base,
        size: 4 << 20,
        shrink: true,
        tree: false,
        fix_gpt: false,
        options: &options,
        cancel: &cancel,
    };
    // A file that is swapped between the look and the lock is refused; afterwards it does not matter any more.
    let mut replaced = 0;
    while_swapping(&pair.base, &pair.other, ROUNDS, || {
        match Resize::prepare(&request, false) {
            Ok(_) => {}
            Err(error) => replaced += usize::from(error.kind() == ErrorKind::Changed),
        }
    });
    println!("{replaced} were refused as replaced");
    assert!(fs::read(&pair.other).unwrap() == before);
}

#[test]
fn inv_34_the_child_of_a_relink_is_the_one_that_was_shown() {
    let pair = pair();
    let relink = Relink::examine(&pair.child, &pair.base, &OpenOptions::new()).unwrap();
    let second = pair.child.with_file_name("second.avhd");
    create_child(&second, &pair.base, None, &OpenOptions::new()).unwrap();
    let before = fs::read(&second).unwrap();
    fs::rename(&second, &pair.child).unwrap();
    let error = relink.run(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert!(fs::read(&pair.child).unwrap() == before);
}
