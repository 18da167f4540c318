//! The server's request parser: whatever arrives, in whatever pieces, is taken apart the same way, and within the limit of
//! the group that pays.

#![no_main]
#![allow(dead_code, unused_imports, unreachable_pub, reason = "parts of the server")]

#[path = "../../examples/tenant-server/src/memory/mod.rs"]
mod memory;
#[path = "../../examples/tenant-server/src/protocol/mod.rs"]
mod protocol;

use libfuzzer_sys::fuzz_target;
use memcg::Group;
use protocol::{Args, Event, Input, Parser, Rules};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

type Parsed = Vec<Result<Vec<Vec<u8>>, Event>>;

/// Feeds `bytes` in pieces of at most `step`, and gathers what comes out; unaccounted, but for what the parser holds.
fn parse(bytes: &[u8], step: usize, rules: Rules) -> Parsed {
    let mut input = Input::holding(b"").expect("room");
    let mut args = Args::new().expect("room");
    let mut parser = Parser::new();
    let mut all = memcg::unaccounted(Vec::new);
    let mut push = |one: Result<(), Event>, args: &Args| {
        memcg::unaccounted(|| {
            all.push(one.map(|()| args.from(0).map(<[u8]>::to_vec).collect()));
        });
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        if input.is_full() {
            input.grow_for_line().expect("room");
        }
        let spare = input.spare();
        let count = rest.len().min(step).min(spare.len());
        spare[..count].write_copy_of_slice(&rest[..count]);
        // SAFETY: as many bytes were written in the line above.
        unsafe { input.advance(count) };
        rest = &rest[count..];
        loop {
            match parser.advance(&mut input, &mut args, rules) {
                Event::More => break,
                Event::Request => {
                    push(Ok(()), &args);
                    args.clear();
                }
                other => {
                    push(Err(other), &args);
                    if matches!(other, Event::Broken(_) | Event::NeedsHome) {
                        return all;
                    }
                }
            }
        }
        // As the connection does before it waits.
        if step % 2 == 1 {
            input.rest();
            args.rest();
        }
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, bytes)) = data.split_first() else { return };
    let rules = Rules { authenticated: first & 1 == 0, at_home: first & 2 == 0 };
    let group = Group::root().builder("client").max(4 << 20).build().expect("fresh");
    let whole = group.run(|| parse(bytes, usize::MAX, rules));
    for step in [1, 7, 100] {
        assert_eq!(group.run(|| parse(bytes, step, rules)), whole, "in pieces of {step}");
    }
    assert!(group.peak() <= 4 << 20);
    memcg::drain();
    assert_eq!(group.usage(), 0);
});
