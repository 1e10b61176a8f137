#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vhd_fuzz::nbd_uri::run(bytes));
