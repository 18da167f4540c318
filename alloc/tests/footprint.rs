//! What groups, contexts and threads take is what `memcg::footprint` says.
//!
//! One test, for what is resident is the whole process's.

use std::fs;
use std::sync::Barrier;
use std::thread;

use memcg::{Group, footprint};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Exact: the sums in `status` and `statm` may be a hundred pages behind.
fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/smaps_rollup").expect("proc is mounted");
    let line = text.lines().find(|line| line.starts_with("Rss:")).expect("the kernel names it");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<usize>().expect("a number") * 1024
}

/// What the documents say, to within what the kernel's pages and a busy machine add or take: a constant that
/// is out of date helps nobody.
fn assert_near(what: &str, found: usize, documented: usize) {
    println!("{what}: {found} bytes, documented {documented}");
    let is_near = found * 4 <= documented * 5 && found * 3 >= documented;
    assert!(is_near, "{what} takes {found} bytes, documented are {documented}");
}

/// Groups, and contexts that outlive theirs.
const MANY: usize = 50_000;
/// Threads that are alive at once.
const THREADS: usize = 64;

/// Bytes of each of many idle groups with short names, their handles left out.
fn group() -> usize {
    let parent = Group::root().create("parent").expect("a fresh name");
    let mut groups: Vec<Option<Group>> = vec![None; MANY];
    let before = resident();
    for (number, group) in groups.iter_mut().enumerate() {
        *group = Some(parent.create(&format!("tenant-{number}")).expect("a fresh name"));
    }
    resident().saturating_sub(before) / MANY
}

/// Bytes that an object takes more because its group is gone.
fn context() -> usize {
    let parent = Group::root().create("contexts").expect("a fresh name");
    let mut objects: Vec<Option<Box<[u64; 8]>>> = vec![None; 3 * MANY];
    let (first, rest) = objects.split_at_mut(MANY);
    let (second, third) = rest.split_at_mut(MANY);
    let fill = |objects: &mut [Option<Box<[u64; 8]>>]| {
        for object in objects {
            let group = parent.create("short").expect("the one before is gone");
            *object = group.run(|| Some(Box::default()));
        }
    };
    // The first go takes what was free before: records of contexts, as many as there were groups.
    fill(first);
    let start = resident();
    parent.run(|| second.iter_mut().for_each(|object| *object = Some(Box::default())));
    let of_one = resident();
    fill(third);
    assert_eq!(parent.stat().nr_contexts, 2 * MANY as u64);
    resident().saturating_sub(of_one).saturating_sub(of_one - start) / MANY
}

/// Bytes of a thread that made and dropped one object in a group, its stack included.
fn thread() -> usize {
    let group = Group::root().create("threads").expect("a fresh name");
    let work = || drop(std::hint::black_box(group.run(|| Box::new([0_u64; 8]))));
    // What all threads share.
    thread::scope(|scope| drop(scope.spawn(work)));
    let before = resident();
    let (done, end) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                work();
                done.wait();
                end.wait();
            });
        }
        done.wait();
        let each = resident().saturating_sub(before) / THREADS;
        end.wait();
        each
    })
}

#[test]
fn nothing_takes_more_than_is_documented() {
    // A system may make what is touched here and there resident by 2 MiB at a time.
    // SAFETY: it takes no pointers.
    let answer = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    assert_eq!(answer, 0, "every Linux has it");
    let in_turn = [thread(), group(), context()];
    assert_near("a thread", in_turn[0], footprint::THREAD);
    assert_near("an idle group", in_turn[1], footprint::GROUP);
    assert_near("a context", in_turn[2], footprint::CONTEXT);
}
