//! The table of foreign formats: what each is called and what it is known by.
//!
//! What belongs on a disk is not in it: partition tables, boot sectors, file systems (squashfs too, which live systems
//! have on partitions), LUKS, LVM, software RAID, swap space. An image with those is a raw disk.

use std::io;

use super::foreign::ForeignClass::{self, Archive, Backup, Compressed, DiskImage, OpticalDisc, Other};
use super::foreign::ForeignFormat;
use super::marks;
use super::sample::Sample;

/// A row of the table.
pub(super) struct Known {
    pub(super) format: ForeignFormat,
    /// One is enough.
    pub(super) marks: &'static [Mark],
    /// The extensions of a disk image in this format.
    pub(super) extensions: &'static [&'static str],
}

/// What tells a format.
pub(super) enum Mark {
    /// Bytes at an offset.
    At(usize, &'static [u8]),
    /// Bytes that begin so many bytes before the end.
    BeforeEnd(usize, &'static [u8]),
    /// More than a magic number.
    If(fn(&Sample<'_>) -> io::Result<bool>),
}

impl Mark {
    pub(super) fn matches(&self, sample: &Sample<'_>) -> io::Result<bool> {
        Ok(match self {
            Self::At(offset, bytes) => sample.has(*offset, bytes),
            Self::BeforeEnd(from_end, bytes) => sample.ends_with(*from_end, bytes),
            Self::If(test) => test(sample)?,
        })
    }
}

const fn row(id: &'static str, name: &'static str, class: ForeignClass, marks: &'static [Mark]) -> Known {
    Known {
        format: ForeignFormat { id, name, class },
        marks,
        extensions: &[],
    }
}

const fn image(
    id: &'static str,
    name: &'static str,
    extensions: &'static [&'static str],
    marks: &'static [Mark],
) -> Known {
    Known {
        extensions,
        ..row(id, name, DiskImage, marks)
    }
}

use Mark::{At, BeforeEnd, If};

/// Every foreign format that is known, the more special one first where two share a mark.
#[rustfmt::skip]
pub(super) const KNOWN: &[Known] = &[
    image("vhdx", "VHDX image", &["vhdx", "avhdx", "vhds"], &[At(0, b"vhdxfile")]),
    image("qcow1", "qcow image of version 1", &["qcow"], &[At(0, b"QFI\xFB\0\0\0\x01")]),
    image("qcow2", "qcow2 image", &["qcow2", "qcow3"], &[At(0, b"QFI\xFB")]),
    image("qed", "QED image", &["qed"], &[At(0, b"QED\0")]),
    image("vmdk", "VMDK image", &["vmdk"], &[
        At(0, b"KDMV"), At(0, b"COWD"), At(0, b"\xBE\xBA\xFE\xCA\0\0\0\0"), At(0, b"# Disk DescriptorFile"),
    ]),
    image("vdi", "VDI image", &["vdi"], &[At(64, b"\x7F\x10\xDA\xBE")]),
    image("parallels", "Parallels image", &["hdd", "hds"], &[At(0, b"WithoutFreeSpace"), At(0, b"WithouFreSpacExt")]),
    image("bochs", "Bochs image", &[], &[At(0, b"Bochs Virtual HD Image")]),
    image("cloop", "cloop image", &["cloop"], &[At(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop")]),
    image("dmg", "DMG image", &["dmg"], &[BeforeEnd(512, b"koly\0\0\0\x04")]),
    image("sparseimage", "Apple sparse image", &["sparseimage", "asif"], &[At(0, b"sprs\0\0\0"), At(0, b"shdw\0\0\0")]),
    image("android-sparse", "Android sparse image", &[], &[At(0, b"\x3A\xFF\x26\xED\x01\0")]),
    image("chd", "CHD image", &["chd"], &[At(0, b"MComprHD")]),

    row("iso9660", "ISO 9660 image", OpticalDisc, &[If(marks::is_iso9660)]),
    row("udf", "UDF image of an optical disc", OpticalDisc, &[If(marks::is_optical_udf)]),
    row("cd-sectors", "image of raw CD sectors", OpticalDisc, &[
        At(0, b"\x00\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x00"),
    ]),
    row("nrg", "Nero disc image", OpticalDisc, &[BeforeEnd(12, b"NER5\0"), BeforeEnd(8, b"NERO\0")]),

    row("ewf", "EWF (EnCase) image", Backup, &[
        At(0, b"EVF\t\r\n\xFF\0"), At(0, b"LVF\t\r\n\xFF\0"), At(0, b"EVF2\r\n\x81\0"), At(0, b"LEF2\r\n\x81\0"),
    ]),
    row("aff", "AFF image", Backup, &[At(0, b"AFF10\r\n\0")]),
    row("vma", "VMA archive (Proxmox)", Backup, &[At(0, b"VMA\0\0\0\0\x01")]),
    row("wim", "WIM archive", Backup, &[At(0, b"MSWIM\0\0\0"), At(0, b"WLPWM\0\0\0")]),
    row("partclone", "Partclone image", Backup, &[At(0, b"partclone-image")]),
    row("partimage", "Partimage image", Backup, &[At(0, b"PaRtImAgE-VoLuMe")]),
    row("ntfsclone", "ntfsclone image", Backup, &[At(0, b"\0ntfsclone-image")]),
    row("acronis", "Acronis backup", Backup, &[At(0, b"\xB4\x6E\x68\x44"), At(0, b"\xCE\x24\xB9\xA2\x20\0\0\0")]),
    row("ghost", "Norton Ghost image", Backup, &[If(marks::is_ghost)]),
    row("rbd-diff", "export of Ceph RBD", Backup, &[At(0, b"rbd diff v"), At(0, b"rbd image v")]),
    row("btrfs-stream", "btrfs send stream", Backup, &[At(0, b"btrfs-stream\0")]),
    row("zfs-stream", "ZFS send stream", Backup, &[
        At(8, b"\xAC\xCB\xBA\xF5\x02\0\0\0"), At(8, b"\0\0\0\x02\xF5\xBA\xCB\xAC"),
    ]),
    row("xfsdump", "xfsdump archive", Backup, &[At(0, b"xFSdump0")]),

    row("gzip", "gzip file", Compressed, &[If(marks::is_gzip)]),
    row("xz", "xz file", Compressed, &[At(0, b"\xFD7zXZ\0")]),
    row("zstd", "zstd file", Compressed, &[At(0, b"\x28\xB5\x2F\xFD"), If(marks::is_skippable_frame)]),
    row("bzip2", "bzip2 file", Compressed, &[If(marks::is_bzip2)]),
    row("lz4", "lz4 file", Compressed, &[At(0, b"\x04\x22\x4D\x18"), At(0, b"\x02\x21\x4C\x18")]),
    row("lzip", "lzip file", Compressed, &[At(0, b"LZIP\x01"), At(0, b"LZIP\x00")]),
    row("lzop", "lzop file", Compressed, &[At(0, b"\x89LZO\0\r\n\x1A\n")]),
    row("lzma", "lzma file", Compressed, &[If(marks::is_lzma)]),
    row("lrzip", "lrzip file", Compressed, &[At(0, b"LRZI\0")]),
    row("compress", "compress (.Z) file", Compressed, &[If(marks::is_compress)]),
    row("snappy", "snappy file", Compressed, &[At(0, b"\xFF\x06\0\0sNaPpY")]),

    row("zip", "zip archive", Archive, &[At(0, b"PK\x03\x04"), At(0, b"PK\x05\x06"), At(0, b"PK\x07\x08")]),
    row("7z", "7z archive", Archive, &[At(0, b"7z\xBC\xAF\x27\x1C")]),
    row("rar", "RAR archive", Archive, &[At(0, b"Rar!\x1A\x07")]),
    row("ova", "OVA archive", Archive, &[If(marks::is_ova)]),
    row("tar", "tar archive", Archive, &[At(257, b"ustar\0"), At(257, b"ustar "), If(marks::is_tar)]),
    row("cpio", "cpio archive", Archive, &[At(0, b"070701"), At(0, b"070702"), At(0, b"070707")]),
    row("cab", "CAB archive", Archive, &[At(0, b"MSCF\0\0\0\0")]),
    row("ar", "ar archive", Archive, &[At(0, b"!<arch>\n")]),
    row("rpm", "RPM package", Archive, &[At(0, b"\xED\xAB\xEE\xDB")]),
    row("xar", "xar archive", Archive, &[At(0, b"xar!\0")]),

    row("elf", "ELF program", Other, &[At(0, b"\x7FELF\x01"), At(0, b"\x7FELF\x02")]),
    row("pe", "Windows program", Other, &[If(marks::is_pe)]),
    row("pdf", "PDF document", Other, &[At(0, b"%PDF-")]),
    row("png", "PNG picture", Other, &[At(0, b"\x89PNG\r\n\x1A\n")]),
    row("jpeg", "JPEG picture", Other, &[At(0, b"\xFF\xD8\xFF\xE0"), At(0, b"\xFF\xD8\xFF\xE1"), At(0, b"\xFF\xD8\xFF\xDB")]),
    row("gif", "GIF picture", Other, &[At(0, b"GIF87a"), At(0, b"GIF89a")]),
    row("sqlite", "SQLite database", Other, &[At(0, b"SQLite format 3\0")]),
    row("ole", "Office document (OLE)", Other, &[At(0, b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1")]),
    row("openssl", "file encrypted by openssl", Other, &[At(0, b"Salted__")]),
    row("age", "file encrypted by age", Other, &[At(0, b"age-encryption.org/")]),
    row("text", "text file", Other, &[If(marks::is_text)]),
];
