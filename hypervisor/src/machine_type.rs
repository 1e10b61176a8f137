//! What a guest finds: the types of machines.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::slots::FIRST;

/// What every kernel with ACPI looks for in memory, and so has in itself.
const ACPI_SIGNATURE: &[u8] = b"RSD PTR ";
const ELF_MAGIC: &[u8] = b"\x7fELF";
/// Bytes of a kernel that are read at once.
const PIECE: usize = 1 << 20;

/// What a guest finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineType {
    /// PCI with virtio devices, described by ACPI: what kernels of distributions need.
    Vhd1,
    /// Devices over virtio-mmio that are announced on the kernel's command line: for small kernels without PCI and ACPI.
    Mmio,
}

impl MachineType {
    /// The name by which it is chosen and saved.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vhd1 => "vhd-1",
            Self::Mmio => "mmio",
        }
    }

    /// The slot of the first disk that a machine is made with; the others follow.
    #[must_use]
    pub fn first_slot(self) -> usize {
        match self {
            Self::Vhd1 => FIRST,
            Self::Mmio => 0,
        }
    }

    /// The type of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Vhd1, Self::Mmio].into_iter().find(|known| known.name() == name)
    }

    /// The machine in which a kernel finds its devices: an ELF kernel that does not know of ACPI tables is for
    /// [`Mmio`](Self::Mmio). What is compressed does not show what it knows, and is for [`Vhd1`](Self::Vhd1).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn for_kernel(kernel: &File) -> io::Result<Self> {
        let mut magic = [0; ELF_MAGIC.len()];
        let len = kernel.read_at(&mut magic, 0)?;
        if &magic[..len] != ELF_MAGIC {
            return Ok(Self::Vhd1);
        }
        Ok(match contains(kernel, ACPI_SIGNATURE)? {
            true => Self::Vhd1,
            false => Self::Mmio,
        })
    }
}

/// Whether a file has these bytes.
fn contains(file: &File, bytes: &[u8]) -> io::Result<bool> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let len = file.read_at(&mut piece, at)?;
        if piece[..len].windows(bytes.len()).any(|part| part == bytes) {
            return Ok(true);
        }
        // The bytes may be across the end of what was read.
        let step = len.saturating_sub(bytes.len() - 1);
        if step == 0 {
            return Ok(false);
        }
        at += vhd_block::units::u64_from(step);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn of(parts: &[&[u8]]) -> MachineType {
        let mut file = tempfile::tempfile().unwrap();
        parts.iter().for_each(|part| file.write_all(part).unwrap());
        MachineType::for_kernel(&file).unwrap()
    }

    #[test]
    fn a_kernel_without_acpi_gets_devices_on_its_command_line() {
        let padding = vec![0; PIECE - ELF_MAGIC.len() - 3];
        assert_eq!(of(&[ELF_MAGIC, b"no such thing"]), MachineType::Mmio);
        assert_eq!(of(&[ELF_MAGIC, &padding, b"RSD PT", &padding]), MachineType::Mmio);
        assert_eq!(of(&[ELF_MAGIC, b"...RSD PTR ..."]), MachineType::Vhd1);
        assert_eq!(of(&[ELF_MAGIC, &padding, ACPI_SIGNATURE]), MachineType::Vhd1);
        assert_eq!(of(&[b"a bzImage"]), MachineType::Vhd1);
        assert_eq!(of(&[]), MachineType::Vhd1);
    }
}
