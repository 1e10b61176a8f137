//! A guest that is assembled here: it begins in ring 0, goes to ring 3, where every KVM runs code natively, and drives the first
//! disk over virtio-mmio by polling. It says `b` when it begins, `e` at the end, and then how often it rang (4 bytes).

use anyhow::Result;
use iced_x86::code_asm::{
    CodeAssembler, al, cr3, dword_ptr, dx, eax, ecx, edx, qword_ptr, r11, r12, r13, r14w, r15, rax, rbx, rcx, rdx, rsi,
    word_ptr,
};

/// Entries of the queue.
pub(crate) const QUEUE: u16 = 128;
/// Bytes of the data of a request.
pub(crate) const DATA_LEN: u32 = 4096;
/// Kinds of requests.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const GET_ID: u32 = 8;

const CODE: u64 = 0x10_0000;
const DESCRIPTORS: u64 = 0x20_0000;
const AVAILABLE: u64 = 0x20_1000;
const USED: u64 = 0x20_2000;
const HEADERS: u64 = 0x20_3000;
const STATUSES: u64 = 0x20_4000;
const DATA: u64 = 0x30_0000;
const SECTORS: u64 = 0x40_0000;
/// Registers of the first disk, and its bell.
const DEVICE: u64 = 0xd000_0000;
const BELL: u64 = DEVICE + 0x50;

const COM1: u32 = 0x3f8;
/// Times that the work is begun before it is measured: memory is touched for the first time then.
const WARM_UP: u64 = 128;

/// What it does.
pub(crate) enum Work<'a> {
    /// Requests at these sectors, so many at a time.
    Requests { kind: u32, depth: u16, sectors: &'a [u64] },
    /// Rings the bell although there is nothing to do.
    Bells { count: u64 },
    /// Fills memory up to an address, and then says something time and again, for ever.
    Fill { until: u64 },
}

/// The guest as an ELF kernel.
pub(crate) fn elf(work: &Work<'_>) -> Result<Vec<u8>> {
    let mut a = CodeAssembler::new(64)?;
    enter_ring_3(&mut a)?;
    match work {
        Work::Requests { kind, depth, sectors } => {
            start_disk(&mut a)?;
            prepare(&mut a, *kind, *depth)?;
            let batches = u64::try_from(sectors.len())? / u64::from(*depth);
            requests(&mut a, *depth, WARM_UP.min(batches))?;
            say(&mut a, b'b')?;
            requests(&mut a, *depth, batches)?;
        }
        Work::Bells { count } => {
            start_disk(&mut a)?;
            bells(&mut a, WARM_UP)?;
            say(&mut a, b'b')?;
            bells(&mut a, *count)?;
        }
        Work::Fill { until } => {
            fill(&mut a, *until)?;
            say(&mut a, b'b')?;
            talk(&mut a)?;
        }
    }
    say(&mut a, b'e')?;
    for _ in 0..4 {
        a.mov(rax, r15)?;
        a.mov(edx, COM1)?;
        a.out(dx, al)?;
        a.shr(r15, 8)?;
    }
    a.mov(edx, 0x600)?;
    a.mov(eax, 0x34)?;
    a.out(dx, al)?;
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.jmp(here)?;
    let sectors = match work {
        Work::Requests { sectors, .. } => sectors.iter().flat_map(|sector| sector.to_le_bytes()).collect(),
        Work::Bells { .. } | Work::Fill { .. } => vec![0; 8],
    };
    Ok(file(&[(CODE, &a.assemble(CODE)?), (SECTORS, &sectors)]))
}

/// All memory becomes that of users; no interrupt comes; then `sysret`.
fn enter_ring_3(a: &mut CodeAssembler) -> Result<()> {
    for port in [0x21, 0xa1] {
        a.mov(eax, 0xff)?;
        a.out(port, al)?;
    }
    let (mut pointers, mut pages) = (a.create_label(), a.create_label());
    a.mov(rax, cr3)?;
    a.or(qword_ptr(rax), 4)?;
    a.mov(rbx, qword_ptr(rax))?;
    a.and(rbx, -4096)?;
    a.mov(rcx, 0_u64)?;
    a.set_label(&mut pointers)?;
    a.or(qword_ptr(rbx + rcx * 8), 4)?;
    a.mov(rsi, qword_ptr(rbx + rcx * 8))?;
    a.and(rsi, -4096)?;
    a.mov(rdx, 0_u64)?;
    a.set_label(&mut pages)?;
    a.or(qword_ptr(rsi + rdx * 8), 4)?;
    a.inc(rdx)?;
    a.cmp(rdx, 512)?;
    a.jb(pages)?;
    a.inc(rcx)?;
    a.cmp(rcx, 4)?;
    a.jb(pointers)?;
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)?;
    // EFER.SCE, and the selectors that KVM expects of ring 3.
    a.mov(ecx, 0xc000_0080_u32)?;
    a.rdmsr()?;
    a.or(eax, 1)?;
    a.wrmsr()?;
    a.mov(ecx, 0xc000_0081_u32)?;
    a.mov(eax, 0)?;
    a.mov(edx, 0x23_0008)?;
    a.wrmsr()?;
    let mut ring_3 = a.create_label();
    a.lea(rcx, qword_ptr(ring_3))?;
    // Ports may be used: IOPL 3, or the empty bitmap of the task state at 0.
    a.mov(r11, 0x3002_u64)?;
    a.sysretq()?;
    a.set_label(&mut ring_3)?;
    a.mov(r15, 0_u64)?;
    Ok(())
}

fn say(a: &mut CodeAssembler, byte: u8) -> Result<()> {
    a.mov(edx, COM1)?;
    a.mov(eax, u32::from(byte))?;
    a.out(dx, al)?;
    Ok(())
}

/// Sets the disk up with the features VERSION_1 and FLUSH.
fn start_disk(a: &mut CodeAssembler) -> Result<()> {
    let registers = [
        (0x70, 0),
        (0x70, 3),
        (0x24, 0),
        (0x20, 1 << 9),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, u64::from(QUEUE)),
        (0x80, DESCRIPTORS),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
        (0x70, 15),
    ];
    a.mov(rbx, DEVICE)?;
    for (offset, value) in registers {
        a.mov(dword_ptr(rbx + offset), u32::try_from(value)?)?;
    }
    Ok(())
}

/// Descriptors of three for each request that is on its way, and rings that name them in turn.
fn prepare(a: &mut CodeAssembler, kind: u32, depth: u16) -> Result<()> {
    let fills = if kind == WRITE { 0_u32 } else { 2 };
    let len = if kind == GET_ID { 20 } else { DATA_LEN };
    for slot in 0..u64::from(depth) {
        let first = slot * 3;
        let next = |number: u64| Ok::<_, anyhow::Error>(u32::try_from(number)? << 16 | 1);
        let chain = [
            (HEADERS + slot * 16, 16, next(first + 1)?),
            (DATA + slot * u64::from(DATA_LEN), len, next(first + 2)? | fills),
            (STATUSES + slot, 1, 2),
        ];
        for (number, (address, len, flags)) in (first..).zip(chain) {
            a.mov(rbx, DESCRIPTORS + number * 16)?;
            a.mov(dword_ptr(rbx), u32::try_from(address)?)?;
            a.mov(dword_ptr(rbx + 8), len)?;
            a.mov(dword_ptr(rbx + 12), flags)?;
        }
        a.mov(rbx, HEADERS + slot * 16)?;
        a.mov(dword_ptr(rbx), kind)?;
    }
    for entry in 0..u64::from(QUEUE) {
        a.mov(rbx, AVAILABLE + 4 + entry * 2)?;
        a.mov(word_ptr(rbx), u32::try_from(entry % u64::from(depth) * 3)?)?;
    }
    a.mov(r14w, 0)?;
    Ok(())
}

/// So many batches: the sectors are set, all is made available at once, the bell is rung unless the device does not want it, and
/// the answers are waited for.
fn requests(a: &mut CodeAssembler, depth: u16, batches: u64) -> Result<()> {
    let (mut batch, mut wait, mut answered) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(r12, SECTORS)?;
    a.mov(r13, batches)?;
    a.set_label(&mut batch)?;
    a.mov(rbx, HEADERS + 8)?;
    for slot in 0..i64::from(depth) {
        a.mov(rax, qword_ptr(r12 + slot * 8))?;
        a.mov(qword_ptr(rbx + slot * 16), rax)?;
    }
    a.add(r12, i32::from(depth) * 8)?;
    a.add(r14w, i32::from(depth))?;
    a.mov(rbx, AVAILABLE)?;
    a.mfence()?;
    a.mov(word_ptr(rbx + 2), r14w)?;
    a.mfence()?;
    a.mov(rcx, USED)?;
    a.mov(rsi, BELL)?;
    a.test(word_ptr(rcx), 1)?;
    a.jne(wait)?;
    a.mov(dword_ptr(rsi), 0)?;
    a.inc(r15)?;
    a.set_label(&mut wait)?;
    a.cmp(word_ptr(rcx + 2), r14w)?;
    a.je(answered)?;
    a.pause()?;
    a.jmp(wait)?;
    a.set_label(&mut answered)?;
    a.dec(r13)?;
    a.jne(batch)?;
    Ok(())
}

fn bells(a: &mut CodeAssembler, count: u64) -> Result<()> {
    let mut again = a.create_label();
    a.mov(r13, count)?;
    a.mov(rsi, BELL)?;
    a.set_label(&mut again)?;
    a.mov(dword_ptr(rsi), 0)?;
    a.inc(r15)?;
    a.dec(r13)?;
    a.jne(again)?;
    Ok(())
}

/// No page is like another, and none is zero.
fn fill(a: &mut CodeAssembler, until: u64) -> Result<()> {
    let mut again = a.create_label();
    a.mov(rbx, SECTORS + 0x1000)?;
    a.mov(rcx, until)?;
    a.set_label(&mut again)?;
    a.mov(qword_ptr(rbx), rbx)?;
    a.add(rbx, 8)?;
    a.cmp(rbx, rcx)?;
    a.jb(again)?;
    Ok(())
}

/// A point every few hundred microseconds.
fn talk(a: &mut CodeAssembler) -> Result<()> {
    let (mut again, mut wait) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    say(a, b'.')?;
    a.mov(rcx, 1_000_000_u64)?;
    a.set_label(&mut wait)?;
    a.dec(rcx)?;
    a.jne(wait)?;
    a.jmp(again)?;
    Ok(())
}

/// An ELF file of these segments, entered at the first.
fn file(segments: &[(u64, &[u8])]) -> Vec<u8> {
    const HEADER: u64 = 64;
    let count = u16::try_from(segments.len()).unwrap_or(u16::MAX);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(segments[0].0.to_le_bytes());
    file.extend(HEADER.to_le_bytes());
    file.extend([0; 8 + 4]);
    for number in [64_u16, 56, count, 64, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    let mut offset = 0x1000_u64;
    for (address, bytes) in segments {
        let len = bytes.len() as u64;
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for number in [offset, *address, *address, len, len, 0x1000] {
            file.extend(number.to_le_bytes());
        }
        offset += len.next_multiple_of(0x1000);
    }
    for (_, bytes) in segments {
        file.resize(file.len().next_multiple_of(0x1000), 0);
        file.extend(*bytes);
    }
    file
}
