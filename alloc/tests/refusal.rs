//! What a refusal tells.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{
    Cache, Count, Group, Refusal, Scan, ShrinkControl, Shrinker, ShrinkerBuilder, on_refusal,
};
use support::{PATIENCE, Raw};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MIB: usize = 1 << 20;

/// The process has one hook: one test at a time.
fn hook() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refusals of one group: those of an earlier test may be told late.
struct Told(mpsc::Receiver<Refusal>);

impl Told {
    fn next(&self, group: &Group) -> Refusal {
        loop {
            let refusal = self.0.recv_timeout(PATIENCE).expect("told");
            if refusal.group().as_ref() == Some(group) {
                return refusal;
            }
        }
    }
}

/// Has refusals sent to the answer.
fn listen() -> Told {
    let (sender, receiver) = mpsc::channel();
    on_refusal(move |refusal| drop(sender.send(refusal.clone())));
    Told(receiver)
}

fn limited(parent: &Group, name: &str, max: usize) -> Group {
    parent.builder(name).max(max as u64).build().expect("fresh")
}

#[test]
fn a_refusal_tells_who_refused_what_and_how_full_it_was() {
    let _hook = hook();
    let top = limited(&Group::root(), "full", 8 * MIB);
    let sizes = [("a", 1), ("b", 3), ("c", 2), ("d", 0), ("e", 1), ("f", 0), ("g", 0)];
    let children = sizes.map(|(name, _)| top.create(name).expect("fresh"));
    let pinned: Vec<Raw> = children
        .iter()
        .zip(sizes)
        .map(|(group, (_, mib))| Raw::in_group(group, 1000 + mib * MIB).expect("fits"))
        .collect();
    let refusals = listen();
    let usage = top.usage();
    assert!(Raw::in_group(&children[3], 2 * MIB).is_none());
    let refusal = refusals.next(&top);
    assert_eq!((refusal.path(), refusal.group()), ("/full", Some(top.clone())));
    assert_eq!(refusal.payer(), Some(children[3].clone()));
    assert!(refusal.requested() >= 2 * MIB as u64 && refusal.max() == 8 * MIB as u64);
    assert!(refusal.usage() <= refusal.max() && refusal.usage() >= 7 * MIB as u64);
    assert!(refusal.usage() <= usage && refusal.usage() + refusal.requested() > refusal.max());
    let told: Vec<&str> = refusal.children().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(told.len(), 5);
    assert_eq!(told[..2], ["b", "c"]);
    assert!(refusal.children().is_sorted_by(|a, b| a.1 >= b.1), "{refusal}");
    assert!(!refusal.is_timed_out() && !refusal.is_unasked());
    let line = refusal.to_string();
    for word in ["/full refused", "usage", "max 8388608", "largest children: b ", "rounds"] {
        assert!(line.contains(word), "{line}");
    }
    drop(pinned);
}

/// Objects that it can't give: some are there, none comes.
struct Stubborn(Duration);

impl Shrinker for Stubborn {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if ctl.group().name() == "stubborn" { Count::Objects(500) } else { Count::Empty }
    }
    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        thread::sleep(self.0);
        Scan::Freed(0)
    }
}

#[test]
fn a_refusal_tells_what_was_tried() {
    let _hook = hook();
    let refusals = listen();
    let group = limited(&Group::root(), "stubborn", MIB);
    group.set_deadline(Duration::from_secs(20), Duration::from_secs(20));
    let pinned = Raw::in_group(&group, MIB / 2);
    let registration = ShrinkerBuilder::new("quick").register(Arc::new(Stubborn(Duration::ZERO)));
    assert!(Raw::in_group(&group, MIB / 2 + 1000).is_none());
    let refusal = refusals.next(&group);
    assert!(refusal.rounds() >= 16 && refusal.scanned() >= 500, "{refusal}");
    assert!(!refusal.is_timed_out() && refusal.reclaimed() == 0 && !refusal.is_unasked());
    drop(registration);

    // Another group of the name: the rate is each group's own.
    drop((pinned, group));
    let group = limited(&Group::root(), "stubborn", MIB);
    group.set_deadline(Duration::from_millis(20), Duration::from_millis(20));
    let pinned = Raw::in_group(&group, MIB / 2);
    let slow = Duration::from_millis(400);
    let registration = ShrinkerBuilder::new("slow").register(Arc::new(Stubborn(slow)));
    assert!(Raw::in_group(&group, MIB / 2 + 1000).is_none());
    let refusal = refusals.next(&group);
    assert!(refusal.is_timed_out() && refusal.to_string().contains("timed out"), "{refusal}");
    assert!(refusal.took() >= Duration::from_millis(10), "{refusal}");
    drop((registration, pinned, group));

    let small = limited(&Group::root(), "small", MIB);
    assert!(Raw::in_group(&small, 2 * MIB).is_none());
    let refusal = refusals.next(&small);
    assert!(refusal.is_unasked() && refusal.rounds() == 0, "larger than the limit: {refusal}");
}

#[test]
fn a_loop_of_refusals_is_told_once_a_second_and_counted() {
    let _hook = hook();
    let refusals = listen();
    let group = limited(&Group::root(), "loop", MIB);
    let start = Instant::now();
    let (mut nr, mut told) = (0, Vec::new());
    while told.len() < 3 {
        assert!(Raw::in_group(&group, 2 * MIB).is_none());
        nr += 1;
        told.extend(refusals.0.try_iter().filter(|told| told.group().as_ref() == Some(&group)));
        assert!(start.elapsed() < PATIENCE);
    }
    // The clock is 4 ms coarse.
    assert!(start.elapsed() >= Duration::from_millis(1900), "three in {:?}", start.elapsed());
    assert_eq!(told[0].suppressed(), 0);
    let counted: u64 = told.iter().map(|refusal| 1 + refusal.suppressed()).sum();
    assert!(told[1].suppressed() > 0 && counted <= nr, "{counted} of {nr}");
    assert_eq!(group.events().oom, nr, "events count them all");
}

#[test]
fn a_hook_may_panic_allocate_at_a_limit_and_make_groups() {
    let _hook = hook();
    let calls = Arc::new(AtomicUsize::new(0));
    let full = limited(&Group::root(), "hooks-own", MIB);
    let pinned = Raw::in_group(&full, MIB - 100_000);
    let (seen, inside) = (calls.clone(), full.clone());
    on_refusal(move |refusal| {
        assert!(Raw::in_group(&inside, MIB / 2).is_none(), "refused in the hook itself");
        let cache = Cache::<u64, [u8; 1000]>::direct("hooks");
        let own = Group::root().create("made-in-a-hook");
        if let Ok(own) = own {
            own.run(|| cache.insert(1, [0; 1000])).expect("no limit");
        }
        let call = seen.fetch_add(1, Ordering::SeqCst);
        assert!(call % 2 == 0, "a hook that panics: {refusal}");
    });
    let start = Instant::now();
    for nr in 0..5 {
        let group = limited(&Group::root(), &format!("refuses-{nr}"), MIB);
        assert!(Raw::in_group(&group, 2 * MIB).is_none());
        while calls.load(Ordering::SeqCst) <= nr {
            assert!(start.elapsed() < PATIENCE, "call {nr}");
            thread::sleep(Duration::from_millis(1));
        }
    }
    drop(pinned);
    on_refusal(|_| ());
}

#[test]
fn a_hook_that_hangs_costs_one_thread_and_keeps_nobody() {
    let _hook = hook();
    let (enter, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let left = Mutex::new(left);
    on_refusal(move |_| {
        let _ = enter.send(());
        let _ = left.lock().unwrap_or_else(PoisonError::into_inner).recv();
    });
    let group = limited(&Group::root(), "hangs", MIB);
    assert!(Raw::in_group(&group, 2 * MIB).is_none());
    entered.recv_timeout(PATIENCE).expect("called");
    // Another worker serves: a shrinker's, and another group's report waits.
    let cache = Cache::<u64, Vec<u8>>::new("on-the-worker");
    group.set_deadline(Duration::from_secs(20), Duration::from_secs(20));
    for key in 0..2000 {
        group.run(|| cache.insert(key, vec![0; 2000])).expect("the worker makes room");
    }
    assert!(cache.stat().evictions > 0);
    let other = limited(&Group::root(), "hangs-too", MIB);
    assert!(Raw::in_group(&other, 2 * MIB).is_none());
    assert!(entered.recv_timeout(Duration::from_millis(300)).is_err(), "one call at a time");
    leave.send(()).expect("it waits");
    entered.recv_timeout(PATIENCE).expect("then the next");
    leave.send(()).expect("it waits");
    on_refusal(|_| ());
}

#[test]
fn messages_name_the_group_and_the_figures() {
    let _hook = hook();
    let group = limited(&Group::root(), "named", MIB);
    let child = group.create("below").expect("fresh");
    let cache = Cache::<u64, [u8; 2000]>::direct("named");
    let pinned = Raw::in_group(&child, MIB - 1000);
    let over = child.run(|| cache.insert(1, [0; 2000])).expect_err("full");
    let line = over.to_string();
    let (usage, max) = (over.usage().to_string(), MIB.to_string());
    for part in ["/named", &over.requested().to_string(), &usage, &max] {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    let error = group.reclaim(10 * MIB as u64).expect_err("pinned");
    let line = error.to_string();
    let usage = error.usage().to_string();
    for part in ["/named", "10485760", &usage, "max 1M"] {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    let error = group.set_max(4096).expect_err("pinned");
    assert!(error.is_busy() && error.max() == 4096, "{error:?}");
    let line = error.to_string();
    for part in ["/named", "4096", &error.usage().to_string()] {
        assert!(line.contains(part), "{line} lacks {part}");
    }
    drop(pinned);
}
