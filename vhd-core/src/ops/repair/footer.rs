//! The footer to go by: one that is valid, wherever it stands; else a damaged one put right; else a new one.

use super::basis::{Basis, RawFooter, SEARCH, resembles};
use super::draft::Draft;
use super::error::RepairError;
use super::finding::{Certainty, RepairCode};
use super::{Facts, header, nested};
use crate::ErrorKind;
use crate::format::{
    COOKIE, DiskType, FOOTER_SIZE, Footer, Geometry, LEGACY_FOOTER_SIZE, Timestamp, UniqueId, reconstruct_footer,
    reseal_footer,
};
use crate::image::{FooterSource, Footers, read_header, read_table};
use crate::units::u64_from;

/// Places with the cookie of a footer that are looked at: each look reads much of the file.
const MOST_FOOTERS: u32 = 64;

pub(super) fn find(draft: &mut Draft, facts: &Facts) -> Result<Basis, RepairError> {
    match Footers::read(&*draft.overlay) {
        Ok(footers) => {
            if let Some(basis) = in_use(draft, facts, footers)? {
                return Ok(basis);
            }
        }
        Err(error) if error.kind() == ErrorKind::JournalPending => {
            let reason = "another program's operation is unfinished (v_poison), and its journal is what repairs it";
            return Err(RepairError::hopeless(reason));
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(RepairError::hopeless(error.to_string())),
        Err(error) => RepairError::of_host(error).map_or(Ok(()), Err)?,
    }
    let ends = Ends::read(draft)?;
    if let Some(basis) = ends.reconstructed(draft, facts)? {
        return Ok(basis);
    }
    if let Some(basis) = searched(draft, facts, footer_of_this_file)? {
        return Ok(basis);
    }
    if let Some(basis) = ends.resealed(draft, facts)? {
        return Ok(basis);
    }
    // Its header may be damaged too, which the search for that will tell.
    if let Some(basis) = searched(draft, facts, sparse_footer)? {
        return Ok(basis);
    }
    rebuilt(draft, facts)
}

/// Whether the footer that the image is opened by is not its own by what is known.
///
/// # Errors
/// [`RepairError::FactsContradict`] if it certainly is.
pub(super) fn contradicts(draft: &Draft, facts: &Facts) -> Result<bool, RepairError> {
    let footers = match Footers::read(&*draft.overlay) {
        Ok(footers) => footers,
        Err(error) => return RepairError::of_host(error).map_or(Ok(false), Err),
    };
    let at = place(footers.source);
    if facts.allow(&footers.footer, at) {
        return Ok(false);
    }
    let is_own = match footers.footer.disk_type {
        DiskType::Fixed => footers.footer.current_size == at,
        _ if footers.source == FooterSource::Copy => leads(draft, &footers.footer)?,
        _ => footers.agree(),
    };
    match is_own {
        true => Err(RepairError::FactsContradict {
            disk_type: footers.footer.disk_type,
            size: footers.footer.current_size,
        }),
        false => Ok(true),
    }
}

/// Whether a disk can be reached through this footer, whatever its blocks are like.
pub(super) fn leads(draft: &Draft, footer: &Footer) -> Result<bool, RepairError> {
    let file_len = draft.len()?;
    if footer.disk_type == DiskType::Fixed {
        return Ok(file_len >= footer.current_size + u64_from(LEGACY_FOOTER_SIZE));
    }
    let read = read_header(&*draft.overlay, footer, file_len)
        .and_then(|(offset, header)| read_table(&*draft.overlay, &header, footer, offset, file_len));
    match read {
        Ok(_) => Ok(true),
        Err(error) => RepairError::of_host(error).map_or(Ok(false), Err),
    }
}

/// Where the footer in use begins.
pub(super) fn place(source: FooterSource) -> u64 {
    match source {
        FooterSource::Tail(at) | FooterSource::LegacyTail(at) => at.0,
        FooterSource::Copy => 0,
    }
}

/// The footer that opening goes by, unless it leads nowhere and the copy does not. `None` if it is another image's, which
/// is content of this one's disk.
fn in_use(draft: &mut Draft, facts: &Facts, footers: Footers) -> Result<Option<Basis>, RepairError> {
    let at = place(footers.source);
    let chosen = Basis {
        footer: footers.footer,
        raw: footers.raw,
    };
    let outer = nested::outer_copy(draft, &chosen.footer)?.filter(|outer| facts.allow(&outer.footer, 0));
    if let Some(outer) = outer
        && (nested::is_in_a_block(draft, &outer.footer, at)? || !facts.allow(&chosen.footer, at))
        && leads(draft, &outer.footer)?
    {
        let message = "the footer at the end is that of an image inside the disk; the copy at the start is used";
        draft.found(
            RepairCode::FooterChosen,
            Certainty::Assumed,
            Some(0),
            message.to_owned(),
        );
        draft.tail_is_content = true;
        return Ok(Some(outer));
    }
    let is_inner = at > 0
        && draft.structure(0)? != Some(chosen.raw)
        && nested::is_footer_of_inner_image(draft, &chosen.footer, at)?;
    if is_inner || !facts.allow(&chosen.footer, at) {
        draft.tail_is_content = at > 0;
        return Ok(None);
    }
    if footers.source == FooterSource::Copy || leads(draft, &chosen.footer)? {
        return Ok(Some(chosen));
    }
    let copy = draft.structure::<FOOTER_SIZE>(0)?.and_then(Basis::of);
    match copy.filter(|copy| copy.footer.disk_type.is_sparse()) {
        Some(copy) if leads(draft, &copy.footer)? => {
            let message = "the footer at the end leads to no disk; its copy does and is used".to_owned();
            draft.found(RepairCode::FooterChosen, Certainty::Assumed, Some(0), message);
            Ok(Some(copy))
        }
        _ => Ok(Some(chosen)),
    }
}

/// What stands where the footers should.
struct Ends {
    tail: Option<(u64, RawFooter)>,
    legacy: Option<(u64, RawFooter)>,
    copy: Option<RawFooter>,
}

impl Ends {
    fn read(draft: &Draft) -> Result<Self, RepairError> {
        let len = draft.len()?;
        let tail = match len.checked_sub(u64_from(FOOTER_SIZE)) {
            Some(at) => draft.structure(at)?.map(|bytes| (at, bytes)),
            None => None,
        };
        let legacy = match len.checked_sub(u64_from(LEGACY_FOOTER_SIZE)) {
            Some(at) => {
                let mut bytes = draft.read(at, u64_from(LEGACY_FOOTER_SIZE))?;
                bytes.resize(FOOTER_SIZE, 0);
                bytes.try_into().ok().map(|bytes: RawFooter| (at, bytes))
            }
            None => None,
        };
        let copy = draft.structure(0)?;
        if draft.tail_is_content {
            let (tail, legacy) = (None, None);
            return Ok(Self { tail, legacy, copy });
        }
        Ok(Self { tail, legacy, copy })
    }

    /// A damaged footer whose checksum says what it was.
    fn reconstructed(&self, draft: &mut Draft, facts: &Facts) -> Result<Option<Basis>, RepairError> {
        let tail = self.tail.as_ref().map(|(_, bytes)| bytes);
        let copy = self.copy.as_ref();
        let tails = self.tail.iter().chain(&self.legacy);
        let fixed = tails
            .filter_map(|(at, bytes)| Some((*at, Basis::of(reconstruct_footer(bytes, None)?)?)))
            .find(|(at, basis)| !basis.footer.disk_type.is_sparse() && basis.footer.current_size == *at);
        let pairs = [(tail, copy), (copy, tail)];
        let sparse = pairs
            .into_iter()
            .filter_map(|(bytes, other)| Basis::of(reconstruct_footer(bytes?, other)?))
            .find(|basis| basis.footer.disk_type.is_sparse() && facts.allow(&basis.footer, 0));
        let fixed = fixed.filter(|(at, basis)| facts.allow(&basis.footer, *at));
        let found = fixed.or(sparse.map(|basis| (0, basis)));
        Ok(found.map(|(at, basis)| {
            let message = "the damaged footers are put right: their checksum confirms it".to_owned();
            draft.found(RepairCode::FooterChosen, Certainty::Certain, Some(at), message);
            basis
        }))
    }

    /// A damaged footer whose other fields agree with the file.
    fn resealed(&self, draft: &mut Draft, facts: &Facts) -> Result<Option<Basis>, RepairError> {
        let places = self.tail.iter().chain(&self.legacy).map(|(at, bytes)| (*at, bytes));
        for (at, bytes) in places.chain(self.copy.iter().map(|bytes| (0, bytes))) {
            let agrees = match Basis::of(reseal_footer(bytes)) {
                Some(basis)
                    if resembles(bytes, &basis.raw)
                        && facts.allow(&basis.footer, at)
                        && is_plausible(draft, &basis.footer, at)? =>
                {
                    Some(basis)
                }
                _ => None,
            };
            if let Some(basis) = agrees {
                let size = basis.footer.current_size;
                let message = format!(
                    "a damaged footer is put right; its size of {size} bytes agrees with the file, but its checksum \
                     does not say which bytes were damaged: the identity {} and the times may be wrong",
                    basis.footer.unique_id
                );
                draft.found(RepairCode::FooterChosen, Certainty::Assumed, Some(at), message);
                return Ok(Some(basis));
            }
        }
        Ok(None)
    }
}

/// Whether the size in a footer whose checksum is wrong is confirmed by two other things.
fn is_plausible(draft: &Draft, footer: &Footer, at: u64) -> Result<bool, RepairError> {
    let size = footer.current_size;
    if footer.disk_type == DiskType::Fixed {
        return Ok(at == size);
    }
    let repeated = footer.original_size == size || footer.geometry == Geometry::from_size(size);
    let header = header::standing(draft, footer.data_offset.unwrap_or(0))?;
    Ok(repeated && header.is_some_and(|header| header.layout.blocks_for(size) == u64::from(header.max_table_entries)))
}

/// The footer at an offset, if it can be this file's.
type Accept = fn(&Draft, u64) -> Result<Option<Basis>, RepairError>;

/// The last footer in the file that is accepted: something was appended to it.
fn searched(draft: &mut Draft, facts: &Facts, accept: Accept) -> Result<Option<Basis>, RepairError> {
    const STEP: u64 = 1 << 20;
    let len = draft.len()?;
    let least = len.saturating_sub(SEARCH);
    let mut end = len;
    let mut left = MOST_FOOTERS;
    while end > least {
        let start = end.saturating_sub(STEP).max(least);
        let window = draft.read(start, (end + u64_from(COOKIE.len()) - 1).min(len) - start)?;
        let places = window.windows(COOKIE.len()).enumerate().rev();
        for (index, _) in places.filter(|(_, bytes)| *bytes == COOKIE) {
            let at = start + u64_from(index);
            left -= 1;
            if left == 0 {
                return Ok(None);
            }
            let accepted = accept(draft, at)?.filter(|basis| facts.allow(&basis.footer, at));
            if let Some(basis) = accepted {
                let behind = len - at;
                let message = format!("a valid footer stands {behind} bytes before the end of the file");
                draft.found(RepairCode::FooterChosen, Certainty::Certain, Some(at), message);
                return Ok(Some(basis));
            }
        }
        end = start;
    }
    Ok(None)
}

/// A disk may hold images: their footers are not meant.
fn footer_of_this_file(draft: &Draft, at: u64) -> Result<Option<Basis>, RepairError> {
    let Some(basis) = draft.structure::<FOOTER_SIZE>(at)?.and_then(Basis::of) else {
        return Ok(None);
    };
    let here = match basis.footer.disk_type {
        DiskType::Fixed => basis.footer.current_size == at,
        _ => leads(draft, &basis.footer)? && is_own(draft, &basis.footer, at)?,
    };
    Ok(here.then_some(basis))
}

/// Whether the footer of an image of blocks is not that of one inside the disk.
fn is_own(draft: &Draft, footer: &Footer, at: u64) -> Result<bool, RepairError> {
    Ok(!nested::is_in_a_block(draft, footer, at)? && !nested::is_footer_of_inner_image(draft, footer, at)?)
}

fn sparse_footer(draft: &Draft, at: u64) -> Result<Option<Basis>, RepairError> {
    let basis = draft.structure::<FOOTER_SIZE>(at)?.and_then(Basis::of);
    match basis.filter(|basis| basis.footer.disk_type.is_sparse()) {
        Some(basis) if is_own(draft, &basis.footer, at)? => Ok(Some(basis)),
        _ => Ok(None),
    }
}

/// A new footer, by the header and what the caller knows.
fn rebuilt(draft: &mut Draft, facts: &Facts) -> Result<Basis, RepairError> {
    let header = header::standing(draft, u64_from(FOOTER_SIZE))?;
    let implied = header.as_ref().map(|header| match header.names_parent() {
        true => DiskType::Differencing,
        false => DiskType::Dynamic,
    });
    // The caller cannot know of a dynamic image whether it has a parent; the header does.
    let known = facts.disk_type.filter(|known| !known.is_sparse());
    let Some(disk_type) = known.or(implied).or(facts.disk_type) else {
        let reason = "there is no footer and no dynamic header of this image (one inside its disk does not count); if it \
                      was a fixed or dynamic image, say so with --type and --size";
        return Err(RepairError::hopeless(reason));
    };
    let Some(size) = facts.size else {
        let known = header.map_or("nothing tells it".to_owned(), |header| {
            let (blocks, block) = (u64::from(header.max_table_entries), header.layout.block_size());
            let least = blocks.saturating_sub(1).saturating_mul(block).saturating_add(1);
            format!(
                "the table has entries for {least} to {} bytes",
                blocks.saturating_mul(block)
            )
        });
        return Err(RepairError::SizeUnknown { known });
    };
    if disk_type == DiskType::Fixed {
        // What stands at the end is a part of the disk.
        draft.tail_is_content = true;
    }
    let footer = Footer::new(disk_type, size, UniqueId::random(), Timestamp::now());
    let basis = Basis::of(footer.encode()).ok_or_else(|| RepairError::hopeless(format!("no disk has {size} bytes")))?;
    let message = format!(
        "both footers are lost: a new one is made for a disk of {size} bytes; its identity is new, so children must be \
         told (vhd reparent)"
    );
    draft.found(RepairCode::FooterRebuilt, Certainty::Assumed, None, message);
    Ok(basis)
}
