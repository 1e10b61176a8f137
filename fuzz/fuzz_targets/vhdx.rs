#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vhd_fuzz::vhdx::vhdx(bytes));
