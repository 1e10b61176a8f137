#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vhd_fuzz::partition_table::partition_table(bytes));
