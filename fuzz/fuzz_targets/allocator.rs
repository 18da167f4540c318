//! The allocator's operations, against the model of `alloc/tests/model`: usage, contents, who pays and events are compared
//! after each step, and every invariant is checked.
//!
//! Eight bytes are a step: verb, thread, group, object (two), size (two), alignment with the size's scale.

#![no_main]

#[path = "../../alloc/tests/model/actor.rs"]
mod actor;
#[path = "../../alloc/tests/model/books.rs"]
mod books;
#[allow(dead_code, reason = "scripts are made here, not read, nor by chance")]
#[path = "../../alloc/tests/model/script.rs"]
mod script;
#[path = "../../alloc/tests/model/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

use script::{Op, verb};
use world::World;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Steps of one run.
const MAX_STEPS: usize = 200;

fn op(bytes: &[u8; 8]) -> Op {
    let [v, who, group, o1, o2, b1, b2, align] = bytes.map(usize::from);
    let scale = [1, 1, 1, 30][align >> 4 & 3];
    Op {
        verb: verb(v),
        who: who % 4,
        group,
        object: o1 | o2 << 8,
        bytes: 1 + (b1 | b2 << 8) * scale,
        align: u32::try_from(align & 15).expect("small").min(14),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, rest)) = data.split_first() else { return };
    let mut world = World::new(first & 1 == 0);
    for step in rest.as_chunks().0.iter().take(MAX_STEPS) {
        world.step(op(step));
        memcg::check();
    }
    world.finish();
});
