//! The corpus, and seeded mutations of it: what the test suite runs instead of libFuzzer.

use std::fs;
use std::path::Path;

use fastrand::Rng;

/// Calls `test` with each file of the corpus of a target, and then with `count` mutations of them.
pub(crate) fn replay(target: &str, count: u32, test: impl Fn(&[u8])) {
    let asked = std::env::var("VHD_FUZZ_INPUTS").ok();
    let count = asked.map_or(count, |count| count.parse().expect("VHD_FUZZ_INPUTS is a number"));
    let seed = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("VHD_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let corpus = corpus(target);
    corpus.iter().for_each(|input| test(input));
    for _ in 0..count {
        let mut input = corpus[rng.usize(..corpus.len())].clone();
        for _ in 0..rng.u8(1..6) {
            mutate(&mut input, &corpus, &mut rng);
        }
        test(&input);
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let files = fs::read_dir(&dir).expect("there is a corpus");
    let mut paths: Vec<_> = files.map(|file| file.expect("it can be listed").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "the corpus of {target} is empty");
    let read = |path| fs::read(path).expect("a file of the corpus can be read");
    paths.into_iter().map(read).collect()
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let end = rng.usize(at..=input.len().min(at + 64));
    match rng.u8(..6) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..end)),
        2 => input[at..end].fill([0, 0xff, rng.u8(..)][rng.usize(..3)]),
        3 => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << rng.u8(..8)),
        4 => drop(input.splice(at..at, (0..rng.usize(..40)).map(|_| rng.u8(..)).collect::<Vec<_>>())),
        _ => {
            let other = &corpus[rng.usize(..corpus.len())];
            input.truncate(at);
            input.extend_from_slice(&other[rng.usize(..=other.len())..]);
        }
    }
}
