//! What a program that measures is told: `[DIR [NUMBER [NUMBER]]]`, and the `vhd` beside it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Arguments of a program that measures.
#[derive(Debug)]
pub struct Arguments {
    /// Where the disks go.
    pub place: PathBuf,
    /// The program that is measured.
    pub vhd: PathBuf,
    given: Vec<String>,
}

impl Arguments {
    /// Those of this program; the place is the current directory if none is named.
    ///
    /// # Errors
    /// There is no such directory, or no `vhd` beside this program.
    pub fn of_this_program() -> Result<Self> {
        let given: Vec<String> = std::env::args().skip(1).collect();
        let place = PathBuf::from(given.first().map_or(".", String::as_str)).canonicalize()?;
        let vhd = std::env::current_exe()?.with_file_name("vhd");
        ensure!(vhd.exists(), "there is no {}: build vhd-cli", vhd.display());
        Ok(Self { place, vhd, given })
    }

    /// The number at a place of the command line, where the directory is 0.
    ///
    /// # Errors
    /// What is there is no number.
    pub fn number(&self, index: usize, default: u64) -> Result<u64> {
        let text = self.given.get(index);
        text.map_or(Ok(default), |text| text.parse()).context("a number")
    }

    /// The text at a place of the command line, where the directory is 0; empty if there is none.
    #[must_use]
    pub fn text(&self, index: usize) -> &str {
        self.given.get(index).map_or("", String::as_str)
    }
}
