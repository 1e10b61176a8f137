#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vhd_fuzz::open_image::open_image(bytes));
