#![no_main]

// What it does is in the crate: it needs what others do not see of it.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hypervisor::fuzzing::virtio_pci(bytes));
