//! Errors as the transmission phase knows them.

/// Why a request failed; the numbers are those of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Errno {
    /// Not permitted: a write to a read-only export.
    Perm,
    /// The disk below failed.
    Io,
    /// No memory.
    NoMem,
    /// The request is wrong.
    Inval,
    /// No space left, or a write behind the end.
    NoSpc,
    /// The request is too long.
    Overflow,
    /// It can't be done, or not fast.
    NotSup,
    /// The server is about to stop.
    Shutdown,
    /// A number that the protocol does not define; a client treats it as `Inval`.
    Other(u32),
}

impl Errno {
    /// The number on the wire; never 0 for the named ones.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
            Self::Other(number) => number,
        }
    }

    /// The error with this number; `None` for 0, which is success.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            22 => Self::Inval,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            other => Self::Other(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_there_and_back() {
        assert_eq!(Errno::from_number(0), None);
        for number in 1..200 {
            assert_eq!(Errno::from_number(number).map(Errno::number), Some(number));
        }
    }
}
