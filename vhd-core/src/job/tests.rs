use super::*;
use crate::ErrorKind;
use std::fs;

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(names: &[&str]) -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        names.iter().for_each(|name| fs::write(lab.path(name), name).unwrap());
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn job(&self, record: &str, images: &[&str]) -> Job {
        let images = images.iter().map(|name| JobImage::held(&self.path(name)));
        Job::new(JobKind::Merge, &self.path(record), images)
    }

    fn begin(&self, record: &str, images: &[&str]) -> Result<Job, JobError> {
        let job = self.job(record, images);
        job.announce(|| Ok::<_, JobError>(JobKind::Merge.record().write(&self.path(record), &job.head())?))?;
        Ok(job)
    }

    fn is_open(&self, name: &str) -> bool {
        open_job(&self.path(name)).unwrap().is_some()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn inv_36_a_job_is_seen_from_every_image_until_it_is_done() {
    let lab = Lab::new(&["a", "b", "c"]);
    lab.begin("a.merge", &["a", "b"]).unwrap();
    assert_eq!(
        [lab.is_open("a"), lab.is_open("b"), lab.is_open("c")],
        [true, true, false]
    );
    let error = lab.begin("c.merge", &["c", "b"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::JobPending);
    assert!(error.to_string().contains("a.merge"), "{error}");
    assert!(
        !lab.names().iter().any(|name| name.starts_with("c.")),
        "{:?}",
        lab.names()
    );
    // The same job, with one image more.
    lab.begin("a.merge", &["a", "b", "c"]).unwrap();
    assert!(lab.is_open("c"));
    fs::rename(lab.path("a.merge"), lab.path("a.merge.done")).unwrap();
    assert!(!lab.is_open("a") && !lab.is_open("b"));
    sweep(JobKind::Merge, &lab.path("a.merge")).unwrap();
    assert_eq!(lab.names(), ["a", "b", "c"]);
}

#[test]
fn inv_36_what_a_crash_leaves_at_each_step() {
    // Markers without a record: nothing has begun, and another job goes over them.
    let lab = Lab::new(&["a", "b"]);
    let job = lab.job("a.merge", &["a", "b"]);
    job.write_markers().unwrap();
    assert!(!lab.is_open("a") && !lab.is_open("b"));
    let other = lab.begin("b.merge", &["b"]).unwrap();
    assert!(lab.is_open("b") && !lab.is_open("a"));
    // Some of the markers of one that is done are gone, the record is there: it ends again.
    fs::rename(lab.path("b.merge"), lab.path("b.merge.done")).unwrap();
    fs::remove_file(lab.path("b.job")).unwrap();
    lab.begin("c.merge", &["b"]).unwrap();
    other.close().unwrap();
    assert!(lab.is_open("b"), "the marker of another job stays");
}

#[test]
fn inv_37_a_marker_that_leads_nowhere_or_is_copied_does_not_count() {
    let lab = Lab::new(&["a", "b"]);
    fs::create_dir(lab.path("other")).unwrap();
    fs::write(lab.path("other/a"), "copy").unwrap();
    lab.begin("a.merge", &["a", "b"]).unwrap();
    // An image that is copied with its marker and without the record; and one beside the record.
    fs::copy(lab.path("a.job"), lab.path("other/a.job")).unwrap();
    assert!(!lab.is_open("other/a"));
    fs::write(lab.path("c"), "copy").unwrap();
    fs::copy(lab.path("a.job"), lab.path("c.job")).unwrap();
    assert!(!lab.is_open("c"), "the record does not name the copy");
    // A copy of all of it is a job on the copies.
    for name in ["a", "b", "a.job", "b.job", "a.merge"] {
        fs::copy(lab.path(name), lab.path("other").join(name)).unwrap();
    }
    let open = open_job(&lab.path("other/b")).unwrap().unwrap();
    assert_eq!(open.record, lab.path("other/a.merge").canonicalize().unwrap());
    // One that can't be read is not guessed at.
    fs::write(lab.path("a.job"), "").unwrap();
    assert_eq!(open_job(&lab.path("a")).unwrap_err().kind(), ErrorKind::RecordDamaged);
}

#[test]
fn inv_37_an_image_is_found_by_any_link_to_it() {
    let lab = Lab::new(&["a"]);
    lab.begin("a.merge", &["a"]).unwrap();
    fs::create_dir(lab.path("links")).unwrap();
    std::os::unix::fs::symlink("../a", lab.path("links/x")).unwrap();
    assert!(lab.is_open("links/x"));
}

#[test]
fn inv_38_a_record_proves_nothing_by_itself() {
    let lab = Lab::new(&["a", "b", "precious"]);
    lab.begin("a.merge", &["a", "b"]).unwrap();
    let forged = lab.job("a.merge", &["a", "b", "precious"]);
    forged.prove(&lab.path("b")).unwrap();
    std::os::unix::fs::symlink("b", lab.path("link")).unwrap();
    for name in ["precious", "link", "none"] {
        assert_eq!(
            forged.prove(&lab.path(name)).unwrap_err().kind(),
            ErrorKind::RecordDamaged,
            "{name}"
        );
    }
}
