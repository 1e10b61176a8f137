//! One image looked at: its check, jobs that are open on it, its snapshots.

use std::path::{Path, PathBuf};

use vhd_core::ErrorKind;
use vhd_core::chain::ImageFormat;
use vhd_core::check::{FindingCode, Severity};
use vhd_core::job::{Finish, OpenJob, open_job};
use vhd_core::ops::repair::UndoFile;
use vhd_core::snapshot::{self, SnapshotError};
use vhd_core::storage::Sharing;

use super::remedy::{Safety, Step, on_image};
use super::shell::path_word;
use super::{Advice, Diagnosis, Finding, Remedy, Weight};
use crate::codes::Kind;
use crate::commands::check::{Checked, Outlook, check_file};
use crate::failure::Failure;
use crate::human;

impl Diagnosis {
    /// Looks at each image by itself.
    pub(super) fn examine_all(&mut self, mut begin: impl FnMut(&Path)) {
        let mut records = Vec::new();
        for member in 0..self.forest.members().len() {
            let path = self.path(member).to_owned();
            begin(&path);
            let job = self.examine_job(member, &path, &mut records);
            let checked = self.check(member, &path, job);
            self.checked.push(checked);
            self.examine_snapshots(member, &path);
        }
    }

    fn check(&mut self, member: usize, path: &Path, has_job: bool) -> Option<Checked> {
        let checked = match check_file(path, Sharing::Exclusive) {
            Ok(checked) => checked,
            Err(failure) => {
                self.not_checked(member, &failure);
                return None;
            }
        };
        let found = checked.report.findings.iter();
        self.findings
            .extend(found.map(|found| Finding::of_check(member, found)));
        let is_corrupt = checked.report.worst() == Some(Severity::Corrupt);
        if let (Err(error), false) = (&self.forest.members()[member].state, is_corrupt) {
            // The chain may be stricter than the check.
            let failure = Failure::library(error.kind(), error);
            self.findings.push(Finding::of_failure(member, &failure));
        }
        // A job comes first: nothing else is done to the image meanwhile.
        if !has_job {
            self.mend(member, path, &checked);
        }
        Some(checked)
    }

    fn not_checked(&mut self, member: usize, failure: &Failure) {
        let finding = Finding::of_failure(member, failure);
        let advice = match finding.severity {
            Weight::Locked => "another program uses it, so it was not checked: look again when that has ended",
            Weight::Refused => "it is not an image that is read here, whatever its name says",
            _ => "it can't be looked at: see the finding",
        };
        self.findings.push(finding);
        self.advice.push(Advice::new(member, advice));
    }

    /// What puts the findings of a check right.
    fn mend(&mut self, member: usize, path: &Path, checked: &Checked) {
        let Some(worst) = checked.report.worst().filter(|worst| *worst > Severity::Note) else {
            return;
        };
        if checked.format != ImageFormat::Vhd {
            return self.mend_foreign(member, path, checked.format);
        }
        if worst == Severity::Leak {
            return self.mend_leak(member, path, checked);
        }
        match checked.outlook {
            Some(outlook) if outlook.opens => self.repair(member, path, outlook),
            _ => {
                let command = on_image("repair", path, "");
                let purpose = "say what must be known to repair it (--size, --type)";
                self.remedies
                    .push(Remedy::new(member, Step::Look, Safety::Reads, purpose, command));
                self.advice
                    .push(Advice::new(member, "it can't be repaired from what is in it alone"));
            }
        }
    }

    fn repair(&mut self, member: usize, path: &Path, outlook: Outlook) {
        let loss = human::loss(outlook.lost_sectors, outlook.doubtful_sectors);
        let (safety, purpose, words) = match loss {
            None => (Safety::Undoable, "repair it".to_owned(), "--yes"),
            // It is refused unless the user says that he knows.
            Some(loss) if self.has_children(member) => {
                let purpose = format!("repair it, with {loss}, for the images that are based on it too");
                (Safety::Assumes, purpose, "--yes --ignore-children")
            }
            Some(loss) => (Safety::Assumes, format!("repair it, with {loss}"), "--yes"),
        };
        let mut command = on_image("repair", path, words);
        if let Some(aside) = free_name_for_undo(path) {
            let (undo, aside) = (path_word(&UndoFile::path_of(path)), path_word(&aside));
            command = format!("mv {undo} {aside} && {command}");
        }
        self.remedies
            .push(Remedy::new(member, Step::Repair, safety, purpose, command));
    }

    /// Space that nothing uses. What looks like blocks may be the only copy of something.
    fn mend_leak(&mut self, member: usize, path: &Path, checked: &Checked) {
        let leaked = human::binary(checked.report.leaked_bytes);
        if checked
            .report
            .findings
            .iter()
            .any(|found| found.code == FindingCode::OrphanBlocks)
        {
            let command = on_image("repair", path, "");
            let purpose = "list the blocks that no table entry leads to";
            self.remedies
                .push(Remedy::new(member, Step::Look, Safety::Reads, purpose, command));
            let advice =
                format!("{leaked} that nothing leads to look like blocks of the disk: `vhd compact` would drop them");
            self.advice.push(Advice::new(member, advice));
            return;
        }
        let purpose = format!("give {leaked} back that nothing uses");
        let command = on_image("compact", path, "");
        self.remedies
            .push(Remedy::new(member, Step::Space, Safety::Shrinks, purpose, command));
    }

    fn mend_foreign(&mut self, member: usize, path: &Path, format: ImageFormat) {
        let copy = on_image("convert", path, "NEW.vhd");
        let message = format!(
            "{} images are never written here: `{copy}` makes a sound VHD of what can be read; `qemu-img check -r all` of \
             qemu replays a log and repairs some damage in place",
            format.label()
        );
        self.advice.push(Advice::new(member, message));
    }

    /// A job that is open on the image, and what finishes it; each job once.
    fn examine_job(&mut self, member: usize, path: &Path, records: &mut Vec<PathBuf>) -> bool {
        let job = match open_job(path) {
            Ok(None) => return false,
            Ok(Some(job)) => job,
            Err(error) => {
                self.findings.push(Finding::of_failure(member, &error.into()));
                self.advice.push(Advice::new(
                    member,
                    "nobody can tell whether a job is unfinished: if none is, remove the file",
                ));
                return true;
            }
        };
        let message = format!("an unfinished {} is recorded in {}", job.kind, job.record.display());
        let code = Kind::Library(ErrorKind::JobPending).code().name;
        self.findings
            .push(Finding::new(member, code, Weight::Repairable, message));
        if !records.contains(&job.record) {
            self.finish(member, &job);
            records.push(job.record);
        }
        true
    }

    fn finish(&mut self, member: usize, job: &OpenJob) {
        let finish = match job.finish() {
            Ok(Some(finish)) => finish,
            Ok(None) => return,
            Err(error) => {
                self.findings.push(Finding::of_failure(member, &error.into()));
                return;
            }
        };
        let Some(command) = self.finishing(&finish) else {
            return;
        };
        let purpose = format!("finish the {} that was begun", job.kind);
        self.remedies
            .push(Remedy::new(member, Step::Job, Safety::Finishes, purpose, command));
    }

    /// The command that goes on with a job.
    fn finishing(&self, finish: &Finish) -> Option<String> {
        Some(match finish {
            Finish::Merge { child, into, carry } => {
                let into = into.as_ref().map(|into| format!("--into {}", path_word(into)));
                let words = [into, carry.then(|| "--carry".to_owned())];
                on_image(
                    "merge",
                    child,
                    &words.into_iter().flatten().collect::<Vec<_>>().join(" "),
                )
            }
            Finish::Resize { image, size, tree } => {
                let tree = if *tree { " --tree" } else { "" };
                let shrink = if self.size_of(image).is_some_and(|now| now > *size) {
                    " --shrink"
                } else {
                    ""
                };
                on_image("resize", image, &format!("{size}{tree}{shrink}"))
            }
            Finish::NewId { image } => on_image("new-id", image, ""),
            Finish::Repair { image } => on_image("repair", image, "--yes"),
            _ => return None,
        })
    }

    /// Bytes on the disk of a member.
    fn size_of(&self, path: &Path) -> Option<u64> {
        let is_it =
            |member: &&vhd_core::chain::forest::Member| member.path.canonicalize().is_ok_and(|full| full == path);
        let member = self.forest.members().iter().find(is_it)?;
        member.state.as_ref().ok().map(|facts| facts.disk_size)
    }

    /// The snapshots of a disk whose base the image is.
    fn examine_snapshots(&mut self, member: usize, path: &Path) {
        let mut manifest = path.as_os_str().to_owned();
        manifest.push(".snapshots");
        if !Path::new(&manifest).is_file() {
            return;
        }
        let (finding, purpose) = match snapshot::survey(path) {
            Ok(survey) if survey.manifest.pending.is_some() => {
                let message = "a change of its snapshots was interrupted";
                (
                    Finding::new(member, "snapshot-pending", Weight::Repairable, message),
                    "finish what was begun with its snapshots",
                )
            }
            Ok(_) => return,
            Err(error) if is_about_manifest(&error) => {
                let failure = Failure::from(error);
                (
                    Finding::of_failure(member, &failure),
                    "rebuild the list of its snapshots from the images",
                )
            }
            // The image's own findings say what is wrong.
            Err(_) => return,
        };
        self.findings.push(finding);
        let command = on_image("snapshot rescan", path, "");
        self.remedies
            .push(Remedy::new(member, Step::Link, Safety::Records, purpose, command));
    }
}

fn is_about_manifest(error: &SnapshotError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::RecordDamaged | ErrorKind::ManifestStale | ErrorKind::SnapshotMissing | ErrorKind::NotFound
    )
}

/// Where the undo file of an earlier repair can go, if there is one: a repair does not replace it.
fn free_name_for_undo(path: &Path) -> Option<PathBuf> {
    let undo = UndoFile::path_of(path);
    undo.symlink_metadata().ok()?;
    (1..10_000).find_map(|number: u32| {
        let mut name = undo.clone().into_os_string();
        name.push(format!(".{number}"));
        let name = PathBuf::from(name);
        name.symlink_metadata().is_err().then_some(name)
    })
}
