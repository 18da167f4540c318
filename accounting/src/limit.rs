//! A limit: a number of bytes, or none.

use core::fmt;
use core::str::FromStr;

/// A limit in bytes, exact (not rounded to pages), or [`Limit::Max`]: no limit.
///
/// Text follows cgroups: a number with an optional suffix `K`, `M`, `G` or `T`, each with or
/// without `B` or `iB`, in any case, as powers of 1024; or `max`. What `Display` writes,
/// `FromStr` reads back.
///
/// Source: `memory.max` in the kernel's `Documentation/admin-guide/cgroup-v2.rst`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    /// At most this many bytes.
    Bytes(u64),
    /// No limit.
    #[default]
    Max,
}

impl Limit {
    /// Whether `usage` bytes are within the limit.
    #[must_use]
    pub const fn allows(self, usage: u64) -> bool {
        match self {
            Limit::Bytes(bytes) => usage <= bytes,
            Limit::Max => true,
        }
    }

    /// The bytes, or `None` where there is no limit.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Limit::Bytes(bytes) => Some(bytes),
            Limit::Max => None,
        }
    }
}

impl From<u64> for Limit {
    fn from(bytes: u64) -> Self {
        Limit::Bytes(bytes)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limit::Bytes(bytes) = *self else { return f.pad("max") };
        for (shift, suffix) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
            if bytes != 0 && bytes.is_multiple_of(1 << shift) {
                return write!(f, "{}{suffix}", bytes >> shift);
            }
        }
        write!(f, "{bytes}")
    }
}

/// Why a text is not a [`Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseLimitError {
    /// Not a number, with or without a suffix of this format.
    Malformed,
    /// More than 2^64 - 1 bytes.
    Overflow,
}

impl fmt::Display for ParseLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParseLimitError::Malformed => {
                "not a size: expected a number with an optional K, M, G or T, or `max`"
            }
            ParseLimitError::Overflow => "not a size: more than 2^64 - 1 bytes",
        })
    }
}

impl core::error::Error for ParseLimitError {}

impl FromStr for Limit {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, ParseLimitError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("max") {
            return Ok(Limit::Max);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        if number.is_empty() {
            return Err(ParseLimitError::Malformed);
        }
        let shift = suffix_shift(suffix.trim_start()).ok_or(ParseLimitError::Malformed)?;
        let number: u64 = number.parse().map_err(|_| ParseLimitError::Overflow)?;
        number.checked_mul(1 << shift).map(Limit::Bytes).ok_or(ParseLimitError::Overflow)
    }
}

/// The power of two that a suffix stands for.
fn suffix_shift(suffix: &str) -> Option<u32> {
    let mut bytes = suffix.bytes().map(|b| b.to_ascii_lowercase());
    let shift = match bytes.next() {
        None => return Some(0),
        Some(b'b') => return bytes.next().is_none().then_some(0),
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        Some(_) => return None,
    };
    match (bytes.next(), bytes.next(), bytes.next()) {
        (None, ..) | (Some(b'b'), None, _) | (Some(b'i'), Some(b'b'), None) => Some(shift),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn reads_what_cgroups_read() {
        for (text, bytes) in [
            ("0", 0),
            ("512M", 512 << 20),
            ("4GiB", 4 << 30),
            ("4gib", 4 << 30),
            ("64mb", 64 << 20),
            ("7 kb", 7 << 10),
            ("1T", 1 << 40),
            ("12B", 12),
        ] {
            assert_eq!(text.parse(), Ok(Limit::Bytes(bytes)), "{text}");
        }
        assert_eq!("max".parse(), Ok(Limit::Max));
        assert_eq!(" MAX ".parse(), Ok(Limit::Max));
    }

    #[test]
    fn space_around_the_number_and_the_suffix_is_left_out() {
        // As it comes out of a file, with its newline.
        for (text, bytes) in [("184184467\t", 184_184_467), (" 4 KiB\n", 4096), ("\t7  ", 7)] {
            assert_eq!(text.parse::<Limit>(), Ok(Limit::Bytes(bytes)), "{text:?}");
        }
        assert_eq!(" max\n".parse::<Limit>(), Ok(Limit::Max));
        assert_eq!("4 K B".parse::<Limit>(), Err(ParseLimitError::Malformed));
    }

    #[test]
    fn refuses_the_rest_and_says_which_way() {
        for text in ["", "M", "-1", "1.5G", "12X", "1KiBs", "1KB1", "1bb", "maximum", "0x10"] {
            assert_eq!(text.parse::<Limit>(), Err(ParseLimitError::Malformed), "{text}");
        }
        for text in ["18446744073709551616", "16777216T"] {
            assert_eq!(text.parse::<Limit>(), Err(ParseLimitError::Overflow), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn display_and_from_str_round_trip(bytes: u64, shift in 0u32..50) {
            let limit = Limit::Bytes(bytes << shift);
            proptest::prop_assert_eq!(limit.to_string().parse::<Limit>(), Ok(limit));
        }
    }
}
