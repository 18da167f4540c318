//! Glob patterns as KEYS, SCAN and CONFIG GET have them: `* ? [a-z] [^a] \x`.

/// Whether all of `text` matches `pattern`.
///
/// Takes time proportional to the product of both lengths at worst: a `*` that failed is taken up again only at the next
/// place, never nested.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (pattern, text);
    // Where to go on if what follows the last star did not match.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = p {
            p = rest;
            star = Some((p, t));
            continue;
        }
        let step = match (p, t) {
            ([], []) => return true,
            (_, [byte, rest @ ..]) => one(p, *byte).map(|p| (p, rest)),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => (p, t) = next,
            (None, Some((after, [_, rest @ ..]))) => {
                star = Some((after, rest));
                (p, t) = (after, rest);
            }
            _ => return false,
        }
    }
}

/// Whether all of `text`, which is in lower case, matches `pattern` in any case.
pub(crate) fn matches_ignoring_case(pattern: &[u8], text: &[u8]) -> bool {
    let mut lower = [0; 64];
    match lower.get_mut(..pattern.len()) {
        Some(lower) => {
            lower.copy_from_slice(pattern);
            lower.make_ascii_lowercase();
            matches(lower, text)
        }
        None => matches(pattern, text),
    }
}

/// Matches one byte against the front of a pattern that does not begin with a star; what is left of it.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', rest @ ..] => class(rest, byte),
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [plain, rest @ ..] => (*plain == byte).then_some(rest),
        [] => None,
    }
}

/// Matches one byte against a class, whose `[` is behind us. As in Redis, one that does not end ends with the pattern.
fn class(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut rest) = match pattern {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    loop {
        rest = match rest {
            [] => break,
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [b'\\', escaped, after @ ..] => {
                found |= *escaped == byte;
                after
            }
            [low, b'-', high, after @ ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                after
            }
            [plain, after @ ..] => {
                found |= *plain == byte;
                after
            }
        };
    }
    (found != negated).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_the_manual() {
        let cases = [
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "x", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h[a-b]llo", "hcllo", false),
            (r"h\*llo", "h*llo", true),
            (r"h\*llo", "hello", false),
            (r"[\]]", "]", true),
            ("[abc", "b", true),
            ("user:*:name", "user:1:2:name", true),
            ("*a*b*c", "xaxbxcxc", true),
            ("*a*b*c", "xaxbxcx", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} on {text}"
            );
        }
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = "a*".repeat(50) + "b";
        assert!(!matches(pattern.as_bytes(), &[b'a'; 2000]));
    }

    #[test]
    fn case_can_be_ignored() {
        assert!(matches_ignoring_case(b"MAX*", b"maxmemory"));
        assert!(!matches(b"MAX*", b"maxmemory"));
    }
}
