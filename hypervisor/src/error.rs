//! Why a machine cannot be made or cannot go on.

use std::io;

/// Why a machine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no usable KVM on this host.
    #[error(
        "/dev/kvm cannot be used: {reason}; it needs a processor with virtualisation, the kernel modules of KVM, and \
         permission to open the device (group kvm)"
    )]
    NoKvm {
        /// What is missing.
        reason: String,
    },
    /// A request to KVM failed.
    #[error("KVM cannot {operation}")]
    Kvm {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The guest's memory cannot be had.
    #[error("cannot allocate {size} bytes of guest memory")]
    Memory {
        /// Bytes.
        size: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The size is none that a machine can have.
    #[error(
        "{size} bytes of guest memory are not possible: expected a multiple of {} from {} to {}",
        crate::MEMORY_UNIT,
        crate::MIN_MEMORY,
        crate::MAX_MEMORY
    )]
    MemorySize {
        /// Bytes.
        size: u64,
    },
    /// The file is no kernel that can be started.
    #[error("not a kernel that can be started: {reason}; expected an uncompressed ELF vmlinux or a bzImage for x86-64")]
    NotAKernel {
        /// What was found.
        reason: String,
    },
    /// Kernel and initramfs do not fit into the guest's memory.
    #[error(
        "{what} needs guest memory up to {needed:#x}, and {available:#x} bytes are there below the devices; give it more memory"
    )]
    TooLittleMemory {
        /// What does not fit.
        what: &'static str,
        /// The first address behind it.
        needed: u64,
        /// The first address behind the memory that it can use.
        available: u64,
    },
    /// The kernel's command line is longer than kernels take.
    #[error("the kernel's command line has {len} bytes, at most {limit} are possible")]
    CommandLine {
        /// Bytes.
        len: usize,
        /// Bytes.
        limit: usize,
    },
    /// The command line has bytes that cannot be passed on.
    #[error("the kernel's command line has a character that is not printable ASCII")]
    CommandLineCharacter,
    /// More processors than a machine has, or none.
    #[error("a machine has 1 to {} processors, not {count}", crate::MAX_CPUS)]
    Cpus {
        /// As asked for.
        count: u8,
    },
    /// More disks than a machine has.
    #[error("a machine has at most {} disks, not {count}", crate::MAX_DISKS)]
    Disks {
        /// As asked for.
        count: usize,
    },
    /// The type of machine has no hot-plug.
    #[error("the disks of this machine cannot be changed while it runs: only the type vhd-1 has hot-plug")]
    NoHotPlug,
    /// The type of machine has no power button.
    #[error("this machine has no power button: only the type vhd-1 has one; end it by force")]
    NoPowerButton,
    /// The type of machine has no source of random numbers.
    #[error("this machine has no source of random numbers: only the type vhd-1 has one")]
    NoRng,
    /// There is no disk in the slot.
    #[error("there is no disk in slot {slot}")]
    NoDisk {
        /// As asked for.
        slot: usize,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// KVM cannot run the guest any further.
    #[error("KVM cannot run the guest any further: {reason}, at instruction {rip:#x}")]
    Crashed {
        /// What KVM said.
        reason: String,
        /// The address of the instruction.
        rip: u64,
    },
    /// The host cannot read the kernel or initramfs, or start a thread.
    #[error("cannot {operation}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A machine cannot be saved or restored.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// A disk could not be flushed at the end.
    #[error("a disk cannot be flushed")]
    Disk(#[from] vhd_block::DeviceError),
}

/// A failed request to KVM.
pub(crate) fn kvm(operation: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> Error {
    move |error| Error::Kvm {
        operation,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

/// A failure of the host.
pub(crate) fn host(operation: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { operation, source }
}
