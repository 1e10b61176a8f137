//! Why a text is no NBD URI.

/// Why a text is no NBD URI that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It does not begin like one.
    #[error("it begins with none of nbd://, nbds://, nbd+unix://, nbds+unix://, nbd+vsock:// and nbds+vsock://")]
    Scheme,
    /// A percent sign without two hexadecimal digits behind it.
    #[error("a percent sign is not followed by two hexadecimal digits in {part:?}")]
    Escape {
        /// The part of the URI.
        part: String,
    },
    /// A part that is not UTF-8, or has a NUL character in it.
    #[error("{what} is not text")]
    NotText {
        /// The part of the URI.
        what: &'static str,
    },
    /// A part that must be there.
    #[error("{what} is missing")]
    Missing {
        /// The part of the URI.
        what: &'static str,
    },
    /// A part that has no place in a URI of this kind.
    #[error("{what} has no place here")]
    Unexpected {
        /// The part of the URI.
        what: &'static str,
    },
    /// A number that is none, or out of range.
    #[error("{found:?} is no {what}")]
    Number {
        /// What it should be.
        what: &'static str,
        /// What is there.
        found: String,
    },
    /// A parameter that stands there twice.
    #[error("the parameter {name:?} stands there twice")]
    Repeated {
        /// The parameter.
        name: String,
    },
    /// A parameter that is not known here.
    #[error("the parameter {name:?} is not known")]
    Parameter {
        /// The parameter.
        name: String,
    },
    /// A value of a parameter that this client can't do.
    #[error("{name}={value} is not supported")]
    Unsupported {
        /// The parameter.
        name: &'static str,
        /// The value.
        value: String,
    },
}
