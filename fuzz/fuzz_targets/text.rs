//! Sizes and names: what is taken for one, and that it reads back as it was written.

#![no_main]

use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use memcg::{Group, Limit};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// What a size is, the slow way: digits, then a unit of 1024's power, with or without `B` or `iB`; space around both.
fn expected(text: &str) -> Option<Limit> {
    let text = text.trim().to_ascii_lowercase();
    if text == "max" {
        return Some(Limit::Max);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let scale: u128 = match unit.trim_start() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    if digits.trim_start_matches('0').len() > 30 {
        return None;
    }
    let bytes = digits.parse::<u128>().ok()?.checked_mul(scale)?;
    u64::try_from(bytes).ok().map(Limit::Bytes)
}

fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.len() <= 255 && !text.contains(['/', '\0'])
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = Limit::from_str(text);
    assert_eq!(parsed.as_ref().ok().copied(), expected(text), "{text:?}: {parsed:?}");
    if let Ok(limit) = parsed {
        assert_eq!(limit.to_string().parse::<Limit>().ok(), Some(limit));
    }
    match Group::root().create(text) {
        Ok(group) => {
            assert!(is_name(text), "{text:?}");
            assert_eq!(group.name(), text);
            assert_eq!(Group::lookup(&format!("/{text}")), Some(group.clone()));
            assert!(Group::root().create(text).is_err_and(|error| error.is_exists()));
        }
        Err(error) => assert!(error.is_invalid() && !is_name(text), "{text:?}: {error}"),
    }
    // Any path may be asked for.
    if let Some(group) = Group::lookup(text) {
        assert_eq!(group, Group::root(), "no other is there: {text:?}");
    }
});
