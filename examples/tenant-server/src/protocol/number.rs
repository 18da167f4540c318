//! Integers as Redis reads and writes them: strict, so that each number has one spelling.

/// Longest spelling of an `i64`: a sign and 19 digits.
pub(crate) const MAX_DIGITS: usize = 20;

/// Reads an integer: no blanks, no `+`, no leading zeros.
pub(crate) fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() < MAX_DIGITS => {}
        _ => return None,
    }
    let mut magnitude = 0_i64;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        let step = i64::from(digit);
        magnitude = magnitude.checked_mul(10)?;
        // Counted downwards for negative numbers, so that the smallest one fits.
        magnitude =
            if negative { magnitude.checked_sub(step)? } else { magnitude.checked_add(step)? };
    }
    Some(magnitude)
}

/// The decimal spelling of an integer, on the stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digits {
    text: [u8; MAX_DIGITS],
    start: usize,
}

impl Digits {
    /// Spells `number`.
    pub(crate) fn new(number: i64) -> Self {
        let mut text = [0; MAX_DIGITS];
        let mut start = MAX_DIGITS;
        let mut rest = number.unsigned_abs();
        loop {
            start -= 1;
            text[start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            start -= 1;
            text[start] = b'-';
        }
        Self { text, start }
    }

    /// The digits.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_and_reading_agree() {
        for number in
            [0, 1, -1, 9, 10, -10, 123_456_789, i64::MAX, i64::MIN, i64::MAX - 1, i64::MIN + 1]
        {
            assert_eq!(Digits::new(number).as_slice(), number.to_string().as_bytes());
            assert_eq!(parse_i64(number.to_string().as_bytes()), Some(number));
        }
    }

    #[test]
    fn only_one_spelling_is_taken() {
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "1.0",
            "0x1",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
        ] {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
        }
    }
}
