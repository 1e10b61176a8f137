//! Random numbers that are the same in every run.

pub(crate) use fastrand::Rng;

/// A generator for one part of a test. Its seed is printed: the output of a failed test says how to repeat it.
pub(crate) fn seeded(seed: u64, purpose: &str) -> Rng {
    let seed = vhd_testkit::rng::seed(seed);
    println!("{purpose}: {}={seed:#x}", vhd_testkit::rng::SEED_VARIABLE);
    vhd_testkit::rng::rng(seed)
}

pub(crate) fn random_bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// True in so many of a hundred cases.
pub(crate) fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}
