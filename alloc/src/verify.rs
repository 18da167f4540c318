//! `check`: the invariants of the allocator, tested as they are written down.

use std::cell::RefCell;
use std::collections::HashMap;

use memcg_accounting::Tag;

use crate::process::TREE;
use crate::{central, drain, maps, scope};

/// Tests the invariants of the tree, of every thread's caches, of every span and of every tag, with all
/// threads stopped. For tests and debugging; the process must be at rest but for threads that
/// do not allocate or free large objects.
///
/// # Panics
///
/// Panics if one does not hold, naming it.
pub fn check() {
    scope::unaccounted(|| {
        TREE.check();
        let sums = RefCell::new(HashMap::with_capacity(1024));
        let mut compared: Vec<(u32, u64, u64)> = Vec::new();
        drain::inspect(
            |charges| {
                charges.check();
                charges.for_each_charge(|tag, bytes| {
                    *sums.borrow_mut().entry(tag.to_bits()).or_default() += bytes;
                });
            },
            // All threads are still stopped: the keeper's drains do not come in between.
            || {
                central::check();
                let mut sums = sums.borrow_mut();
                add_tags(&mut sums);
                compared.extend(
                    sums.iter().map(|(&tag, &bytes)| {
                        (tag, TREE.context_bytes(Tag::from_bits(tag)), bytes)
                    }),
                );
            },
        );
        for (tag, charged, bytes) in compared {
            assert_eq!(
                charged, bytes,
                "context {tag} is charged for its objects, stock and late uncharges"
            );
        }
    });
}

/// Adds up the bytes that carry each tag.
fn add_tags(sums: &mut HashMap<u32, u64>) {
    central::for_each_span(|span| {
        let bytes = span.class().size() as u64;
        span.for_each_tag(|tag| *sums.entry(tag.to_bits()).or_default() += bytes);
    });
    maps::for_each_large(|word| {
        *sums.entry(word.tag.to_bits()).or_default() += word.bytes as u64;
    });
}
