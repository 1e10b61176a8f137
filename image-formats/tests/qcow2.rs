//! qcow2: images of qemu read, images of ours checked by qemu, and any bytes as one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use fastrand::Rng;
use image_formats::qcow2::{Image, Writer};
use image_formats::{Layer, LayeredImage, RawLayer};
use tempfile::TempDir;
use vhd_block::Disk;

const SIZE: usize = 9 << 20;

/// Whether qemu is there. Where it must be (`CI` is set) its absence is a failure; elsewhere it is said.
fn have_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "there is no qemu-img");
    if !found {
        eprintln!("NOT TESTED: qcow2 images of qemu: there is no qemu-img");
    }
    found
}

fn qemu_img(dir: &TempDir, args: &[&str]) {
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A disk with data, zeroes, and data that packs well.
fn content(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for chunk in bytes.chunks_mut(48 << 10) {
        match rng.u8(0..4) {
            0 => chunk.fill_with(|| rng.u8(..)),
            1 => chunk.fill(rng.u8(..)),
            2 => chunk[rng.usize(..chunk.len())] = 1,
            _ => {}
        }
    }
    bytes
}

fn open(path: &Path) -> Arc<dyn Layer> {
    Arc::new(Image::open(Arc::new(fs::read(path).unwrap())).unwrap())
}

fn read(layers: Vec<Arc<dyn Layer>>) -> Vec<u8> {
    let disk = Disk::new(Arc::new(LayeredImage::new(layers, None)));
    let mut bytes = vec![0xEE; usize::try_from(disk.size()).unwrap()];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn images_of_qemu_read_byte_for_byte() {
    if !have_qemu() {
        return;
    }
    let mut rng = Rng::with_seed(11);
    let dir = tempfile::tempdir().unwrap();
    let expected = content(&mut rng);
    fs::write(dir.path().join("disk.raw"), &expected).unwrap();
    for options in [
        &["-o", "cluster_size=512"][..],
        &["-o", "cluster_size=64k"],
        &["-o", "cluster_size=2M"],
        &["-o", "compat=0.10"],
        &["-o", "preallocation=metadata"],
        &["-o", "lazy_refcounts=on"],
        &["-c"],
        &["-c", "-o", "compat=0.10,cluster_size=4k"],
        &["-c", "-o", "cluster_size=2M"],
        &["-S", "0"],
    ] {
        let args = [
            &["convert", "-f", "raw", "-O", "qcow2"][..],
            options,
            &["disk.raw", "a.qcow2"],
        ]
        .concat();
        qemu_img(&dir, &args);
        let image = dir.path().join("a.qcow2");
        assert!(read(vec![open(&image)]) == expected, "{options:?}");
        let image = Image::open(Arc::new(fs::read(image).unwrap())).unwrap();
        let (allocated, broken) = image.survey().unwrap();
        assert!(allocated > 0 && broken.is_empty(), "{options:?}: {broken:?}");
    }
}

#[test]
fn backing_files_show_through() {
    if !have_qemu() {
        return;
    }
    let mut rng = Rng::with_seed(12);
    let dir = tempfile::tempdir().unwrap();
    let mut expected = content(&mut rng);
    fs::write(dir.path().join("base.raw"), &expected).unwrap();
    qemu_img(
        &dir,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "middle.qcow2",
        ],
    );
    // Larger than what is below it.
    qemu_img(
        &dir,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "middle.qcow2",
            "-F",
            "qcow2",
            "leaf.qcow2",
            "10M",
        ],
    );
    let write = |image: &str, command: &str| {
        let done = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", command, image])
            .current_dir(dir.path())
            .output();
        assert!(done.unwrap().status.success());
    };
    write("middle.qcow2", "write -P 5 1M 100k");
    write("middle.qcow2", "write -z 3M 1M");
    write("leaf.qcow2", "write -P 6 1074k 3k");
    write("leaf.qcow2", "write -P 7 9700k 100k");
    expected.resize(10 << 20, 0);
    expected[1 << 20..][..100 << 10].fill(5);
    expected[3 << 20..4 << 20].fill(0);
    expected[1074 << 10..][..3 << 10].fill(6);
    expected[9700 << 10..][..100 << 10].fill(7);
    let leaf = Image::open(Arc::new(fs::read(dir.path().join("leaf.qcow2")).unwrap())).unwrap();
    assert_eq!(leaf.header().backing_file.as_deref(), Some("middle.qcow2"));
    let base = RawLayer::new(Arc::new(fs::read(dir.path().join("base.raw")).unwrap())).unwrap();
    let layers = vec![
        Arc::new(leaf) as Arc<dyn Layer>,
        open(&dir.path().join("middle.qcow2")),
        Arc::new(base),
    ];
    assert!(read(layers) == expected);
}

#[test]
fn images_of_ours_are_sound_for_qemu() {
    if !have_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::with_seed(13);
    for size in [512, 65536, 65536 * 3 + 1024, SIZE, 600 << 20] {
        let mut expected = content(&mut rng);
        expected.resize(size.min(SIZE), 0);
        let writer = Writer::new(size as u64);
        let mut file = Vec::new();
        let mut put = |bytes: &[u8], at: u64| {
            let at = usize::try_from(at).unwrap();
            let len = file.len().max(at + bytes.len());
            file.resize(len, 0);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        // What is zero has no place; the order is any.
        let mut parts: Vec<usize> = (0..expected.len()).step_by(4096).collect();
        rng.shuffle(&mut parts);
        for start in parts {
            let part = &expected[start..expected.len().min(start + 4096)];
            let mut done = 0;
            while done < part.len() && part.iter().any(|byte| *byte != 0) {
                let (at, len) = writer.place((start + done) as u64, (part.len() - done) as u64);
                put(&part[done..done + len as usize], at).unwrap();
                done += len as usize;
            }
        }
        let end = writer.finish(&mut put).unwrap();
        file.resize(usize::try_from(end).unwrap(), 0);
        fs::write(dir.path().join("a.qcow2"), &file).unwrap();
        qemu_img(&dir, &["check", "-q", "-f", "qcow2", "a.qcow2"]);
        fs::write(dir.path().join("disk.raw"), &expected).unwrap();
        qemu_img(&dir, &["resize", "-q", "-f", "raw", "disk.raw", &size.to_string()]);
        qemu_img(
            &dir,
            &["compare", "-q", "-f", "qcow2", "-F", "raw", "a.qcow2", "disk.raw"],
        );
        expected.resize(size, 0);
        assert!(read(vec![open(&dir.path().join("a.qcow2"))]) == expected, "{size}");
    }
}

/// Whatever single bytes are, nothing panics.
#[test]
fn damaged_bytes_do_no_harm() {
    let mut rng = Rng::with_seed(fastrand::u64(..));
    let writer = Writer::new(4 << 20);
    let mut file = vec![0; 1 << 20];
    for offset in [0, 1 << 20, 3 << 20] {
        let (at, _) = writer.place(offset, 512);
        file[usize::try_from(at).unwrap()] = 7;
    }
    let finished = writer.finish(|bytes, at| {
        let at = usize::try_from(at).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    });
    file.truncate(usize::try_from(finished.unwrap()).unwrap());
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..2000 {
        let mut bytes = file.clone();
        for _ in 0..rng.u8(1..4) {
            // The header, or the tables: the last clusters.
            let at = if rng.bool() {
                rng.usize(0..110)
            } else {
                rng.usize(4 << 16..bytes.len())
            };
            let at = if rng.bool() { at & !7 } else { at };
            bytes[at] = [0, 1, 0x40, 0x7F, 0xFF, rng.u8(..)][rng.usize(..6)];
        }
        if rng.u8(..4) == 0 {
            bytes.truncate(rng.usize(0..bytes.len()));
        }
        let Ok(image) = Image::open(Arc::new(bytes)) else {
            refused += 1;
            continue;
        };
        opened += 1;
        let _ = image.survey();
        let disk = Disk::new(Arc::new(LayeredImage::new(vec![Arc::new(image)], None)));
        let mut read = vec![0; disk.size().min(4 << 20) as usize];
        let _ = disk.read_at(&mut read, 0);
    }
    assert!(opened > 0 && refused > 0);
}
