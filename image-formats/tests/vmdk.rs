//! VMDK images of qemu, and any bytes as one.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use fastrand::Rng;
use image_formats::vmdk::Image;
use image_formats::{ImageError, LayeredImage};
use tempfile::TempDir;
use vhd_block::Disk;

/// Whether qemu is there. Where it must be (`CI` is set) its absence is a failure; elsewhere it is said.
fn have_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "there is no qemu-img");
    if !found {
        eprintln!("NOT TESTED: VMDK images of qemu: there is no qemu-img");
    }
    found
}

/// Makes an image of a disk with qemu.
fn make(dir: &TempDir, content: &[u8], options: &str) -> Vec<u8> {
    fs::write(dir.path().join("disk.raw"), content).unwrap();
    let args = [
        "convert", "-f", "raw", "-O", "vmdk", "-o", options, "disk.raw", "a.vmdk",
    ];
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{options}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read(dir.path().join("a.vmdk")).unwrap()
}

fn content(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(48 << 10) {
        match rng.u8(0..3) {
            0 => chunk.fill_with(|| rng.u8(..)),
            1 => chunk.fill(rng.u8(..)),
            _ => {}
        }
    }
    bytes
}

#[test]
fn images_of_qemu_read_byte_for_byte() {
    if !have_qemu() {
        return;
    }
    let mut rng = Rng::with_seed(21);
    let dir = tempfile::tempdir().unwrap();
    for (options, len) in [
        ("subformat=monolithicSparse", 70 << 20),
        ("subformat=monolithicSparse,zeroed_grain=on", 5 << 20),
        ("subformat=streamOptimized", 37 << 20),
        ("subformat=streamOptimized", (1 << 20) + 512),
        ("subformat=monolithicSparse,compat6=on", 1 << 20),
    ] {
        let expected = content(&mut rng, len);
        let image = Image::open(Arc::new(make(&dir, &expected, options))).unwrap();
        let (allocated, broken) = image.survey().unwrap();
        assert!(allocated > 0 && broken.is_empty(), "{options}: {broken:?}");
        let disk = Disk::new(Arc::new(LayeredImage::new(vec![Arc::new(image)], None)));
        let mut bytes = vec![0xEE; len];
        disk.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "{options}");
    }
    for options in ["subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse"] {
        let opened = Image::open(Arc::new(make(&dir, &[1; 4096], options)));
        assert!(
            matches!(opened, Err(ImageError::Unsupported { .. })),
            "{options}: {opened:?}"
        );
    }
}

/// Whatever single bytes are, nothing panics.
#[test]
fn damaged_bytes_do_no_harm() {
    if !have_qemu() {
        return;
    }
    let mut rng = Rng::with_seed(fastrand::u64(..));
    let dir = tempfile::tempdir().unwrap();
    let disk = content(&mut rng, 300 << 10);
    let images = ["subformat=monolithicSparse", "subformat=streamOptimized"].map(|options| make(&dir, &disk, options));
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..1500 {
        let mut bytes = images[rng.usize(..2)].clone();
        for _ in 0..rng.u8(1..4) {
            let len = bytes.len();
            let at = [
                rng.usize(0..100),
                rng.usize(512..1024),
                rng.usize(..len),
                len - 1024 + rng.usize(0..100),
            ];
            bytes[at[rng.usize(..4)]] = [0, 1, 0x7F, 0xFF, rng.u8(..)][rng.usize(..5)];
        }
        if rng.u8(..4) == 0 {
            bytes.truncate(rng.usize(0..bytes.len()));
        }
        let Ok(image) = Image::open(Arc::new(bytes)) else {
            refused += 1;
            continue;
        };
        opened += 1;
        let disk = Disk::new(Arc::new(LayeredImage::new(vec![Arc::new(image)], None)));
        let mut read = vec![0; disk.size().min(1 << 20) as usize];
        let _ = disk.read_at(&mut read, 0);
    }
    assert!(opened > 0 && refused > 0);
}
