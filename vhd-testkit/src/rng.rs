//! Seeds: where they come from, and how a failure tells them.

/// The environment variable that replaces every test's default seed.
pub const SEED_VARIABLE: &str = "VHD_TEST_SEED";

/// A generator that gives the same numbers for the same seed on every machine.
#[must_use]
pub fn rng(seed: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed)
}

/// Mixes two numbers into a third that looks unrelated: a seed for part `salt` of a test.
#[must_use]
pub fn mix(seed: u64, salt: u64) -> u64 {
    // The finaliser of SplitMix64: every input bit reaches every output bit.
    let mut z = seed ^ salt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `default`, or the number in the environment variable [`SEED_VARIABLE`] (decimal, or hexadecimal after `0x`).
///
/// # Panics
/// When the variable is set but holds no number.
#[must_use]
pub fn seed(default: u64) -> u64 {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => parse(text.trim()).unwrap_or_else(|| panic!("{SEED_VARIABLE}={text:?} is no number")),
        Err(_) => default,
    }
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Prints a seed if the thread panics while it lives: keep one for as long as the seed matters.
#[derive(Debug)]
pub struct SeedOnPanic {
    what: &'static str,
    seed: u64,
}

impl SeedOnPanic {
    /// Tells `what` and `seed` on a panic.
    #[must_use]
    pub fn new(what: &'static str, seed: u64) -> Self {
        Self { what, seed }
    }
}

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{} failed with seed {:#x} (repeat with {SEED_VARIABLE}={:#x})",
                self.what, self.seed, self.seed
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_numbers() {
        let (mut a, mut b) = (rng(7), rng(7));
        assert!((0..100).all(|_| a.u64(..) == b.u64(..)));
        assert_ne!(mix(7, 0), mix(7, 1));
        assert_ne!(mix(7, 0), mix(8, 0));
    }

    #[test]
    fn seeds_are_read_in_both_bases() {
        assert_eq!(parse("12"), Some(12));
        assert_eq!(parse("0x1f"), Some(31));
        assert_eq!(parse("x"), None);
    }
}
