//! `vhd repair`: what is damaged in an image, and what it takes to put it right.

mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use vhd_core::ErrorKind;
use vhd_core::chain::dependants::{Dependants, Search};
use vhd_core::chain::{ChainError, require_vhd};
use vhd_core::format::{DiskType, UniqueId};
use vhd_core::image::Footers;
use vhd_core::job::RepairJob;
use vhd_core::ops::repair::{Facts, JournalState, RepairError, RepairPlan, UndoFile};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};

use super::parent_time::ParentTime;
use super::several::Several;
use crate::children::{self, ChildrenArgs};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::require_file;
use crate::output::{self, ReportArgs, path_text};
use crate::size;
use report::{RepairJson, Verdict};

pub(crate) const NAME: &str = "repair";

const EXAMPLES: &str = "\
Examples:
  vhd repair disk.vhd
  vhd repair disk.vhd --yes
  vhd repair disk.vhd --undo
  vhd repair disk.vhd --size 64G --yes
  vhd repair --json disk.vhd | jq '.doubts'

Without --yes nothing is changed: exit code 0 when there is nothing to repair, 4 when it can be repaired, 3 when it \
can't. With --yes what would be overwritten is kept in IMAGE.undo first; --undo puts it back. An interrupted repair is \
finished by the same command. What is not certain is marked \"assumed\", and the sectors (LBA) that may not read what \
they held are listed as lost or in doubt. Parents are not looked at.";

/// Arguments of `vhd repair`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RepairArgs {
    /// The images; --size and --type are facts about one
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Do it: write IMAGE.undo, then repair the image in place
    #[arg(long)]
    yes: bool,
    /// Take an earlier repair back, byte by byte, and remove IMAGE.undo
    #[arg(long, conflicts_with_all = ["yes", "size", "disk_type", "ignore_children"])]
    undo: bool,
    /// The size of the disk, where both footers are lost; footers of another size are taken for those of images inside
    #[arg(long, value_parser = size::parse_disk_size)]
    size: Option<u64>,
    /// The type of the image, where both footers and the header are lost; footers of another type do not count
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    disk_type: Option<LostType>,
    /// List each finding, change and range in doubt, however many there are
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// The value of `--type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LostType {
    /// Blocks and a table
    Dynamic,
    /// The whole disk and a footer
    Fixed,
}

impl From<LostType> for DiskType {
    fn from(lost: LostType) -> Self {
        match lost {
            LostType::Dynamic => Self::Dynamic,
            LostType::Fixed => Self::Fixed,
        }
    }
}

pub(crate) fn run(args: &RepairArgs) -> Result<Exit, Failure> {
    if args.images.len() > 1 && (args.size.is_some() || args.disk_type.is_some()) {
        return Err(Failure::usage(
            "--size and --type are facts about one image: repair the images one by one",
        ));
    }
    let several = Several {
        images: &args.images,
        name: NAME,
        report: args.report,
    };
    several.each(|image| repair(args, image))
}

fn repair(args: &RepairArgs, image: &Path) -> Result<Exit, Failure> {
    require_file(image, "repaired")?;
    let access = match args.yes || args.undo {
        true => Access::ReadWrite,
        false => Access::ReadOnly,
    };
    let job = Job {
        args,
        image,
        name: path_text(image),
        file: Arc::new(HostFile::open(image, access, Sharing::Exclusive)?),
    };
    RepairJob::of(image).check()?;
    let (mut json, exit) = if args.undo { job.undo() } else { job.repair() }?;
    json.list_all = args.verbose;
    output::report(args.report, NAME, &json)?;
    Ok(exit)
}

struct Job<'a> {
    args: &'a RepairArgs,
    image: &'a Path,
    name: String,
    file: Arc<dyn StorageFile>,
}

impl Job<'_> {
    fn failure(&self, error: RepairError) -> Failure {
        Failure::from(error).about(&self.name)
    }

    fn undo(&self) -> Result<(RepairJson, Exit), Failure> {
        let Some(undo) = UndoFile::find(self.image).map_err(|error| self.failure(error))? else {
            let path = UndoFile::path_of(self.image);
            let message = format!("{} does not exist: there is no repair to undo", path.display());
            return Err(Failure::new(Kind::Library(ErrorKind::NotFound), message));
        };
        let job = RepairJob::of(self.image);
        job.begin()?;
        undo.journal().undo(&*self.file).map_err(|error| self.failure(error))?;
        job.end();
        let json = RepairJson::of_journal(&self.name, Verdict::Undone, undo.journal());
        undo.remove().map_err(|error| self.failure(error))?;
        Ok((json, Exit::Ok))
    }

    fn repair(&self) -> Result<(RepairJson, Exit), Failure> {
        match self.earlier() {
            Ok(Some((undo, JournalState::Untouched | JournalState::Partial))) => return self.finish(&undo),
            // All of it is in the image, and it was killed before it could say so to the others.
            Ok(Some((undo, JournalState::Complete))) if RepairJob::of(self.image).is_open() => {
                return self.finish(&undo);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UndoMismatch => output::warning(format_args!(
                "{}: {error}; it is left alone, and has no effect once it is moved away",
                UndoFile::path_of(self.image).display()
            )),
            Err(error) => return Err(self.failure(error)),
        }
        let facts = Facts {
            size: self.args.size,
            disk_type: self.args.disk_type.map(Into::into),
        };
        self.refuse_foreign(&facts)?;
        let plan = RepairPlan::new(Arc::clone(&self.file), &facts).map_err(|error| self.failure(error))?;
        let verdict = match (plan.is_empty(), self.args.yes) {
            (true, _) => Verdict::Sound,
            (false, false) => Verdict::Repairable,
            (false, true) => self.apply(&plan)?,
        };
        let json = RepairJson::of_plan(&self.name, verdict, &plan);
        Ok((json, verdict.exit()))
    }

    /// Another program's format is not damage. What the user says of the image wins: the disk of a fixed image can begin
    /// with anything.
    fn refuse_foreign(&self, facts: &Facts) -> Result<(), Failure> {
        match require_vhd(&*self.file, self.image) {
            Err(
                error @ (ChainError::Foreign { .. } | ChainError::ReadOnlyFormat { .. } | ChainError::TooSmall { .. }),
            ) if facts.disk_type.is_none() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The undo file of an earlier repair, and how far that came.
    fn earlier(&self) -> Result<Option<(UndoFile, JournalState)>, RepairError> {
        let Some(undo) = UndoFile::find(self.image)? else {
            return Ok(None);
        };
        let state = undo.journal().state(&*self.file)?;
        Ok(Some((undo, state)))
    }

    /// INV-16: the undo file is there before the image is touched, and never replaced.
    fn apply(&self, plan: &RepairPlan) -> Result<Verdict, Failure> {
        let time = match plan.doubts().is_empty() {
            true => self.time_for_children(plan)?,
            false if self.args.children.ignore_children => None,
            false => {
                self.refuse_dependants(plan)?;
                None
            }
        };
        let created = UndoFile::create(self.image, plan.journal());
        let undo = created.map_err(|error| match error.kind() {
            ErrorKind::Exists => Failure::from(error).about(format_args!(
                "{}: the undo file of an earlier repair must be moved away first",
                self.name
            )),
            _ => self.failure(error),
        })?;
        let verdict = self.make(&undo)?;
        time.into_iter().for_each(ParentTime::keep);
        Ok(verdict)
    }

    /// The time that the file keeps where images are based on it: it reads the same afterwards.
    fn time_for_children(&self, plan: &RepairPlan) -> Result<Option<ParentTime>, Failure> {
        let found = self.dependants(plan);
        (!found.children().is_empty())
            .then(|| ParentTime::of(self.image))
            .transpose()
    }

    /// Who relies on the image, by the identity that it has once it is repaired.
    fn dependants(&self, plan: &RepairPlan) -> Dependants {
        let footers = Footers::read(&*plan.repaired());
        let id = footers.map_or(UniqueId::NIL, |footers| footers.footer.unique_id);
        Search::new().image(self.image, id).run()
    }

    /// What is in doubt may read differently afterwards, in all that is based on the image too.
    fn refuse_dependants(&self, plan: &RepairPlan) -> Result<(), Failure> {
        self.dependants(plan)
            .refuse()
            .map_err(|error| children::explain(error).about(&self.name))
    }

    /// INV-36: as long as a part of the repair is in the image, everybody sees that.
    fn make(&self, undo: &UndoFile) -> Result<Verdict, Failure> {
        let job = RepairJob::of(self.image);
        job.begin()?;
        undo.journal().apply(&*self.file).map_err(|error| {
            let failure = self.failure(error);
            failure.about("nothing is lost: run it again to finish, or with --undo")
        })?;
        job.end();
        Ok(Verdict::Repaired)
    }

    /// Finishes a repair that was interrupted.
    fn finish(&self, undo: &UndoFile) -> Result<(RepairJson, Exit), Failure> {
        let verdict = match self.args.yes {
            true => self.make(undo)?,
            false => Verdict::Unfinished,
        };
        let json = RepairJson::of_journal(&self.name, verdict, undo.journal());
        Ok((json, verdict.exit()))
    }
}
