//! What a child recorded of its parent beside what a file is, for people and programs.

use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vhd_core::chain::{Fact, OpenedDisk, Relation};
use vhd_core::image::PathSource;
use vhd_core::ops::verify::{Verdict, VerifyOptions, verify};

use crate::human;
use crate::output::path_text;

/// What agrees and what does not.
#[derive(Serialize)]
pub(super) struct Agreement {
    path: PathFact,
    id: FactJson<String>,
    /// Null where the child has no record.
    modified: FactJson<Option<String>>,
    size: FactJson<u64>,
    /// What the digests say that are recorded beside the file; null where that was not asked, or for a raw file.
    content: Option<ContentFact>,
}

/// Whether the file's own content is that of its record of digests.
#[derive(Serialize)]
struct ContentFact {
    /// Null where nothing is recorded, or the record can't be used.
    agrees: Option<bool>,
    changed_bytes: u64,
    /// Why it can't be told.
    reason: Option<String>,
}

#[derive(Serialize)]
struct PathFact {
    agrees: bool,
    recorded: Vec<PlaceJson>,
    found: String,
}

#[derive(Serialize)]
struct PlaceJson {
    /// The code of the locator, or `name` for the name in the header.
    place: String,
    path: String,
    leads_there: bool,
}

#[derive(Serialize)]
struct FactJson<T> {
    agrees: bool,
    recorded: T,
    found: T,
}

impl Agreement {
    pub(super) fn of(relation: &Relation, parent: &Path) -> Self {
        let recorded = relation.paths.iter().map(|recorded| PlaceJson {
            place: match recorded.path.source {
                PathSource::Locator(code) => code.to_string(),
                PathSource::HeaderName => "name".to_owned(),
                PathSource::Key(key) => key.to_owned(),
            },
            path: recorded.path.path.clone(),
            leads_there: recorded.leads_there,
        });
        Self {
            path: PathFact {
                agrees: relation.path_agrees(),
                recorded: recorded.collect(),
                found: path_text(parent),
            },
            id: FactJson::of(&relation.id, ToString::to_string),
            modified: FactJson::of(&relation.modified, |time| human::utc(*time)),
            size: FactJson::of(&relation.disk_size, |size| *size),
            content: None,
        }
    }

    /// With what the digests of the parent say: the file is read where its length or its time is not the recorded one.
    pub(super) fn with_content(self, parent: &OpenedDisk, cancel: &AtomicBool) -> Self {
        let has_layer = parent.layers().next().is_some();
        Self {
            content: has_layer.then(|| ContentFact::of(parent, cancel)),
            ..self
        }
    }

    /// What only the user can know to be harmless.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        match (self.id.agrees, self.size.agrees) {
            (false, _) => Some("the identity"),
            (true, false) => Some("the size"),
            (true, true) => None,
        }
    }
}

impl ContentFact {
    fn of(parent: &OpenedDisk, cancel: &AtomicBool) -> Self {
        let options = VerifyOptions {
            fast: true,
            cancel,
            threads: 0,
        };
        let (agrees, changed_bytes, reason) = match verify(parent, 0, &options, &(), &mut |_| {}) {
            Ok(report) => match report.verdict {
                Verdict::NoRecord => (None, 0, Some("no digest recorded".to_owned())),
                Verdict::Unchanged | Verdict::Presumed => (Some(true), 0, None),
                Verdict::Changed => (Some(false), report.changed_bytes, None),
            },
            Err(error) => (None, 0, Some(error.to_string())),
        };
        Self {
            agrees,
            changed_bytes,
            reason,
        }
    }
}

impl fmt::Display for ContentFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<10} ", "content")?;
        match (self.agrees, &self.reason) {
            (Some(true), _) => writeln!(f, "{:<10} with the digests beside the file", verdict(true)),
            (Some(false), _) => {
                let bytes = human::binary(self.changed_bytes);
                writeln!(
                    f,
                    "{:<10} {bytes} changed since its digests were recorded",
                    verdict(false)
                )
            }
            (None, reason) => writeln!(f, "{:<10} {}", "unknown", reason.as_deref().unwrap_or_default()),
        }
    }
}

impl<T> FactJson<T> {
    fn of<F>(fact: &Fact<F>, show: impl Fn(&F) -> T) -> Self {
        Self {
            agrees: fact.agrees,
            recorded: show(&fact.recorded),
            found: show(&fact.found),
        }
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, label: &str, show: impl Fn(&T) -> String) -> fmt::Result {
        write!(
            f,
            "  {label:<10} {:<10} recorded {}",
            verdict(self.agrees),
            show(&self.recorded)
        )?;
        match self.agrees {
            true => writeln!(f),
            false => writeln!(f, ", found {}", show(&self.found)),
        }
    }
}

fn verdict(agrees: bool) -> &'static str {
    if agrees { "agrees" } else { "DISAGREES" }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = self.path.recorded.iter();
        let places: Vec<String> = places
            .map(|place| format!("{} ({})", place.path, place.place))
            .collect();
        let recorded = if places.is_empty() {
            "nothing".to_owned()
        } else {
            places.join(", ")
        };
        writeln!(
            f,
            "  {:<10} {:<10} recorded {recorded}",
            "path",
            verdict(self.path.agrees)
        )?;
        self.id.line(f, "identity", Clone::clone)?;
        self.modified
            .line(f, "time", |time| time.clone().unwrap_or_else(|| "nothing".to_owned()))?;
        self.size.line(f, "size", |size| human::bytes(*size))?;
        self.content.as_ref().map_or(Ok(()), |content| content.fmt(f))
    }
}
