#![no_main]

use std::sync::LazyLock;

use vhd_fuzz::nbd_client::Target;

static TARGET: LazyLock<Target> = LazyLock::new(Target::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.run(bytes));
