//! The two disks of a comparison.

use std::path::{Path, PathBuf};

use clap::Args;
use vhd_core::chain::OpenedDisk;

use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::input::{ChainArgs, Source, SourceArgs, check_one_stdin};

/// Which two disks.
#[derive(Args, Debug)]
pub(crate) struct PairArgs {
    /// A disk: an image, any leaf of a chain, an NBD URI, or - for standard input
    a: PathBuf,
    /// Another one
    b: PathBuf,
    /// The format of both, where their contents do not tell or tell wrong
    #[arg(long, value_name = "FORMAT", value_enum)]
    from: Option<FormatArg>,
    /// The format of B alone
    #[arg(long, value_name = "FORMAT", value_enum)]
    from_b: Option<FormatArg>,
    #[command(flatten)]
    chain: ChainArgs,
}

/// Two open disks.
pub(crate) struct Pair {
    pub(crate) a: OpenedDisk,
    pub(crate) b: OpenedDisk,
    /// What the user called them.
    pub(crate) names: [String; 2],
}

impl PairArgs {
    /// Opens both for reading, and says what is odd about them.
    pub(crate) fn open(&self) -> Result<Pair, Failure> {
        check_one_stdin(&self.a, &self.b)?;
        let (a_name, a) = self.open_one(&self.a, self.from)?;
        let (b_name, b) = self.open_one(&self.b, self.from_b.or(self.from))?;
        let names = [a_name, b_name];
        Ok(Pair { a, b, names })
    }

    fn open_one(&self, path: &Path, from: Option<FormatArg>) -> Result<(String, OpenedDisk), Failure> {
        let source = Source::or_remote(path, None)?;
        let chain = self.chain.clone();
        let opened = SourceArgs { from, chain }.open(&source)?;
        Ok((source.name, opened))
    }
}

/// What is odd about either.
pub(crate) fn warnings(a: &OpenedDisk, b: &OpenedDisk) -> Vec<String> {
    let both = [a, b].into_iter().flat_map(OpenedDisk::warnings);
    both.map(ToString::to_string).collect()
}
