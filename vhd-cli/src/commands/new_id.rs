//! `vhd new-id`: an identity of its own for an image.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_core::ops::new_id::{NewId, NewIdError, NewIdOptions};

use super::parent_time::ParentTime;
use crate::children;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs, path_text};

pub(crate) const NAME: &str = "new-id";

const EXAMPLES: &str = "\
Examples:
  cp base.vhd copy.vhd && vhd new-id copy.vhd --ignore-children
  vhd new-id copy.vhd --child test.avhd --ignore-children
  vhd new-id --json disk.vhd --all-children | jq -r .new_id

A copy of an image has the identity of its original, and nothing tells which of the two a child is based on: the \
children that are to follow the copy must be named. They must have its present identity recorded; they get the new \
one, and the way to this file. Children that are found and not named keep the old identity, and look for another file that \
has it: that needs --ignore-children.

Nothing changes before all files have been looked at. A crash on the way is finished by running `vhd new-id IMAGE` \
again, with the same new identity; until then the children may be refused, but never read over the wrong file.";

/// Arguments of `vhd new-id`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct NewIdArgs {
    /// The image that gets a new random identity; nothing else uses it
    image: PathBuf,
    /// A differencing image that is to be based on it from now on
    #[arg(long = "child", value_name = "FILE")]
    children: Vec<PathBuf>,
    /// All images that are found to be based on it follow it
    #[arg(long)]
    all_children: bool,
    /// Leave the children that are not named without this parent, known or not
    #[arg(long, visible_alias = "force", conflicts_with = "all_children")]
    ignore_children: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct NewIdJson {
    image: String,
    dry_run: bool,
    old_id: String,
    /// In a dry run null, unless an unfinished change has settled it.
    new_id: Option<String>,
    children: Vec<String>,
    /// An earlier run began it.
    resumed: bool,
}

impl fmt::Display for NewIdJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.dry_run { "would become" } else { "became" };
        let new = self.new_id.as_deref().unwrap_or("a new identity");
        writeln!(f, "{}: {} {verb} {new}", self.image, self.old_id)?;
        if self.resumed {
            writeln!(f, "  finishing a change that was begun before")?;
        }
        let follows = if self.dry_run { "would follow" } else { "follows" };
        self.children
            .iter()
            .try_for_each(|child| writeln!(f, "  {child} {follows}"))
    }
}

pub(crate) fn run(args: &NewIdArgs) -> Result<Exit, Failure> {
    let options = NewIdOptions {
        children: args.children.clone(),
        all_children: args.all_children,
        leave_others: args.ignore_children,
    };
    let plan = NewId::plan(&args.image, &options).map_err(with_hint)?;
    let json = NewIdJson {
        image: path_text(&args.image),
        dry_run: args.dry_run,
        old_id: plan.old_id().to_string(),
        new_id: (!args.dry_run || plan.is_resumed()).then(|| plan.new_id().to_string()),
        children: plan.children().iter().map(|child| path_text(child)).collect(),
        resumed: plan.is_resumed(),
    };
    if !args.dry_run {
        // What the children read does not change: children of their own shall not ask why their files did.
        let times = plan.children().iter().map(|child| ParentTime::if_parent(child));
        let times = times.collect::<Result<Vec<_>, _>>()?;
        let record = plan.record_path();
        let done = plan.run();
        times.into_iter().flatten().for_each(ParentTime::keep);
        if done.is_err() {
            output::warn_if_begun("change of its identity", &args.image, &record);
        }
        done.map_err(with_hint)?;
    }
    output::report(args.report, NAME, &json)?;
    Ok(Exit::Ok)
}

fn with_hint(error: NewIdError) -> Failure {
    let others = matches!(error, NewIdError::OtherChildren { .. });
    if !others {
        return children::explain(error);
    }
    let failure = Failure::from(error);
    match failure.kind() {
        Some(kind) => Failure::new(
            kind,
            format!(
                "{}: name them with --child, or all with --all-children, or leave them with --ignore-children",
                failure.message()
            ),
        ),
        _ => failure,
    }
}
