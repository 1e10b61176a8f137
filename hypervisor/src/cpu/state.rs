//! A processor as data.
//!
//! The order is that of other monitors: what accepts pending events is saved first, pending exceptions last; the local APIC is
//! restored after the system registers, which have its address, and MSRs after it, since one of them starts its timer.

use kvm_bindings::{Msrs, kvm_mp_state, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::{Kvm, VcpuFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Error;
use crate::error::kvm;
use crate::kvm::Vm;
use crate::state::{Msr, Processor, StateError};

const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// By which the frequency of the time stamp counter may differ, in millionths: guests take it for constant.
const TSC_TOLERANCE: u64 = 250;

/// Model-specific registers that belong to the guest: ranges of their numbers.
const SAVED_MSRS: &[std::ops::RangeInclusive<u32>] = &[
    TSC..=0x12,    // time stamp counter, and the clock of KVM at its old numbers
    0x3b..=0x3b,   // TSC_ADJUST
    0x48..=0x48,   // SPEC_CTRL
    0x174..=0x176, // SYSENTER
    0x1a0..=0x1a0, // MISC_ENABLE
    0x1c4..=0x1c5, // extended features that are disabled
    0x1d9..=0x1d9, // DEBUGCTL
    0x200..=0x20f, // memory types
    0x250..=0x26f, // memory types
    0x277..=0x277, // PAT
    0x2ff..=0x2ff, // memory types
    TSC_DEADLINE..=TSC_DEADLINE,
    0xda0..=0xda0,             // XSS
    0x4b56_4d00..=0x4b56_4dff, // KVM
    0xc000_0080..=0xc000_0084, // EFER, system calls
    0xc000_0100..=0xc000_0103, // FS, GS, TSC_AUX
    0xc001_011f..=0xc001_011f, // VIRT_SPEC_CTRL
];

/// The numbers of the registers that are saved on this host.
pub(crate) fn saved_msrs(system: &Kvm) -> Result<Vec<u32>, Error> {
    let known = system
        .get_msr_index_list()
        .map_err(kvm("list the registers of processors"))?;
    let is_saved = |index: &u32| SAVED_MSRS.iter().any(|range| range.contains(index));
    Ok(known.as_slice().iter().copied().filter(is_saved).collect())
}

/// The state of a processor that is held.
pub(crate) fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Processor, Error> {
    let failed = kvm("read the state of a processor");
    let mp_state = vcpu.get_mp_state().map_err(&failed)?;
    let regs = vcpu.get_regs().map_err(&failed)?;
    let sregs = vcpu.get_sregs().map_err(&failed)?;
    let xsave = vcpu.get_xsave().map_err(&failed)?;
    let xcrs = vcpu.get_xcrs().map_err(&failed)?;
    let debug_regs = vcpu.get_debug_regs().map_err(&failed)?;
    let lapic = vcpu.get_lapic().map_err(&failed)?;
    let msrs = read_msrs(vcpu, msrs)?;
    let events = vcpu.get_vcpu_events().map_err(&failed)?;
    Ok(Processor {
        mp_state: bytes(&mp_state),
        regs: bytes(&regs),
        sregs: bytes(&sregs),
        xsave: bytes(&xsave),
        xcrs: bytes(&xcrs),
        debug_regs: bytes(&debug_regs),
        lapic: bytes(&lapic),
        msrs,
        events: bytes(&events),
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
    })
}

/// Gives a new processor the state, `tsc` being the time stamp counter of the first: KVM takes counters that are set alike for
/// synchronous.
pub(crate) fn restore(vm: &Vm, vcpu: &VcpuFd, saved: &Processor, tsc: Option<u64>) -> Result<(), Error> {
    let failed = kvm("set the state of a processor");
    match_frequency(vcpu, saved.tsc_khz)?;
    let mp_state: kvm_mp_state = structure(&saved.mp_state)?;
    vcpu.set_mp_state(mp_state).map_err(&failed)?;
    vcpu.set_regs(&structure(&saved.regs)?).map_err(&failed)?;
    vcpu.set_sregs(&structure(&saved.sregs)?).map_err(&failed)?;
    let xsave: kvm_xsave = structure(&saved.xsave)?;
    vm.set_xsave(vcpu, &xsave)?;
    vcpu.set_xcrs(&structure(&saved.xcrs)?).map_err(&failed)?;
    vcpu.set_debug_regs(&structure(&saved.debug_regs)?).map_err(&failed)?;
    vcpu.set_lapic(&structure(&saved.lapic)?).map_err(&failed)?;
    write_msrs(vcpu, &saved.msrs, tsc)?;
    vcpu.set_vcpu_events(&structure(&saved.events)?).map_err(&failed)
}

/// The time stamp counter of a saved processor.
pub(crate) fn tsc(saved: &Processor) -> Option<u64> {
    value(&saved.msrs, TSC)
}

fn value(msrs: &[Msr], index: u32) -> Option<u64> {
    msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
}

/// The registers that the processor has: which those are depends on its features.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, Error> {
    let failed = kvm("read the registers of a processor");
    let mut saved = Vec::new();
    for index in indices {
        let entry = kvm_msr_entry {
            index: *index,
            ..Default::default()
        };
        // One at a time: the first that the processor does not have would end a list.
        if let Ok(mut one) = Msrs::from_entries(&[entry])
            && vcpu.get_msrs(&mut one).map_err(&failed)? == 1
        {
            let value = one.as_slice()[0].data;
            saved.push(Msr { index: *index, value });
        }
    }
    // A timer that has fired has no deadline any more; should its interrupt be lost, it fires once more.
    if let Some(now) = value(&saved, TSC)
        && let Some(deadline) = saved.iter_mut().find(|msr| msr.index == TSC_DEADLINE && msr.value == 0)
    {
        deadline.value = now;
    }
    Ok(saved)
}

/// The time stamp counter first, the deadline that it is compared with last.
fn write_msrs(vcpu: &VcpuFd, saved: &[Msr], tsc: Option<u64>) -> Result<(), Error> {
    let mut ordered = saved.to_vec();
    ordered.sort_by_key(|msr| match msr.index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    });
    for msr in ordered {
        let data = tsc.filter(|_| msr.index == TSC).unwrap_or(msr.value);
        let entry = kvm_msr_entry {
            index: msr.index,
            data,
            ..Default::default()
        };
        let written = Msrs::from_entries(&[entry]).map(|one| vcpu.set_msrs(&one));
        if !matches!(written, Ok(Ok(1))) {
            let reasons = vec![format!("register {:#x} cannot be set to {data:#x}", msr.index)];
            return Err(StateError::Processor { reasons }.into());
        }
    }
    Ok(())
}

/// The frequency of the time stamp counter is the guest's, or near enough.
fn match_frequency(vcpu: &VcpuFd, saved: u32) -> Result<(), Error> {
    let here = vcpu.get_tsc_khz().unwrap_or(0);
    let difference = u64::from(here.abs_diff(saved)) * 1_000_000;
    let is_near = difference <= u64::from(saved) * TSC_TOLERANCE;
    if saved == 0 || here == 0 || is_near || vcpu.set_tsc_khz(saved).is_ok() {
        return Ok(());
    }
    let reasons = vec![format!(
        "its time stamp counter has {here} kHz, and the guest's {saved} kHz"
    )];
    Err(StateError::Processor { reasons }.into())
}

/// A structure of KVM as bytes.
pub(crate) fn bytes<T: IntoBytes + Immutable>(structure: &T) -> Vec<u8> {
    structure.as_bytes().to_vec()
}

/// Bytes as a structure of KVM, if they are as many.
pub(crate) fn structure<T: FromBytes>(bytes: &[u8]) -> Result<T, StateError> {
    let wrong = |_| {
        let what = format!("has a structure of {} bytes, expected {}", bytes.len(), size_of::<T>());
        StateError::damaged("processor", &what)
    };
    T::read_from_bytes(bytes).map_err(wrong)
}
