//! A small image with everything a test of crashes and faults has to know of it.

use std::sync::Arc;

use vhd_core::check::{CheckReport, Finding, FindingCode, Severity, check};
use vhd_core::format::Footer;
use vhd_core::image::{FooterSource, Footers, OpenError, OpenMode};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_testkit::conformance::read_all;
use vhd_testkit::{CrashModel, Geometry};

use super::forge::Forge;
use super::view::{View, Windows};

/// A small image, what it reads, and what is wrong with it from the start.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) file: Vec<u8>,
    parents: Vec<Arc<dyn StorageFile>>,
    footer: Footer,
    windows: Windows,
    block: u64,
    allowed: &'static [FindingCode],
}

impl Subject {
    pub(crate) fn new(name: &'static str, forge: &Forge) -> Self {
        let size = forge.footer().current_size;
        Self {
            name,
            file: forge.build(),
            parents: Vec::new(),
            footer: forge.footer().clone(),
            windows: Windows::whole(size),
            block: forge.block_size(),
            allowed: &[],
        }
    }

    /// The same over parents, nearest first.
    pub(crate) fn over(mut self, parents: Vec<Arc<dyn StorageFile>>) -> Self {
        self.parents = parents;
        self
    }

    /// The same over a raw parent.
    pub(crate) fn over_raw(self, content: Vec<u8>) -> Self {
        self.over(vec![Arc::new(MemoryFile::from_bytes(content))])
    }

    /// The same image in other bytes: damaged, or as another program has it.
    pub(crate) fn with_file(mut self, file: Vec<u8>) -> Self {
        self.file = file;
        self
    }

    /// The same, seen through windows.
    pub(crate) fn with_windows(mut self, windows: Windows) -> Self {
        self.windows = windows;
        self
    }

    /// The same; a check may also find this, worse than a leak as it is.
    pub(crate) fn allowing(mut self, codes: &'static [FindingCode]) -> Self {
        self.allowed = codes;
        self
    }

    /// What random work on it is about.
    pub(crate) fn geometry(&self) -> Geometry {
        let block = if self.windows.window < self.block {
            self.windows.window
        } else {
            self.block
        };
        Geometry::new(self.windows.size, block)
    }

    pub(crate) fn try_open(&self, file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<View, OpenError> {
        Ok(View::new(super::open(file, &self.parents, mode)?, self.windows))
    }

    pub(crate) fn open(&self, file: impl StorageFile + 'static, mode: &OpenMode) -> View {
        self.try_open(Arc::new(file), mode)
            .unwrap_or_else(|error| panic!("{} does not open: {error:?}", self.name))
    }

    /// A model of what the image reads at the start.
    pub(crate) fn model(&self) -> CrashModel {
        let file = MemoryFile::from_bytes(self.file.clone());
        CrashModel::from_bytes(read_all(&self.open(file, &OpenMode::read_only())))
    }

    /// INV-03: one of the footers is valid, and every valid one is the image's. Answers where it was.
    pub(crate) fn check_footers(&self, file: &dyn StorageFile) -> FooterSource {
        let footers = Footers::read(file).unwrap_or_else(|error| panic!("INV-03: no valid footer: {error:?}"));
        assert_eq!(
            footers.footer, self.footer,
            "INV-03: a valid footer that is not current"
        );
        footers.source
    }

    /// The image's file after a crash: leaks, a footer that can be restored, and what is allowed.
    pub(crate) fn check_crashed(&self, file: &dyn StorageFile) -> CheckReport {
        let torn_footer = [
            FindingCode::FooterDamaged,
            FindingCode::FooterCopyDamaged,
            FindingCode::FootersDiffer,
        ];
        self.check_allowing(file, &torn_footer)
    }

    /// The image's file after it was opened for writing: leaks, and what is allowed.
    pub(crate) fn check_opened(&self, file: &dyn StorageFile) -> CheckReport {
        self.check_allowing(file, &[])
    }

    fn check_allowing(&self, file: &dyn StorageFile, more: &[FindingCode]) -> CheckReport {
        let report = check(file).expect("a file in memory can be read");
        let bad = |finding: &&Finding| {
            finding.severity > Severity::Leak && !self.allowed.contains(&finding.code) && !more.contains(&finding.code)
        };
        if let Some(finding) = report.findings.iter().find(bad) {
            panic!("check: {finding:?}");
        }
        report
    }
}
