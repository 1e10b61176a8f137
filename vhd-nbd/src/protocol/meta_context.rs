//! Requests for metadata contexts, and what their queries ask for.

use super::option::NAME;
use super::wire::{Fields, PutFields as _, len32};
use super::{MAX_QUERIES, ProtocolError};

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// The export.
    pub export: String,
    /// What is asked for, `namespace:leaf` each.
    pub queries: Vec<String>,
}

impl MetaContextRequest {
    pub(super) fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        data.put_text32(&self.export);
        data.put_u32(len32(self.queries.len()));
        for query in &self.queries {
            data.put_text32(query);
        }
        data
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        let len = fields.len32()?;
        let export = fields.text(NAME, len)?;
        let count = fields.u32()?;
        if count > MAX_QUERIES {
            return Err(ProtocolError::TooMany {
                what: "a request for metadata contexts",
                count: count.into(),
                limit: MAX_QUERIES.into(),
            });
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            let len = fields.len32()?;
            queries.push(fields.text("a query", len)?);
        }
        Ok(Self { export, queries })
    }
}

/// What a query asks for, in the namespaces known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextQuery {
    /// `base:`: all contexts of the namespace.
    BaseAll,
    /// `base:allocation`: what takes space, what reads zero.
    Allocation,
    /// `qemu:`: all contexts of the namespace.
    QemuAll,
    /// `qemu:allocation-depth`: which layer answers.
    AllocationDepth,
    /// `qemu:dirty-bitmap:`: all contexts of changes.
    DirtyBitmapAll,
    /// `qemu:dirty-bitmap:NAME`: what changed since.
    DirtyBitmap(String),
    /// A context that is not known, in whatever namespace.
    Unknown,
}

/// What the names of contexts of changes begin with.
const DIRTY_BITMAP: &str = "dirty-bitmap:";

impl ContextQuery {
    /// Reads a query.
    ///
    /// # Errors
    /// [`ProtocolError::NoNamespace`] for one without a colon.
    pub fn parse(query: &str) -> Result<Self, ProtocolError> {
        let Some((namespace, leaf)) = query.split_once(':') else {
            return Err(ProtocolError::NoNamespace {
                query: query.to_owned(),
            });
        };
        Ok(match (namespace, leaf) {
            ("base", "") => Self::BaseAll,
            ("base", "allocation") => Self::Allocation,
            ("qemu", "") => Self::QemuAll,
            ("qemu", "allocation-depth") => Self::AllocationDepth,
            ("qemu", leaf) => match leaf.strip_prefix(DIRTY_BITMAP) {
                Some("") => Self::DirtyBitmapAll,
                Some(name) => Self::DirtyBitmap(name.to_owned()),
                None => Self::Unknown,
            },
            _ => Self::Unknown,
        })
    }

    /// The query as it is sent; what is not known is an empty string.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::BaseAll => "base:".into(),
            Self::Allocation => "base:allocation".into(),
            Self::QemuAll => "qemu:".into(),
            Self::AllocationDepth => "qemu:allocation-depth".into(),
            Self::DirtyBitmapAll => format!("qemu:{DIRTY_BITMAP}"),
            Self::DirtyBitmap(name) => format!("qemu:{DIRTY_BITMAP}{name}"),
            Self::Unknown => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_there_and_back() {
        for query in [
            ContextQuery::BaseAll,
            ContextQuery::Allocation,
            ContextQuery::QemuAll,
            ContextQuery::AllocationDepth,
            ContextQuery::DirtyBitmapAll,
            ContextQuery::DirtyBitmap("before:upgrade".into()),
        ] {
            assert_eq!(ContextQuery::parse(&query.text()), Ok(query));
        }
    }

    #[test]
    fn strangers_are_ignored_and_nonsense_is_refused() {
        for query in ["base:else", "qemu:else", "x-other:thing", ":"] {
            assert_eq!(ContextQuery::parse(query), Ok(ContextQuery::Unknown), "{query}");
        }
        for query in ["", "base", "allocation"] {
            let refused = ContextQuery::parse(query);
            assert!(matches!(refused, Err(ProtocolError::NoNamespace { .. })), "{query}");
        }
    }
}
