//! How often the tests kill what they kill.

/// Rounds of each test that kills a process over and over: VHD_KILL_ROUNDS, or 12.
pub(crate) fn kill_rounds() -> u32 {
    let asked = std::env::var("VHD_KILL_ROUNDS");
    asked.map_or(12, |rounds| {
        rounds.parse().expect("VHD_KILL_ROUNDS is a number of rounds")
    })
}
