//! Shrinkers through the public surface: what they are asked, when, and what they can do wrong.

mod dropped;
#[path = "../support/mod.rs"]
mod support;
mod wrong;

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Cause, Count, Group, Registration, Scan, ShrinkControl, Shrinker, ShrinkerBuilder};
use support::{Raw, Sets, Watchdog, alone, running, thread_names};
use wrong::Rogue;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MAX: u64 = 1 << 20;
const PAGE: usize = 4096;
/// More than there can be: every shrinker is asked for it, and the answer is an error.
const ALL: u64 = 1 << 60;

/// A group with the usual deadline, 50 ms and 200 ms in all.
fn in_a_hurry(name: &str, max: u64) -> Group {
    Group::root().builder(name).max(max).build().expect("a fresh name")
}

/// A group whose allocations wait for the worker for as long as a loaded machine may need to run it.
fn limited(name: &str, max: u64) -> Group {
    patient(in_a_hurry(name, max))
}

fn patient(group: Group) -> Group {
    group.set_deadline(Duration::from_secs(30), Duration::from_secs(60));
    group
}

/// Waits for something that a loaded machine may take its time for.
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The usual cache: objects of one group, oldest first, that can be had again.
struct Pages {
    group: Group,
    pages: Mutex<Vec<Raw>>,
    calls: AtomicU32,
    asked: AtomicU32,
    causes: Mutex<Vec<Cause>>,
}

impl Pages {
    fn new(group: &Group) -> Arc<Self> {
        memcg::unaccounted(|| {
            Arc::new(Self {
                group: group.clone(),
                pages: Mutex::new(Vec::with_capacity(10_000)),
                calls: AtomicU32::new(0),
                asked: AtomicU32::new(0),
                causes: Mutex::new(Vec::with_capacity(10_000)),
            })
        })
    }

    fn fill(&self, n: usize) -> usize {
        let pages: Vec<Raw> =
            (0..n).map_while(|_| memcg::no_reclaim(|| Raw::in_group(&self.group, PAGE))).collect();
        let filled = pages.len();
        self.pages.lock().expect("not poisoned").extend(pages);
        filled
    }

    fn len(&self) -> usize {
        self.pages.lock().expect("not poisoned").len()
    }
}

impl Shrinker for Pages {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if *ctl.group() != self.group && !ctl.group().path().starts_with(&self.group.path()) {
            return Count::Empty;
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.pages.try_lock().map_or(Count::Unknown, |pages| Count::Objects(pages.len()))
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if let Ok(mut causes) = self.causes.try_lock()
            && causes.len() < causes.capacity()
        {
            causes.push(ctl.cause());
        }
        let Ok(mut pages) = self.pages.try_lock() else { return Scan::Stop };
        let n = ctl.nr_to_scan().min(pages.len());
        Scan::Freed(pages.drain(..n).count())
    }
}

/// Registers for direct calls: what it drops frees memory and does nothing else, and its locks are
/// tried.
fn register_direct(name: &str, pages: &Arc<Pages>) -> Registration {
    // SAFETY: `Pages` waits for nothing: it takes its locks by try-lock, and the comparison of
    // paths allocates, which a shrinker may; what it drops frees memory and does nothing else.
    unsafe { ShrinkerBuilder::new(name).register_direct(pages.clone()) }
}

// ---- before an allocation fails ---------------------------------------------------------------------

#[test]
fn a_worker_evicts_before_an_allocation_fails() {
    let _running = running();
    let group = limited("evicts on the worker", MAX);
    let pages = Pages::new(&group);
    let registration = ShrinkerBuilder::new("pages").register(pages.clone());
    let filled = pages.fill(1000);
    assert_eq!(filled, 256);
    for _ in 0..200 {
        let object = Raw::in_group(&group, 10 * PAGE).expect("pages make room");
        assert!(group.usage() <= MAX);
        drop(object);
        pages.fill(10);
    }
    let whole = Raw::in_group(&group, 1 << 20).expect("all pages go for it");
    assert_eq!(pages.len(), 0);
    assert_eq!((group.events().oom, group.events().forced), (0, 0));
    drop((whole, registration));
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn a_direct_shrinker_runs_on_the_thread_that_allocates() {
    let _running = running();
    let group = limited("evicts directly", MAX);
    let pages = Pages::new(&group);
    let registration = register_direct("direct pages", &pages);
    for _ in 0..20 {
        pages.fill(1000);
        let held: Vec<Raw> = (0..100).map_while(|_| Raw::in_group(&group, PAGE)).collect();
        assert_eq!(held.len(), 100, "pages make room for each");
        assert!(group.usage() <= MAX);
    }
    let causes = std::mem::take(&mut *pages.causes.lock().expect("not poisoned"));
    // What an allocation inside `no_reclaim` could not wait for is background work.
    assert!(causes.contains(&Cause::Direct) && !causes.contains(&Cause::Worker), "{causes:?}");
    assert_eq!((group.events().oom, group.events().forced), (0, 0));
    drop(registration);
    pages.pages.lock().expect("not poisoned").clear();
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn an_ancestors_limit_asks_its_whole_subtree() {
    let _running = running();
    let top = limited("asks below", MAX);
    let (rich, poor) = (top.create("rich").expect("fresh"), top.create("poor").expect("fresh"));
    // How long an allocation waits is its own group's to say.
    let poor = patient(poor);
    let pages = Pages::new(&rich);
    let registration = ShrinkerBuilder::new("the sibling's").register(pages.clone());
    assert_eq!(pages.fill(1000), 256);
    let object = Raw::in_group(&poor, 300 << 10).expect("the sibling's pages make room");
    assert!(top.usage() <= MAX);
    drop((object, registration));
}

#[test]
fn live_objects_are_not_evicted_while_others_cache_garbage() {
    let _running = running();
    let group = limited("garbage first", MAX);
    let pages = Pages::new(&group);
    let registration = ShrinkerBuilder::new("kept pages").register(pages.clone());
    pages.fill(100);
    // Garbage in this thread's magazines: of pages, up to what a thread may cache.
    drop((0..100).map_while(|_| Raw::in_group(&group, 3000)).collect::<Vec<_>>());
    let calls = pages.calls.load(Ordering::SeqCst);
    let object = Raw::in_group(&group, 500 << 10).expect("garbage makes room");
    assert_eq!(pages.calls.load(Ordering::SeqCst), calls, "nothing was evicted for it");
    assert_eq!(pages.len(), 100);
    drop((object, registration));
}

#[test]
fn inside_no_reclaim_no_shrinker_runs() {
    let _running = running();
    let group = limited("no reclaim", MAX);
    let pages = Pages::new(&group);
    let direct = Pages::new(&group);
    let registrations =
        (ShrinkerBuilder::new("pages").register(pages.clone()), register_direct("direct", &direct));
    // Nearly to the brim: what meets the limit wakes the worker.
    assert_eq!((pages.fill(100), direct.fill(120)), (100, 120));
    let start = Instant::now();
    // It is refused, or finds what the worker, which it woke, has evicted by then.
    let refused = memcg::no_reclaim(|| Raw::in_group(&group, 300 << 10)).is_none();
    let causes = direct.causes.lock().expect("not poisoned").clone();
    assert!(!causes.contains(&Cause::Direct), "no shrinker runs on this thread: {causes:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(group.events().oom, 0, "it is no sign that there was no memory");
    assert!(group.events().max >= 1 || !refused);
    // The worker was woken, and makes room for later.
    wait_for("the worker makes room", || {
        memcg::no_reclaim(|| Raw::in_group(&group, 60 << 10)).is_some()
    });
    drop(registrations);
}

// ---- who is asked ---------------------------------------------------------------------------------------

/// Notes for which groups it was asked, and says what it is told to.
struct Marked {
    asked: Mutex<Vec<String>>,
    says: Mutex<Count>,
}

impl Marked {
    fn new(says: Count) -> Arc<Self> {
        Arc::new(Self { asked: Mutex::new(Vec::new()), says: Mutex::new(says) })
    }

    /// The groups under `top` that it was asked for since the last time, each once.
    fn take(&self, top: &Group) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().expect("not poisoned"));
        asked.retain(|path| path.starts_with(&top.path()));
        asked.sort();
        asked.dedup();
        asked
    }

    fn say(&self, count: Count) {
        *self.says.lock().expect("not poisoned") = count;
    }
}

impl Shrinker for Marked {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        self.asked.lock().expect("not poisoned").push(ctl.group().path());
        *self.says.lock().expect("not poisoned")
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        Scan::Freed(0)
    }
}

#[test]
fn only_marked_groups_are_asked() {
    let _running = running();
    let top = Group::root().create("marks").expect("fresh");
    let (a, b) = (top.create("a").expect("fresh"), top.create("b").expect("fresh"));
    let below = b.create("below").expect("fresh");
    let _held: Vec<Raw> =
        [&a, &b, &below].into_iter().filter_map(|group| Raw::in_group(group, PAGE)).collect();
    let marked = Marked::new(Count::Empty);
    let registration = ShrinkerBuilder::new("marked").marked().register(marked.clone());
    let all = ["/marks", "/marks/a", "/marks/b", "/marks/b/below"];

    // It starts marked everywhere: groups are asked until it says that they are empty.
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), all);
    assert!(top.reclaim(ALL).is_err());
    assert!(marked.take(&top).is_empty(), "`Empty` takes the mark away");

    registration.mark(&b);
    assert!(a.reclaim(ALL).is_err());
    assert!(marked.take(&top).is_empty(), "another subtree");
    marked.say(Count::Unknown);
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), ["/marks/b"]);
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), ["/marks/b"], "`Unknown` leaves the mark");
    marked.say(Count::Objects(0));
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), ["/marks/b"], "and so does 0");
    marked.say(Count::Empty);
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), ["/marks/b"]);
    assert!(top.reclaim(ALL).is_err());
    assert!(marked.take(&top).is_empty());

    // A new group is marked; a mark of one that goes is its parent's.
    let fresh = a.create("fresh").expect("fresh");
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), ["/marks/a/fresh"]);
    registration.mark(&fresh);
    drop(fresh);
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(marked.take(&top), ["/marks/a"]);
    drop(registration);
}

/// What is not `marked` is asked each time, whatever it said: a pool fills without a charge.
#[test]
fn a_shrinker_that_said_empty_is_asked_again() {
    let _running = running();
    let group = limited("filled later", MAX);
    let pages = Pages::new(&group);
    let says = Marked::new(Count::Empty);
    let registrations = (
        ShrinkerBuilder::new("pages").register(pages.clone()),
        ShrinkerBuilder::new("empty").register(says.clone()),
    );
    let held: Vec<Raw> = (0..256).map_while(|_| Raw::in_group(&group, PAGE)).collect();
    assert_eq!(held.len(), 256);
    assert!(Raw::in_group(&group, PAGE).is_none(), "there is nothing to give");
    assert!(!says.take(&group).is_empty());
    // What is in use becomes what can be had again; nobody is told.
    pages.pages.lock().expect("not poisoned").extend(held);
    let object = Raw::in_group(&group, PAGE).expect("it is asked again");
    assert!(!says.take(&group).is_empty());
    drop((object, registrations));
}

#[test]
fn a_shrinker_in_a_group_is_asked_for_it_alone_and_then_for_its_parent() {
    // Other tests have the root ask everybody.
    let _alone = alone();
    let top = Group::root().create("in").expect("fresh");
    let (a, b) = (top.create("a").expect("fresh"), top.create("b").expect("fresh"));
    // More than there are marks, so that some share one.
    let all: Vec<_> = (0..300)
        .map(|_| {
            let says = Marked::new(Count::Empty);
            (ShrinkerBuilder::new("in a").in_group(&a).register(says.clone()), says)
        })
        .collect();
    let other = Marked::new(Count::Empty);
    let registration = ShrinkerBuilder::new("in b").in_group(&b).register(other.clone());
    for _ in 0..2 {
        assert!(b.reclaim(ALL).is_err());
        assert_eq!(other.take(&top), ["/in/b"]);
        assert!(all.iter().all(|(_, says)| says.take(&top).is_empty()), "none of another group's");
        assert!(top.reclaim(ALL).is_err());
        assert_eq!(other.take(&top), ["/in/b"]);
        assert!(all.iter().all(|(_, says)| says.take(&top) == ["/in/a"]), "each of its own");
    }
    drop(a);
    assert!(top.reclaim(ALL).is_err());
    assert!(all.iter().all(|(_, says)| says.take(&top) == ["/in"]), "its objects are the parent's");
    // With marks: `Empty` lasts, until it is marked.
    let lazy = Marked::new(Count::Empty);
    let lazily = ShrinkerBuilder::new("lazy").in_group(&b).marked().register(lazy.clone());
    for asked in [&["/in/b"][..], &[]] {
        assert!(top.reclaim(ALL).is_err());
        assert_eq!(lazy.take(&top), asked);
    }
    lazily.mark(&b);
    assert!(top.reclaim(ALL).is_err());
    assert_eq!(lazy.take(&top), ["/in/b"]);
    drop((all, registration, lazily));
}

#[test]
fn a_cache_that_is_gone_has_nothing() {
    let _running = running();
    let group = limited("gone cache", MAX);
    let pages = Pages::new(&group);
    let weak = Arc::new(Arc::downgrade(&pages));
    let registration = ShrinkerBuilder::new("weak").in_group(&group).register(weak);
    assert_eq!(pages.fill(1000), 256);
    assert!(Raw::in_group(&group, 10 * PAGE).is_some(), "pages make room");
    // A call in which the worker makes room may keep it for a moment.
    wait_for("the registration does not keep it", || Arc::strong_count(&pages) == 1);
    drop(pages);
    wait_for("what it had goes", || {
        memcg::drain();
        group.usage() == 0
    });
    assert!(group.reclaim(ALL).is_err());
    drop(registration);
}

#[test]
fn a_shrinker_that_knows_no_groups_is_asked_by_the_root_alone() {
    let _running = running();
    let group = limited("unaware", MAX);
    let marked = Marked::new(Count::Objects(10));
    let registration = ShrinkerBuilder::new("unaware").group_aware(false).register(marked.clone());
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    assert!(Raw::in_group(&group, 100).is_none());
    assert!(group.reclaim(ALL).is_err());
    let _ = group.force_empty();
    let calls = std::mem::take(&mut *marked.asked.lock().expect("not poisoned"));
    assert!(calls.iter().all(|path| path == "/"), "{calls:?}");
    assert!(Group::root().reclaim(ALL).is_err());
    let calls = std::mem::take(&mut *marked.asked.lock().expect("not poisoned"));
    assert!(!calls.is_empty() && calls.iter().all(|path| path == "/"), "{calls:?}");
    drop((registration, hog));
}

// ---- giving back ------------------------------------------------------------------------------------------

#[test]
fn reclaim_says_what_it_got() {
    let _running = running();
    let group = Group::root().create("reclaim").expect("fresh");
    let pages = Pages::new(&group);
    let registration = ShrinkerBuilder::new("reclaim").register(pages.clone());
    pages.fill(256);
    memcg::drain();
    let before = group.usage();
    assert_eq!(before, 256 * PAGE as u64);

    let got = group.reclaim(100 * PAGE as u64).expect("there are 256 pages");
    memcg::drain();
    assert!(got >= 100 * PAGE as u64);
    assert_eq!(before - group.usage(), got, "it says what it got");
    assert!(pages.causes.lock().expect("not poisoned").iter().all(|&c| c == Cause::Proactive));
    assert_eq!(group.events().max, 0, "it is no pressure");

    let left = pages.len() as u64 * PAGE as u64;
    let error = group.reclaim(left + 1).expect_err("there is no more");
    assert!(error.is_again() && !error.is_busy(), "{error}");
    assert_eq!((error.reclaimed(), error.requested()), (left, left + 1));
    assert!(error.to_string().contains("/reclaim"), "{error}");
    assert_eq!(group.usage(), 0);
    assert_eq!(group.reclaim(0).expect("nothing is easy"), 0);
    drop(registration);
}

#[test]
fn shrink_to_and_set_max_stop_at_what_is_pinned() {
    let _running = running();
    let group = Group::root().create("shrink to").expect("fresh");
    let pages = Pages::new(&group);
    let registration = ShrinkerBuilder::new("shrink to").register(pages.clone());
    let pinned = Raw::in_group(&group, 100 << 10).expect("no limit");
    memcg::drain();
    let pinned_bytes = group.usage();
    pages.fill(256);

    group.shrink_to(600 << 10).expect("pages go");
    assert!(group.usage() <= 600 << 10);
    assert!(pages.len() > 0, "no more than was asked for, or not much");
    let error = group.shrink_to(50 << 10).expect_err("the rest is in use");
    assert!(error.is_busy() && !error.is_again(), "{error}");
    assert_eq!(error.usage(), pinned_bytes);
    assert_eq!(pages.len(), 0);

    pages.fill(256);
    let error = group.set_max(10 << 10).expect_err("in use");
    assert!(error.is_busy());
    assert_eq!((error.usage(), error.max()), (pinned_bytes, 10 << 10));
    assert_eq!(group.max().bytes(), Some(10 << 10), "the limit stands");
    assert_eq!(group.usage(), pinned_bytes);
    group.set_max(1 << 20).expect("above usage");
    // None of them is refused, so that the worker has nothing to do.
    pages.fill(200);
    group.set_max(200 << 10).expect("pages go");
    assert!(group.usage() <= 200 << 10);
    assert!(pages.len() > 10, "{} pages: no more than was asked for, or not much", pages.len());

    let got = group.force_empty().expect("always");
    assert!(got > 0);
    assert_eq!(group.usage(), pinned_bytes, "what is left is pinned");
    assert_eq!(group.force_empty().expect("always"), 0);
    drop((registration, pinned));
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn groups_may_be_dropped_while_they_are_reclaimed() {
    let _running = running();
    let _watchdog = Watchdog::new("drops during reclaim");
    let top = limited("dropped meanwhile", 8 << 20);
    let pages = Pages::new(&top);
    let registration = ShrinkerBuilder::new("dropped meanwhile").register(pages.clone());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let _ = top.reclaim(64 << 10);
                }
            });
        }
        for i in 0..3000 {
            let child = patient(top.create(&i.to_string()).expect("fresh"));
            let object = Raw::in_group(&child, PAGE).expect("pages make room");
            let asked = (i % 3 == 0).then(|| child.clone());
            if let Some(asked) = asked {
                scope.spawn(move || drop(asked.force_empty()));
            }
            drop(child);
            let owner = Group::of(object.as_ptr()).expect("it is charged");
            assert!(owner == top || owner.parent() == Some(top.clone()));
            pages.pages.lock().expect("not poisoned").push(object);
        }
    });
    drop(registration);
    pages.pages.lock().expect("not poisoned").clear();
    wait_for("handles of the walkers go", || top.stat().nr_descendants == 0);
    let stat = top.stat();
    assert_eq!((stat.usage, stat.nr_contexts, stat.nr_dying), (0, 0, 0), "{stat:?}");
}

#[test]
fn reclaim_inside_a_shrinker_and_inside_no_reclaim_does_nothing_and_does_not_hang() {
    let _running = running();
    let _watchdog = Watchdog::new("reclaim inside a shrinker");
    let group = in_a_hurry("inside", MAX);
    let pages = Pages::new(&group);
    let own = group.clone();
    let reclaimed = Arc::new(AtomicU32::new(0));
    let counter = reclaimed.clone();
    let rogue = Rogue::new(&group, move |_| {
        if own.reclaim(PAGE as u64).is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        let _ = own.force_empty();
        let _ = own.stat();
        memcg::drain();
        Scan::Stop
    });
    let registration = ShrinkerBuilder::new("inside").register(rogue.clone());
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    assert!(Raw::in_group(&group, 100).is_none());
    assert!(group.reclaim(ALL).is_err());
    assert!(rogue.calls.load(Ordering::SeqCst) >= 1);
    assert_eq!(reclaimed.load(Ordering::SeqCst), 0);
    drop((registration, hog));
    pages.fill(10);
    let registration = ShrinkerBuilder::new("not inside").register(pages.clone());
    memcg::drain();
    assert!(memcg::no_reclaim(|| group.reclaim(ALL)).is_err());
    assert_eq!(pages.calls.load(Ordering::SeqCst), 0);
    drop(registration);
}
