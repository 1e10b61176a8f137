//! A kernel file: an ELF vmlinux, entered at its entry point, or a bzImage, entered at its 64-bit entry point. What does
//! not fit or is cut off is found before anything is loaded, so that the reason can be told.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::bzimage::Error as Damage;
use linux_loader::loader::{BzImage, Elf, Error as Loader, KernelLoader};
use vm_memory::GuestAddress;

use crate::Error;
use crate::error::host;
use crate::mem::GuestMemory;

/// The lowest address of a kernel: below is what firmware would have left.
const LOWEST: u64 = 1 << 20;
/// Where an initramfs ends at the latest, for an ELF kernel: those of 64 bits reach 2 GiB.
const INITRD_LIMIT: u64 = 1 << 31;

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// 64 bits, little endian.
const ELF_CLASS: [u8; 2] = [2, 1];
const ELF_X86_64: u16 = 62;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const LOADED: u32 = 1;

/// Where the magic number of a bzImage is.
const BZIMAGE_MAGIC_AT: u64 = 0x202;
const BZIMAGE_MAGIC: &[u8] = b"HdrS";
/// The first version of the boot protocol that tells of a 64-bit entry point, and the flag that does.
const BZIMAGE_VERSION: u16 = 0x20c;
const BZIMAGE_64: u16 = 1;
/// Where the 64-bit entry point is, from where the kernel is loaded.
const BZIMAGE_ENTRY: u64 = 0x200;

/// Magic numbers of files that people take for kernels.
const KNOWN: &[(&[u8], &str)] = &[
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd"),
    (b"\x1f\x8b", "it is compressed with gzip"),
    (b"\xfd7zXZ\0", "it is compressed with xz"),
    (b"MZ", "it is an EFI program without a kernel's boot header"),
    (b"conectix", "it is a VHD image"),
    (b"070701", "it is an initramfs"),
];

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The first instruction.
    pub(super) entry: u64,
    /// The first address behind what it needs.
    pub(super) end: u64,
    /// Behind the last byte that an initramfs may have.
    pub(super) initrd_limit: u64,
    /// What a bzImage says about itself.
    pub(super) header: Option<setup_header>,
}

impl Kernel {
    /// Loads a kernel into memory that ends at `end`.
    pub(super) fn load(file: &mut File, memory: &GuestMemory, end: u64) -> Result<Self, Error> {
        let head = head(file)?;
        if head.starts_with(ELF_MAGIC) {
            return Self::load_elf(file, &head, memory, end);
        }
        let mut magic = [0; 4];
        if file.read_exact_at(&mut magic, BZIMAGE_MAGIC_AT).is_ok() && magic == BZIMAGE_MAGIC {
            return Self::load_bzimage(file, memory, end);
        }
        let known = KNOWN.iter().find(|(magic, _)| head.starts_with(magic));
        let reason = known.map_or("its first bytes are those of no kernel", |(_, reason)| reason);
        Err(not_a_kernel(reason))
    }

    fn load_elf(file: &mut File, head: &[u8], memory: &GuestMemory, end: u64) -> Result<Self, Error> {
        let kernel_end = check_elf(file, head)?;
        require("the kernel", kernel_end, end)?;
        let loaded = Elf::load(memory, None, file, Some(GuestAddress(LOWEST))).map_err(not_a_kernel)?;
        Ok(Self {
            entry: loaded.kernel_load.0,
            end: kernel_end,
            initrd_limit: INITRD_LIMIT,
            header: None,
        })
    }

    fn load_bzimage(file: &mut File, memory: &GuestMemory, end: u64) -> Result<Self, Error> {
        let len = file.metadata().map_err(host("read the kernel"))?.len();
        // It is not loaded to more addresses than it has bytes, wherever it says.
        let highest = u64::from(u32::MAX).min(end);
        require("the kernel", LOWEST.saturating_add(len), highest)?;
        let loaded = BzImage::load(memory, None, file, Some(GuestAddress(LOWEST))).map_err(|error| match error {
            Loader::Bzimage(Damage::Underflow | Damage::ReadBzImageHeader | Damage::ReadBzImageCompressedKernel) => {
                not_a_kernel("it is cut off, or names an address outside guest memory")
            }
            error => not_a_kernel(error),
        })?;
        let header = loaded
            .setup_header
            .ok_or_else(|| not_a_kernel("it has no boot header"))?;
        if header.version < BZIMAGE_VERSION || header.xloadflags & BZIMAGE_64 == 0 {
            return Err(not_a_kernel("it has no 64-bit entry point"));
        }
        let (stated, found) = (u64::from(header.syssize) * 16, loaded.kernel_end - loaded.kernel_load.0);
        if stated > found {
            return Err(not_a_kernel(format!(
                "it is cut off: {found:#x} of {stated:#x} bytes of code are there"
            )));
        }
        // It unpacks itself to where it prefers to run, or to where it is.
        let unpacked = header.pref_address.max(loaded.kernel_load.0);
        let kernel_end = unpacked.saturating_add(header.init_size.into()).max(loaded.kernel_end);
        require("the kernel, unpacked,", kernel_end, end)?;
        Ok(Self {
            entry: loaded.kernel_load.0 + BZIMAGE_ENTRY,
            end: kernel_end,
            initrd_limit: u64::from(header.initrd_addr_max) + 1,
            header: Some(header),
        })
    }
}

/// The first bytes, as many as an ELF header has; fewer of a shorter file.
fn head(file: &File) -> Result<Vec<u8>, Error> {
    let mut head = vec![0; ELF_HEADER];
    let len = file.read_at(&mut head, 0).map_err(host("read the kernel"))?;
    head.truncate(len);
    Ok(head)
}

/// Checks an ELF file; returns the first address behind what is loaded.
fn check_elf(file: &File, head: &[u8]) -> Result<u64, Error> {
    let head: &[u8; ELF_HEADER] = head.try_into().map_err(|_| not_a_kernel("its ELF header is cut off"))?;
    if head[4..6] != ELF_CLASS || number16(head, 18) != ELF_X86_64 {
        return Err(not_a_kernel("it is an ELF file for another processor than x86-64"));
    }
    let (at, size, count) = (number64(head, 32), number16(head, 54), number16(head, 56));
    if usize::from(size) != PROGRAM_HEADER {
        return Err(not_a_kernel(format!(
            "its program headers have {size} bytes instead of {PROGRAM_HEADER}"
        )));
    }
    let len = file.metadata().map_err(host("read the kernel"))?.len();
    let mut end = 0;
    for number in 0..u64::from(count) {
        let mut header = [0; PROGRAM_HEADER];
        let header_at = at.saturating_add(number * u64::from(size));
        file.read_exact_at(&mut header, header_at)
            .map_err(|_| not_a_kernel(format!("its program header {number} at {header_at:#x} is cut off")))?;
        if number32(&header, 0) == LOADED && number64(&header, 32) > 0 {
            end = end.max(check_segment(&header, number, len)?);
        }
    }
    if end == 0 {
        return Err(not_a_kernel("nothing of it is to be loaded"));
    }
    Ok(end)
}

/// Checks a part that is loaded; returns the address behind it.
fn check_segment(header: &[u8; PROGRAM_HEADER], number: u64, file_len: u64) -> Result<u64, Error> {
    let (offset, address) = (number64(header, 8), number64(header, 24));
    let (stored, len) = (number64(header, 32), number64(header, 40));
    if offset.checked_add(stored).is_none_or(|end| end > file_len) {
        return Err(not_a_kernel(format!(
            "it is cut off: part {number} is {stored:#x} bytes at {offset:#x} of a file of {file_len:#x}"
        )));
    }
    if address < LOWEST {
        return Err(not_a_kernel(format!(
            "part {number} is to be loaded at {address:#x}, below {LOWEST:#x}"
        )));
    }
    Ok(address.saturating_add(stored.max(len)))
}

fn require(what: &'static str, needed: u64, available: u64) -> Result<(), Error> {
    if needed > available {
        return Err(Error::TooLittleMemory {
            what,
            needed,
            available,
        });
    }
    Ok(())
}

fn not_a_kernel(reason: impl std::fmt::Display) -> Error {
    Error::NotAKernel {
        reason: reason.to_string(),
    }
}

fn number16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    u32::from(number16(bytes, at)) | u32::from(number16(bytes, at + 2)) << 16
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    u64::from(number32(bytes, at)) | u64::from(number32(bytes, at + 4)) << 32
}
