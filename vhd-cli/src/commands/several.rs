//! Commands that take several images: each has its turn, whatever becomes of the others.

use std::path::{Path, PathBuf};

use vhd_core::ErrorKind;

use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};

/// The images of a command, and how it reports on them.
pub(super) struct Several<'a> {
    pub(super) images: &'a [PathBuf],
    /// The command.
    pub(super) name: &'static str,
    pub(super) report: ReportArgs,
}

impl Several<'_> {
    /// Does `job` with each image; the worst that became of one ([`Exit::worse`]). Of several images each failure is
    /// told when it happens, and the next image follows, but for an interruption, which ends all.
    pub(super) fn each(&self, job: impl Fn(&Path) -> Result<Exit, Failure>) -> Result<Exit, Failure> {
        if let [image] = self.images {
            return job(image);
        }
        let mut worst = Exit::Ok;
        for image in self.images {
            let exit = match job(image) {
                Ok(exit) => exit,
                Err(failure)
                    if failure
                        .kind()
                        .is_none_or(|kind| kind == Kind::Library(ErrorKind::Cancelled)) =>
                {
                    return Err(failure);
                }
                Err(failure) => {
                    output::failure(self.report.json, self.name, &failure);
                    failure.exit()
                }
            };
            worst = worst.worse(exit);
        }
        Ok(worst)
    }
}
