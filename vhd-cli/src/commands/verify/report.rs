//! What `vhd verify` reports.

use std::fmt;

use serde::{Serialize, Serializer};
use vhd_core::chain::ChainLayer;
use vhd_core::ops::verify::record_path;

use super::Outcome;
use crate::commands::ranges::RangeList;
use crate::failure::Failure;
use crate::human;
use crate::output::path_text;

#[derive(Serialize)]
pub(super) struct VerifyJson {
    pub(super) image: String,
    pub(super) mode: &'static str,
    pub(super) layers: Vec<LayerJson>,
    pub(super) warnings: Vec<String>,
}

/// What is said of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LayerVerdict {
    /// Read, and as recorded.
    Unchanged,
    /// Length and modification time are as recorded.
    Presumed,
    /// Not as recorded.
    Changed,
    /// Nothing is known.
    NoRecord,
    /// The record or the layer can't be used.
    Error,
    /// A record was written.
    Recorded,
    /// A record was written over an older one.
    Replaced,
    /// There was a record, and it stays.
    Kept,
}

#[derive(Serialize)]
pub(super) struct LayerJson {
    pub(super) depth: usize,
    pub(super) path: String,
    record: String,
    virtual_size: u64,
    pub(super) verdict: LayerVerdict,
    /// When the record was made.
    recorded: Option<String>,
    record_bytes: Option<u64>,
    changed_bytes: u64,
    #[serde(flatten)]
    found: RangeList,
    #[serde(rename = "error", serialize_with = "as_json")]
    pub(super) failure: Option<Failure>,
}

fn as_json<S: Serializer>(failure: &Option<Failure>, serializer: S) -> Result<S::Ok, S::Error> {
    failure.as_ref().and_then(Failure::json).serialize(serializer)
}

impl LayerJson {
    pub(super) fn new(depth: usize, layer: ChainLayer<'_>) -> Self {
        Self {
            depth,
            path: path_text(layer.path),
            record: path_text(&record_path(layer.path)),
            virtual_size: layer.layer.disk_size(),
            verdict: LayerVerdict::NoRecord,
            recorded: None,
            record_bytes: None,
            changed_bytes: 0,
            found: RangeList::default(),
            failure: None,
        }
    }

    pub(super) fn set(&mut self, outcome: Outcome) {
        self.verdict = outcome.verdict;
        self.recorded = outcome.recorded.and_then(human::utc);
        self.record_bytes = outcome.record_bytes;
        self.changed_bytes = outcome.changed_bytes;
        self.found = outcome.found;
    }

    pub(super) fn failed(&mut self, failure: Failure) {
        self.verdict = LayerVerdict::Error;
        self.failure = Some(failure);
    }
}

impl LayerVerdict {
    /// A record was written.
    pub(super) fn is_written(self) -> bool {
        matches!(self, Self::Recorded | Self::Replaced)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Presumed => "not read: length and modification time are as recorded",
            Self::Changed => "CHANGED",
            Self::NoRecord => "NO RECORD: nothing is known",
            Self::Error => "NOT VERIFIED",
            Self::Recorded => "recorded",
            Self::Replaced => "recorded anew: the older record is gone",
            Self::Kept => "has a record, which stays (--update replaces it)",
        }
    }
}

impl fmt::Display for VerifyJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layers.iter().try_for_each(|layer| layer.fmt(f))
    }
}

impl fmt::Display for LayerJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.verdict.text())?;
        if self.verdict == LayerVerdict::Changed {
            let bytes = human::binary(self.changed_bytes);
            write!(
                f,
                " within {bytes} in {}",
                human::count(self.found.range_count, "range")
            )?;
        }
        if let Some(recorded) = &self.recorded {
            write!(f, " (record of {recorded})")?;
        }
        if let Some(bytes) = self.record_bytes {
            write!(f, ", {} in {}", human::binary(bytes), self.record)?;
        }
        writeln!(f)?;
        self.found.fmt(f)?;
        match &self.failure {
            Some(failure) => writeln!(f, "  {}", failure.message()),
            None => Ok(()),
        }
    }
}
