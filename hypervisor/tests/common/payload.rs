//! Guests that are assembled here: an ELF kernel whose code begins in ring 0 with 64 bits, drives COM1, the ports that end
//! a machine, and disks over virtio-mmio or virtio-pci by polling. It uses what KVM's instruction emulator knows.

/// Where the code is loaded.
const CODE: u32 = 0x10_0000;
/// Where rings and buffers of the first disk are; 64 KiB for each.
const RINGS: u32 = 0x20_0000;
/// The registers of the first disk.
const DEVICES: u64 = 0xd000_0000;
/// The configuration space of the first disk on PCI, and bytes between those of two disks.
const CONFIG: u64 = 0xe000_8000;
const CONFIG_STEP: u64 = 0x8000;

const COM1: u16 = 0x3f8;
const AVAIL: u32 = 0x1000;
const USED: u32 = 0x2000;
const HEADER: u32 = 0x3000;
const STATUS: u32 = 0x3010;
/// Where the data of requests is, from the rings of the disk.
const DATA: u32 = 0x4000;

const NEXT: u32 = 1;
const WRITE: u32 = 2;

/// The source of random numbers, counted like a disk.
const RNG: u32 = 30;

/// Kinds of requests.
pub(crate) const READ: u32 = 0;
pub(crate) const STORE: u32 = 1;
pub(crate) const FLUSH: u32 = 4;

/// A guest that is being written.
#[derive(Clone, Default)]
pub(crate) struct Payload {
    code: Vec<u8>,
    /// Its disks are on PCI, not behind virtio-mmio.
    is_on_pci: bool,
}

impl Payload {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A guest whose disks are on PCI.
    pub(crate) fn on_pci() -> Self {
        Self {
            is_on_pci: true,
            ..Self::default()
        }
    }

    fn emit(mut self, bytes: &[u8]) -> Self {
        self.code.extend(bytes);
        self
    }

    fn emit_with(self, opcode: &[u8], operands: &[u32]) -> Self {
        let operands = operands.iter().flat_map(|it| it.to_le_bytes());
        let bytes: Vec<u8> = opcode.iter().copied().chain(operands).collect();
        self.emit(&bytes)
    }

    /// `mov edx, port; mov al, value; out dx, al`
    pub(crate) fn out(self, port: u16, value: u8) -> Self {
        self.emit_with(&[0xba], &[port.into()]).emit(&[0xb0, value, 0xee])
    }

    /// `mov edx, port; mov eax, value; out dx, eax`
    pub(crate) fn out32(self, port: u16, value: u32) -> Self {
        self.emit_with(&[0xba], &[port.into()])
            .emit_with(&[0xb8], &[value])
            .emit(&[0xef])
    }

    /// Waits until a port of four bytes reads something else than zero.
    pub(crate) fn wait_for_port(self, port: u16) -> Self {
        // mov edx, port; in eax, dx; test eax, eax; jz back
        self.emit_with(&[0xba], &[port.into()])
            .emit(&[0xed, 0x85, 0xc0, 0x74, 0xfb])
    }

    /// Gives the registers of a disk on PCI a place, as firmware or a kernel does.
    pub(crate) fn place_disk(self, disk: u32) -> Self {
        let (config, at) = (CONFIG + u64::from(disk) * CONFIG_STEP, self.registers_of(disk));
        self.device(config, &[(0x10, u32::try_from(at).unwrap_or(0))])
    }

    /// Writes a text to the console.
    pub(crate) fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |guest, byte| guest.out(COM1, byte))
    }

    /// Writes bytes of memory to the console.
    pub(crate) fn print_memory(self, address: u32, len: u32) -> Self {
        (address..address + len).fold(self, |guest, at| {
            // mov al, [at]; mov edx, COM1; out dx, al
            let guest = guest.emit_with(&[0x8a, 0x04, 0x25], &[at]);
            guest.emit_with(&[0xba], &[COM1.into()]).emit(&[0xee])
        })
    }

    /// Waits for a byte on the console and sends it back.
    pub(crate) fn echo(self) -> Self {
        // mov edx, LSR; in al, dx; test al, 1; jz back; mov edx, COM1; in al, dx; out dx, al
        self.emit_with(&[0xba], &[u32::from(COM1) + 5])
            .emit(&[0xec, 0xa8, 0x01, 0x74, 0xfb])
            .emit_with(&[0xba], &[COM1.into()])
            .emit(&[0xec, 0xee])
    }

    /// `mov dword [address], value`
    pub(crate) fn store(self, address: u32, value: u32) -> Self {
        self.emit_with(&[0xc7, 0x04, 0x25], &[address, value])
    }

    /// Waits until the word in memory has this value.
    pub(crate) fn wait_for_word(self, address: u32, value: u16) -> Self {
        // cmp word [address], value; jne back
        self.emit_with(&[0x66, 0x81, 0x3c, 0x25], &[address])
            .emit(&value.to_le_bytes())
            .emit(&[0x75, 0xf4])
    }

    /// Waits until slots are to be released, and releases them.
    pub(crate) fn release_what_is_asked(self) -> Self {
        // mov edx, eject; out dx, eax; with what the port before read
        self.wait_for_port(0x624).emit_with(&[0xba], &[0x628]).emit(&[0xef])
    }

    /// Waits until the capacity of a disk on PCI is so many sectors.
    pub(crate) fn wait_for_capacity(self, disk: u32, sectors: u32) -> Self {
        // cmp dword [rbx + 0x2000], sectors; jne back
        let at = self.registers_of(disk);
        self.device(at, &[])
            .emit_with(&[0x81, 0xbb], &[0x2000, sectors])
            .emit(&[0x75, 0xf4])
    }

    /// Writes to registers of a device: offset and value.
    pub(crate) fn device(self, address: u64, registers: &[(u32, u32)]) -> Self {
        // mov rbx, address
        let guest = self.emit(&[0x48, 0xbb]).emit(&address.to_le_bytes());
        registers.iter().fold(guest, |guest, (offset, value)| {
            // mov dword [rbx + offset], value
            guest.emit_with(&[0xc7, 0x83], &[*offset, *value])
        })
    }

    /// Writes to a register of two bytes.
    fn device16(self, address: u64, offset: u32, value: u16) -> Self {
        // mov word [rbx + offset], value
        let guest = self.device(address, &[]).emit_with(&[0x66, 0xc7, 0x83], &[offset]);
        guest.emit(&value.to_le_bytes())
    }

    /// Writes to a register of one byte.
    fn device8(self, address: u64, offset: u32, value: u8) -> Self {
        // mov byte [rbx + offset], value
        let guest = self.device(address, &[]).emit_with(&[0xc6, 0x83], &[offset]);
        guest.emit(&[value])
    }

    /// The same as [`start_disk`](Self::start_disk), for any device on PCI, with VERSION_1 and these features.
    fn start_pci(self, disk: u32, features: u32) -> Self {
        let (rings, at) = (rings(disk), self.registers_of(disk));
        let config = CONFIG + u64::from(disk) * CONFIG_STEP;
        let guest = self.device16(config, 4, 2);
        let guest = guest.device8(at, 0x14, 0).device8(at, 0x14, 3);
        let guest = guest.device(at, &[(0x08, 0), (0x0c, features), (0x08, 1), (0x0c, 1)]);
        let guest = guest.device8(at, 0x14, 11).device16(at, 0x16, 0).device16(at, 0x18, 16);
        let guest = guest.device(at, &[(0x20, rings), (0x28, rings + AVAIL), (0x30, rings + USED)]);
        guest.device16(at, 0x1c, 1).device8(at, 0x14, 15)
    }

    /// Sets up a disk as a driver does, with the features VERSION_1 and FLUSH and 16 entries in the queue.
    pub(crate) fn start_disk(self, disk: u32) -> Self {
        if self.is_on_pci {
            return self.start_pci(disk, 1 << 9);
        }
        let (rings, at) = (rings(disk), self.registers_of(disk));
        let registers = [
            (0x70, 0),
            (0x70, 3),
            (0x24, 0),
            (0x20, 1 << 9),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x30, 0),
            (0x38, 16),
            (0x80, rings),
            (0x90, rings + AVAIL),
            (0xa0, rings + USED),
            (0x44, 1),
            (0x70, 15),
        ];
        self.device(at, &registers)
    }

    /// Does a request of one buffer, at [`data`] of the disk, and waits until it is answered.
    pub(crate) fn request(self, disk: u32, kind: u32, sector: u32, len: u32) -> Self {
        let rings = rings(disk);
        let guest = self.store(rings + HEADER, kind).store(rings + HEADER + 8, sector);
        guest.request_as_set(disk, kind, len)
    }

    /// The same, with the sector that is in the header already.
    fn request_as_set(self, disk: u32, kind: u32, len: u32) -> Self {
        let rings = rings(disk);
        let fills = if kind == READ { WRITE } else { 0 };
        let after_header = if len > 0 { 1 } else { 2 };
        self.store(rings + HEADER, kind)
            .descriptor(disk, 0, rings + HEADER, 16, NEXT | after_header << 16)
            .descriptor(disk, 1, rings + DATA, len, NEXT | fills | 2 << 16)
            .descriptor(disk, 2, rings + STATUS, 1, WRITE)
            .submit(disk)
    }

    /// Sets up the source of random numbers, in the last slot.
    pub(crate) fn start_rng(self) -> Self {
        self.start_pci(RNG, 0)
    }

    /// Draws random numbers, and prints them.
    pub(crate) fn print_random(self, len: u32) -> Self {
        self.descriptor(RNG, 0, data(RNG), len, WRITE)
            .submit(RNG)
            .print_memory(data(RNG), len)
    }

    /// Makes the chain from the first descriptor available, and waits until it is answered.
    fn submit(self, disk: u32) -> Self {
        let rings = rings(disk);
        let (at, bell) = (self.registers_of(disk), if self.is_on_pci { 0x3000 } else { 0x50 });
        // inc word [avail.idx]; every slot of the ring names descriptor 0
        self.emit_with(&[0x66, 0xff, 0x04, 0x25], &[rings + AVAIL + 2])
            .device(at, &[(bell, 0)])
            // mov ax, [avail.idx]; cmp ax, [used.idx]; jne back
            .emit_with(&[0x66, 0x8b, 0x04, 0x25], &[rings + AVAIL + 2])
            .emit_with(&[0x66, 0x3b, 0x04, 0x25], &[rings + USED + 2])
            .emit(&[0x75, 0xf6])
    }

    fn registers_of(&self, disk: u32) -> u64 {
        DEVICES + u64::from(disk) * if self.is_on_pci { 0x8000 } else { 0x1000 }
    }

    fn descriptor(self, disk: u32, number: u32, address: u32, len: u32, flags_and_next: u32) -> Self {
        let at = rings(disk) + number * 16;
        self.store(at, address)
            .store(at + 4, 0)
            .store(at + 8, len)
            .store(at + 12, flags_and_next)
    }

    /// Prints a digit: the status of the last request.
    pub(crate) fn print_status(self, disk: u32) -> Self {
        // add byte [status], '0'
        let guest = self.emit_with(&[0x80, 0x04, 0x25], &[rings(disk) + STATUS]).emit(b"0");
        guest.print_memory(rings(disk) + STATUS, 1)
    }

    /// For ever: writes the number `n` to sector 8 `n`, flushes, and prints `n` (4 bytes) and a line feed. It begins
    /// with `first`.
    pub(crate) fn count_on_disk(self, disk: u32, first: u32) -> Self {
        self.count(disk, first, |guest| guest)
    }

    /// The same, and what it prints and counts on from is what it has read back from there.
    pub(crate) fn count_and_read_back(self, disk: u32, first: u32) -> Self {
        self.count(disk, first, |guest| {
            guest.store(data(disk), u32::MAX).request_as_set(disk, READ, 512)
        })
    }

    /// The same on two disks: each number is written to the second one when it is durable on the first.
    pub(crate) fn count_on_two_disks(self, first: u32) -> Self {
        let second = 1;
        self.store(rings(second) + HEADER + 12, 0).count(0, first, |guest| {
            // mov eax, [counter]; mov [data of the second], eax; shl eax, 3; mov [sector], eax
            guest
                .emit_with(&[0x8b, 0x04, 0x25], &[data(0)])
                .emit_with(&[0x89, 0x04, 0x25], &[data(second)])
                .emit(&[0xc1, 0xe0, 0x03])
                .emit_with(&[0x89, 0x04, 0x25], &[rings(second) + HEADER + 8])
                .request_as_set(second, STORE, 512)
                .request_as_set(second, FLUSH, 0)
        })
    }

    fn count(self, disk: u32, first: u32, written: impl FnOnce(Self) -> Self) -> Self {
        let (counter, sector) = (data(disk), rings(disk) + HEADER + 8);
        let guest = self.store(counter, first).store(rings(disk) + HEADER + 12, 0);
        let start = guest.code.len();
        // mov eax, [counter]; shl eax, 3; mov [sector], eax
        let guest = guest
            .emit_with(&[0x8b, 0x04, 0x25], &[counter])
            .emit(&[0xc1, 0xe0, 0x03])
            .emit_with(&[0x89, 0x04, 0x25], &[sector])
            .request_as_set(disk, STORE, 512)
            .request_as_set(disk, FLUSH, 0);
        let guest = written(guest)
            .print_memory(counter, 4)
            .print("\n")
            // inc dword [counter]
            .emit_with(&[0xff, 0x04, 0x25], &[counter]);
        // jmp start
        let back = start as i32 - (guest.code.len() as i32 + 5);
        guest.emit(&[0xe9]).emit(&back.to_le_bytes())
    }

    /// Ends as ACPI does it.
    pub(crate) fn power_off(self) -> Self {
        self.out(0x600, 0x34).spin()
    }

    /// `jmp $`
    pub(crate) fn spin(self) -> Self {
        self.emit(&[0xeb, 0xfe])
    }

    /// `lidt [zeroes]; ud2`: without an interrupt table every fault leads to the next one.
    pub(crate) fn triple_fault(self) -> Self {
        self.emit_with(&[0x0f, 0x01, 0x1c, 0x25], &[RINGS]).emit(&[0x0f, 0x0b])
    }

    /// `cli; hlt; jmp back`
    pub(crate) fn halt(self) -> Self {
        self.emit(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// The guest as an ELF kernel.
    pub(crate) fn elf(&self) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2_u16.to_le_bytes());
        file.extend(62_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(u64::from(CODE).to_le_bytes());
        file.extend(64_u64.to_le_bytes());
        file.extend([0; 8 + 4]);
        for number in [64_u16, 56, 1, 64, 0, 0] {
            file.extend(number.to_le_bytes());
        }
        let (offset, len) = (0x1000_u64, self.code.len() as u64);
        file.extend(1_u32.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        for number in [offset, CODE.into(), CODE.into(), len, len, 0x1000] {
            file.extend(number.to_le_bytes());
        }
        file.resize(offset as usize, 0);
        file.extend(&self.code);
        file
    }

    /// The guest as a bzImage that is entered with 64 bits.
    pub(crate) fn bzimage(&self) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &0xaa55_u16.to_le_bytes());
        put(0x202, b"HdrS");
        put(0x206, &0x20f_u16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &CODE.to_le_bytes());
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(0x236, &1_u16.to_le_bytes());
        put(0x238, &2047_u32.to_le_bytes());
        put(0x258, &u64::from(CODE).to_le_bytes());
        put(0x260, &0x10_0000_u32.to_le_bytes());
        file.extend([0; 0x200]);
        file.extend(&self.code);
        file
    }
}

fn rings(disk: u32) -> u32 {
    RINGS + disk * 0x1_0000
}

/// Where the data of requests to a disk is.
pub(crate) fn data(disk: u32) -> u32 {
    rings(disk) + DATA
}

/// Whether guests can run here. Where they cannot, this says aloud what is not tested, and in CI that is a failure.
pub(crate) fn has_kvm(what: &str) -> bool {
    let device = std::path::Path::new("/dev/kvm");
    let opened = std::fs::File::options().read(true).write(true).open(device);
    let Err(error) = opened else {
        return true;
    };
    say(&format!("NOT TESTED: {what}, as /dev/kvm cannot be opened: {error}"));
    assert!(
        std::env::var_os("CI").is_none(),
        "CI needs a /dev/kvm for the tests of machines: {error}"
    );
    false
}

/// Says something that is to be seen although the test passes: the test harness swallows what `eprintln` prints.
fn say(text: &str) {
    use std::io::Write as _;
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{text}").expect("standard error is there");
}
