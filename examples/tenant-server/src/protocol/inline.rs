//! Inline requests: a line of words, quoted as in a shell, for those who talk to the server by hand.
//!
//! The rules are those of Redis's `sdssplitargs`: `"..."` knows `\n \r \t \b \a \xHH` and `\` before any other byte, `'...'`
//! knows `\'`; a closing quote ends the word.

/// A quote was not closed, or something follows a closing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unbalanced;

/// The words of a line, one after the other, without copying them.
#[derive(Clone, Debug)]
pub(crate) struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    /// The words of `line`.
    pub(crate) fn of(line: &'a [u8]) -> Self {
        Self { rest: line }
    }

    /// Gives the bytes of the next word to `each` and answers how many they were; `None` at the end of the line.
    ///
    /// # Errors
    ///
    /// [`Unbalanced`]; some bytes may have been given by then.
    pub(crate) fn next_word(
        &mut self,
        mut each: impl FnMut(u8),
    ) -> Result<Option<usize>, Unbalanced> {
        let blanks = self.rest.iter().take_while(|b| is_blank(**b)).count();
        self.rest = &self.rest[blanks..];
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut count = 0;
        let mut emit = |byte| {
            count += 1;
            each(byte);
        };
        loop {
            match self.rest {
                [] => break,
                [b'"', rest @ ..] => {
                    self.rest = double_quoted(rest, &mut emit)?;
                    break;
                }
                [b'\'', rest @ ..] => {
                    self.rest = single_quoted(rest, &mut emit)?;
                    break;
                }
                [byte, ..] if is_blank(*byte) => break,
                [byte, rest @ ..] => {
                    emit(*byte);
                    self.rest = rest;
                }
            }
        }
        Ok(Some(count))
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0 | 0x0b | 0x0c)
}

/// What follows a closing quote: nothing, or a blank.
fn closed(rest: &[u8]) -> Result<&[u8], Unbalanced> {
    match rest {
        [byte, ..] if !is_blank(*byte) => Err(Unbalanced),
        _ => Ok(rest),
    }
}

fn double_quoted<'a>(
    mut rest: &'a [u8],
    emit: &mut impl FnMut(u8),
) -> Result<&'a [u8], Unbalanced> {
    loop {
        rest = match rest {
            [] => return Err(Unbalanced),
            [b'"', rest @ ..] => return closed(rest),
            [b'\\', b'x', high, low, rest @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                emit(hex(*high) << 4 | hex(*low));
                rest
            }
            [b'\\', escaped, rest @ ..] => {
                emit(unescaped(*escaped));
                rest
            }
            [byte, rest @ ..] => {
                emit(*byte);
                rest
            }
        }
    }
}

fn single_quoted<'a>(
    mut rest: &'a [u8],
    emit: &mut impl FnMut(u8),
) -> Result<&'a [u8], Unbalanced> {
    loop {
        rest = match rest {
            [] => return Err(Unbalanced),
            [b'\'', rest @ ..] => return closed(rest),
            [b'\\', b'\'', rest @ ..] => {
                emit(b'\'');
                rest
            }
            [byte, rest @ ..] => {
                emit(*byte);
                rest
            }
        }
    }
}

fn unescaped(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<Vec<Vec<u8>>, Unbalanced> {
        let mut words = Words::of(line.as_bytes());
        let mut all = Vec::new();
        loop {
            let mut word = Vec::new();
            match words.next_word(|byte| word.push(byte))? {
                Some(count) => {
                    assert_eq!(count, word.len());
                    all.push(word);
                }
                None => return Ok(all),
            }
        }
    }

    #[test]
    fn words_and_quotes() {
        let cases: [(&str, &[&[u8]]); 7] = [
            ("", &[]),
            ("   ", &[]),
            ("PING\r", &[b"PING"]),
            (" set  a\tb ", &[b"set", b"a", b"b"]),
            (r#"set "a b" "\x41\n\"\q""#, &[b"set", b"a b", b"A\n\"q"]),
            (r"echo 'it\'s \n' ''", &[b"echo", b"it's \\n", b""]),
            (r#"foo"bar" x"#, &[b"foobar", b"x"]),
        ];
        for (line, expected) in cases {
            assert_eq!(split(line).expect("balanced"), expected, "{line:?}");
        }
    }

    #[test]
    fn quotes_that_do_not_close() {
        for line in [r#"set "a"#, "set 'a", r#""a"b"#, "'a'b", r#""a\"#] {
            assert_eq!(split(line), Err(Unbalanced), "{line:?}");
        }
    }
}
