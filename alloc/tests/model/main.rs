//! The allocator against a small, obviously right model: random scripts of allocations, scopes,
//! groups, limits, reclaim and drains on several threads. After each step usage, contents, who
//! pays and events are compared. A failure shrinks to a short script, which is printed; kept in
//! `scripts/` it is run for ever.
//!
//! `MEMCG_MODEL_STEPS` makes the run longer: `MEMCG_MODEL_STEPS=1000000`.

mod actor;
mod books;
mod script;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::time::{Duration, Instant};

use proptest::test_runner::{Config, TestRunner};

use script::Script;
use world::World;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// The longest script.
const LONGEST: usize = 400;
/// Without a number of steps, scripts are begun for this long.
const SHORT: Duration = Duration::from_secs(20);

fn play(script: &Script) {
    let mut world = World::new(script.strict);
    script.ops.iter().for_each(|&op| world.step(op));
    world.finish();
}

#[test]
fn the_allocator_does_as_the_model_says() {
    let _alone = support::alone();
    let wanted: Option<usize> =
        std::env::var("MEMCG_MODEL_STEPS").ok().map(|steps| steps.parse().expect("a number"));
    let (start, mut steps, mut scripts) = (Instant::now(), 0, 0);
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    while wanted.map_or(start.elapsed() < SHORT, |wanted| steps < wanted) {
        let length = std::cell::Cell::new(0);
        let outcome = TestRunner::new(config.clone()).run(&script::script(LONGEST), |script| {
            length.set(script.ops.len());
            play(&script);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("after {steps} steps: {error}");
        }
        (steps, scripts) = (steps + length.get(), scripts + 1);
    }
    println!("{steps} steps in {scripts} scripts, {} s", start.elapsed().as_secs());
    assert!(steps > 0, "at least one script was played");
}

#[test]
fn scripts_that_once_failed_pass() {
    let _alone = support::alone();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/scripts");
    let mut played = 0;
    for file in std::fs::read_dir(folder).expect("the folder is there") {
        let path = file.expect("it can be read").path();
        let text = std::fs::read_to_string(&path).expect("it can be read");
        println!("{}", path.display());
        play(&text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        played += 1;
    }
    assert!(played > 0, "there are scripts");
}

#[test]
fn scripts_are_written_as_they_are_read() {
    let text = "lazy\nAlloc who=1 group=2 object=3 bytes=4 align=5\nDrain who=0 group=0 object=0 \
                bytes=1 align=0\n";
    let script: Script = text.parse().expect("well-formed");
    assert_eq!(script.to_string(), text);
    assert!("lazy\nFly who=1".parse::<Script>().is_err());
    assert!("Alloc who=1".parse::<Script>().is_err());
}
