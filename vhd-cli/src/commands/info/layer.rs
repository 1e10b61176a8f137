//! What is told of one layer.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::Serialize;
use vhd_core::ErrorKind;
use vhd_core::chain::foreign::{ForeignFacts, ForeignLayer};
use vhd_core::format::Geometry;
use vhd_core::image::{FooterSource, Image, ParentPath, PathSource};
use vhd_core::storage::StorageFile;

use super::creator::Creator;
use super::remarks::{Remark, remarks};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::human::{self, Fields};
use crate::output::path_text;

/// The unit in which `stat` counts the space of a file.
const STAT_BLOCK: u64 = 512;

/// One layer of a chain.
#[derive(Serialize)]
pub(super) struct LayerReport {
    pub(super) path: String,
    format: &'static str,
    virtual_size: u64,
    file_size: u64,
    /// Unknown where the file is none of this host.
    disk_usage: Option<u64>,
    /// Bytes of the whole disk that this layer answers; unknown in a broken chain.
    owned_bytes: Option<u64>,
    #[serde(flatten)]
    vhd: Option<VhdReport>,
    #[serde(flatten)]
    foreign: Option<ForeignReport>,
}

/// What only a VHD has.
#[derive(Serialize)]
struct VhdReport {
    #[serde(rename = "type")]
    disk_type: String,
    id: String,
    creator: Creator,
    /// ISO 8601, UTC; null where it was not recorded.
    created: Option<String>,
    original_size: u64,
    geometry: GeometryReport,
    #[serde(flatten)]
    blocks: Option<BlocksReport>,
    parent: Option<ParentReport>,
    footer: &'static str,
    saved_state: bool,
    hidden: u8,
    remarks: Vec<Remark>,
}

/// What an image of another program has.
#[derive(Serialize)]
struct ForeignReport {
    #[serde(rename = "type")]
    disk_type: String,
    /// By what a child knows it.
    id: Option<String>,
    /// The identity that a guest sees.
    disk_id: Option<String>,
    creator_application: Option<String>,
    #[serde(flatten)]
    blocks: BlocksReport,
    logical_sector_size: u32,
    physical_sector_size: u32,
    /// The image was not closed: so much of its log is replayed in memory.
    replayed_log_entries: u64,
    parent: Option<ParentReport>,
}

#[derive(Serialize)]
struct GeometryReport {
    cylinders: u16,
    heads: u8,
    sectors_per_track: u8,
    size: u64,
}

#[derive(Serialize)]
struct BlocksReport {
    block_size: u64,
    blocks: u64,
    /// Unknown where all of the file would have to be looked through for it.
    allocated_blocks: Option<u64>,
    allocated_bytes: Option<u64>,
}

#[derive(Serialize)]
struct ParentReport {
    id: String,
    modified: Option<String>,
    paths: Vec<ParentPathReport>,
}

#[derive(Serialize)]
struct ParentPathReport {
    /// The locator's code, or `name` for the name in the header.
    source: String,
    path: String,
}

impl LayerReport {
    pub(super) fn raw(path: &Path, file: &dyn StorageFile, size: u64, owned_bytes: u64) -> Result<Self, Failure> {
        Ok(Self {
            path: path_text(path),
            format: "raw",
            virtual_size: size,
            file_size: file_size(path, file)?,
            disk_usage: disk_usage(path, file)?,
            owned_bytes: Some(owned_bytes),
            vhd: None,
            foreign: None,
        })
    }

    pub(super) fn foreign(path: &Path, layer: &ForeignLayer, owned_bytes: Option<u64>) -> Result<Self, Failure> {
        Ok(Self {
            path: path_text(path),
            format: layer.facts().format.name(),
            virtual_size: layer.facts().disk_size,
            file_size: file_size(path, layer.file())?,
            disk_usage: disk_usage(path, layer.file())?,
            owned_bytes,
            vhd: None,
            foreign: Some(ForeignReport::of(layer.facts())),
        })
    }

    /// The word for its format.
    pub(super) fn format(&self) -> &'static str {
        self.format
    }

    /// Bytes on its disk.
    pub(super) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub(super) fn vhd(path: &Path, image: &Image, owned_bytes: Option<u64>) -> Result<Self, Failure> {
        Ok(Self {
            path: path_text(path),
            format: "vhd",
            virtual_size: image.disk_size(),
            file_size: file_size(path, &**image.file())?,
            disk_usage: disk_usage(path, &**image.file())?,
            owned_bytes,
            vhd: Some(VhdReport::of(image).map_err(|failure| failure.about(path.display()))?),
            foreign: None,
        })
    }
}

fn file_size(path: &Path, file: &dyn StorageFile) -> Result<u64, Failure> {
    file.len().map_err(|error| Failure::io("query", path, &error))
}

fn disk_usage(path: &Path, file: &dyn StorageFile) -> Result<Option<u64>, Failure> {
    let Some(host) = file.host_file() else {
        return Ok(None);
    };
    let metadata = host.metadata().map_err(|error| Failure::io("query", path, &error))?;
    let usage = metadata.blocks().checked_mul(STAT_BLOCK).ok_or_else(|| {
        let message = format!("{} uses more space than 64 bits can count", path.display());
        Failure::new(Kind::Library(ErrorKind::OutOfRange), message)
    })?;
    Ok(Some(usage))
}

impl ForeignReport {
    fn of(facts: &ForeignFacts) -> Self {
        Self {
            disk_type: facts.disk_type.to_string(),
            id: (!facts.id.is_nil()).then(|| facts.id.to_string()),
            disk_id: facts.disk_id.map(|id| id.to_string()),
            creator_application: facts.creator.clone(),
            blocks: BlocksReport {
                block_size: facts.block_size,
                blocks: facts.blocks,
                allocated_blocks: facts.allocated_blocks,
                allocated_bytes: facts.allocated_blocks.map(|blocks| blocks * facts.block_size),
            },
            logical_sector_size: facts.logical_sector,
            physical_sector_size: facts.physical_sector,
            replayed_log_entries: facts.replayed,
            parent: facts.parent.as_ref().map(|parent| ParentReport {
                id: parent.id.to_string(),
                modified: None,
                paths: parent.paths.iter().cloned().map(ParentPathReport::from).collect(),
            }),
        }
    }

    fn add_identity(&self, fields: &mut Fields) {
        fields.add("type", &self.disk_type);
        if let Some(id) = &self.id {
            fields.add("id", id);
        }
        if let Some(id) = &self.disk_id {
            fields.add("disk id", id);
        }
        if let Some(creator) = &self.creator_application {
            fields.add("creator", creator);
        }
        let (logical, physical) = (self.logical_sector_size, self.physical_sector_size);
        fields.add("sectors", format!("{logical} bytes logical, {physical} physical"));
    }

    fn add_state(&self, fields: &mut Fields) {
        if self.replayed_log_entries > 0 {
            let entries = self.replayed_log_entries;
            fields.add("log", format!("not closed: {entries} entries are replayed in memory"));
        }
        if let Some(parent) = &self.parent {
            parent.add_to(fields);
        }
    }
}

impl VhdReport {
    fn of(image: &Image) -> Result<Self, Failure> {
        let footer = image.footer();
        Ok(Self {
            disk_type: footer.disk_type.to_string(),
            id: footer.unique_id.to_string(),
            creator: Creator::of(footer),
            created: human::utc(footer.timestamp),
            original_size: footer.original_size,
            geometry: GeometryReport::of(footer.geometry),
            blocks: BlocksReport::of(image),
            parent: ParentReport::of(image)?,
            footer: match image.footers().source {
                FooterSource::Tail(_) => "end",
                FooterSource::LegacyTail(_) => "legacy-end",
                FooterSource::Copy => "copy",
            },
            saved_state: footer.saved_state,
            hidden: footer.hidden,
            remarks: remarks(image),
        })
    }
}

impl GeometryReport {
    fn of(geometry: Geometry) -> Self {
        Self {
            cylinders: geometry.cylinders,
            heads: geometry.heads,
            sectors_per_track: geometry.sectors_per_track,
            size: geometry.size_bytes(),
        }
    }

    fn text(&self) -> String {
        let (cylinders, heads, sectors) = (self.cylinders, self.heads, self.sectors_per_track);
        format!("{cylinders}/{heads}/{sectors} = {}", human::bytes(self.size))
    }
}

impl BlocksReport {
    fn text(&self) -> String {
        let (all, size) = (self.blocks, human::binary(self.block_size));
        match (self.allocated_blocks, self.allocated_bytes) {
            (Some(allocated), Some(bytes)) => {
                format!("{allocated} of {all} allocated, {size} each: {}", human::bytes(bytes))
            }
            _ => format!("{all}, {size} each"),
        }
    }

    fn of(image: &Image) -> Option<Self> {
        let layout = image.header()?.layout;
        Some(Self {
            block_size: layout.block_size(),
            blocks: layout.blocks_for(image.disk_size()),
            allocated_blocks: Some(image.allocated_bytes() / layout.block_size()),
            allocated_bytes: Some(image.allocated_bytes()),
        })
    }
}

impl ParentReport {
    fn of(image: &Image) -> Result<Option<Self>, Failure> {
        let (Some(header), true) = (image.header(), image.is_differencing()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            id: header.parent_id.to_string(),
            modified: human::utc(header.parent_timestamp),
            paths: image.parent_paths()?.into_iter().map(ParentPathReport::from).collect(),
        }))
    }
}

impl From<ParentPath> for ParentPathReport {
    fn from(path: ParentPath) -> Self {
        Self {
            source: match path.source {
                PathSource::Locator(code) => code.to_string(),
                PathSource::HeaderName => "name".to_owned(),
                PathSource::Key(key) => key.to_owned(),
            },
            path: path.path,
        }
    }
}

impl ParentReport {
    fn add_to(&self, fields: &mut Fields) {
        fields.add("parent id", &self.id);
        if let Some(modified) = &self.modified {
            fields.add("parent time", modified);
        }
        for path in &self.paths {
            fields.add("parent path", format!("{} ({})", path.path, path.source));
        }
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        match (&self.vhd, &self.foreign) {
            (Some(vhd), _) => vhd.add_identity(&mut fields),
            (None, Some(foreign)) => foreign.add_identity(&mut fields),
            (None, None) => fields.add("type", "raw"),
        }
        fields.add("virtual size", human::bytes(self.virtual_size));
        if let Some(vhd) = &self.vhd {
            fields.add("geometry", vhd.geometry.text());
        }
        fields.add("file size", human::bytes(self.file_size));
        if let Some(usage) = self.disk_usage {
            fields.add("space used", human::bytes(usage));
        }
        let blocks = self.vhd.as_ref().and_then(|vhd| vhd.blocks.as_ref());
        if let Some(blocks) = blocks.or(self.foreign.as_ref().map(|foreign| &foreign.blocks)) {
            fields.add("blocks", blocks.text());
        }
        if let Some(owned) = self.owned_bytes {
            fields.add("owns", format!("{} of the disk", human::bytes(owned)));
        }
        if let Some(vhd) = &self.vhd {
            vhd.add_state(&mut fields);
        }
        if let Some(foreign) = &self.foreign {
            foreign.add_state(&mut fields);
        }
        fields.fmt(f)
    }
}

impl VhdReport {
    fn add_identity(&self, fields: &mut Fields) {
        fields.add("type", &self.disk_type);
        fields.add("id", &self.id);
        fields.add("creator", self.creator.text());
        fields.add("created", self.created.as_deref().unwrap_or("not recorded"));
    }

    fn add_state(&self, fields: &mut Fields) {
        if let Some(parent) = &self.parent {
            parent.add_to(fields);
        }
        for remark in &self.remarks {
            let label = if remark.severity == "note" { "note" } else { "warning" };
            fields.add(label, format!("{} [{}]", remark.message, remark.code));
        }
    }
}
