//! Shrinkers that are late, never return, panic, lie, allocate, and drop groups.

use super::*;

// ---- deadlines ----------------------------------------------------------------------------------------

/// A shrinker that does not return until it is told to.
struct Stuck {
    group: Group,
    inside: AtomicU32,
    go_on: AtomicBool,
}

impl Stuck {
    fn new(group: &Group) -> Arc<Self> {
        Arc::new(Self {
            group: group.clone(),
            inside: AtomicU32::new(0),
            go_on: AtomicBool::new(false),
        })
    }
}

impl Shrinker for Stuck {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if *ctl.group() == self.group { Count::Objects(1000) } else { Count::Empty }
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        self.inside.fetch_add(1, Ordering::SeqCst);
        while !self.go_on.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Scan::Stop
    }
}

#[test]
fn a_shrinker_that_never_returns_delays_an_allocation_by_the_deadline_at_most() {
    // Alone: it measures time.
    let _alone = alone();
    let _watchdog = Watchdog::new("a stuck shrinker");
    let (stuck_group, other) = (in_a_hurry("stuck", MAX), limited("not stuck", MAX));
    let stuck = Stuck::new(&stuck_group);
    let pages = Pages::new(&other);
    let mut registration = Some(ShrinkerBuilder::new("stuck").register(stuck.clone()));
    let good = ShrinkerBuilder::new("good").register(pages.clone());
    thread::scope(|scope| {
        let _ends = Sets(&stuck.go_on);
        let hog = Raw::in_group(&stuck_group, 1 << 20).expect("fits");
        // The deadline is 50 ms; the rest is what a loaded machine may need to run three threads.
        let mut times = Vec::new();
        for _ in 0..8 {
            let start = Instant::now();
            assert!(Raw::in_group(&stuck_group, 100).is_none());
            times.push(start.elapsed());
        }
        assert_eq!(stuck.inside.load(Ordering::SeqCst), 1, "it is not called again meanwhile");
        times.sort();
        assert!(times[4] < Duration::from_secs(2), "{times:?}");
        assert!(times[7] < Duration::from_secs(5), "{times:?}");
        // Others are served by a second worker, now and again.
        for _ in 0..10 {
            pages.fill(1000);
            assert!(Raw::in_group(&other, 500 << 10).is_some(), "another worker serves others");
        }
        assert_eq!(stuck.inside.load(Ordering::SeqCst), 1);
        // Its end waits a second at most, and the call keeps the shrinker.
        let start = Instant::now();
        drop(registration.take());
        assert!(start.elapsed() >= Duration::from_millis(500));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(Arc::strong_count(&stuck) > 1, "the call keeps what it runs in");
        drop(hog);
        scope.spawn(|| ());
    });
    wait_for("the last call drops the shrinker", || Arc::strong_count(&stuck) == 1);
    drop(good);
    wait_for("workers that are not needed end", || {
        thread_names().iter().filter(|name| *name == "memcg-worker").count() <= 1
    });
    memcg::drain();
    assert_eq!(stuck_group.usage(), 0);
    memcg::check();
}

/// Gives something, slowly.
struct Slow(Arc<Pages>);

impl Shrinker for Slow {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        self.0.count(ctl)
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        thread::sleep(Duration::from_millis(20));
        ctl.set_nr_scanned(1);
        let page = self.0.pages.try_lock().ok().and_then(|mut pages| pages.pop());
        page.map_or(Scan::Stop, |_| Scan::Freed(1))
    }
}

#[test]
fn bytes_that_arrive_renew_the_deadline_up_to_a_total() {
    let _alone = alone();
    let group = in_a_hurry("slow", MAX);
    let pages = Pages::new(&group);
    let registration = ShrinkerBuilder::new("slow").register(Arc::new(Slow(pages.clone())));
    pages.fill(1000);
    let start = Instant::now();
    assert!(Raw::in_group(&group, 1 << 20).is_none(), "256 pages at 20 ms are too many");
    let took = start.elapsed();
    let gone = 256 - pages.len();
    assert!(gone >= 2, "it waited for more than the first: {gone} in {took:?}");
    // 200 ms in all, and what a loaded machine adds.
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(registration);
}

// ---- shrinkers that do wrong --------------------------------------------------------------------------

/// Does what it is made with, in `scan`.
pub(crate) struct Rogue {
    group: Group,
    pub(crate) calls: AtomicU32,
    act: Box<dyn Fn(&ShrinkControl<'_>) -> Scan + Send + Sync>,
}

impl Rogue {
    pub(crate) fn new(
        group: &Group,
        act: impl Fn(&ShrinkControl<'_>) -> Scan + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { group: group.clone(), calls: AtomicU32::new(0), act: Box::new(act) })
    }
}

impl Shrinker for Rogue {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        if *ctl.group() == self.group { Count::Objects(10) } else { Count::Empty }
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.act)(ctl)
    }
}

#[test]
fn a_shrinker_that_panics_is_not_called_again_and_the_process_lives() {
    let _running = running();
    let group = limited("panics", MAX);
    let rogue = Rogue::new(&group, |_| panic!("a panic in a shrinker, on purpose"));
    let registration = ShrinkerBuilder::new("panics").register(rogue.clone());
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    for _ in 0..3 {
        assert!(Raw::in_group(&group, 100).is_none());
    }
    assert_eq!(rogue.calls.load(Ordering::SeqCst), 1);
    assert!(group.force_empty().is_ok());
    assert_eq!(rogue.calls.load(Ordering::SeqCst), 1);
    drop((registration, hog));
    assert_eq!(Arc::strong_count(&rogue), 1);
}

#[test]
fn a_direct_shrinker_that_panics_does_not_unwind_out_of_an_allocation() {
    let _running = running();
    let group = limited("panics directly", MAX);
    let rogue = Rogue::new(&group, |_| {
        // A payload that panics when it is dropped, too.
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                if !thread::panicking() {
                    std::panic::resume_unwind(Box::new("again, on purpose"));
                }
            }
        }
        let payload: Box<dyn Any + Send> = Box::new(Bomb);
        std::panic::resume_unwind(payload)
    });
    // SAFETY: it waits for nothing and touches nothing but its own words; a payload is memory of
    // its own, and what its drop does is caught.
    let registration = unsafe { ShrinkerBuilder::new("bomb").register_direct(rogue.clone()) };
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    for _ in 0..3 {
        assert!(Raw::in_group(&group, 100).is_none());
    }
    assert_eq!(rogue.calls.load(Ordering::SeqCst), 1);
    drop((registration, hog));
}

#[test]
fn a_lie_is_not_progress() {
    let _running = running();
    let group = limited("lies", MAX);
    let rogue = Rogue::new(&group, |_| Scan::Freed(usize::MAX));
    let registration = ShrinkerBuilder::new("lies").register(rogue.clone());
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    assert!(Raw::in_group(&group, 100).is_none());
    let error = group.reclaim(PAGE as u64).expect_err("nothing was freed");
    assert!(error.is_again(), "{error}");
    assert_eq!(error.reclaimed(), 0);
    assert_eq!(group.force_empty().expect("always"), 0);
    assert!(rogue.calls.load(Ordering::SeqCst) >= 1);
    drop((registration, hog));
}

/// What it allocates itself and frees again is nothing that came back.
#[test]
fn what_a_shrinker_allocates_and_frees_is_not_progress() {
    let _running = running();
    let group = limited("busy doing nothing", MAX);
    let inside = group.clone();
    let rogue = Rogue::new(&group, move |_| {
        drop(Raw::in_group(&inside, 10 * PAGE));
        drop(Raw::in_group(&inside, 64 * PAGE));
        Scan::Freed(1)
    });
    let registration = ShrinkerBuilder::new("busy doing nothing").register(rogue.clone());
    let hog = Raw::in_group(&group, 900 << 10).expect("fits");
    let error = group.reclaim(1 << 20).expect_err("nothing was freed");
    assert!(error.is_again() && error.reclaimed() < 64 << 10, "{error}");
    // Refused for want of progress, and not for want of time.
    let start = Instant::now();
    assert!(Raw::in_group(&group, 200 << 10).is_none());
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    assert!(rogue.calls.load(Ordering::SeqCst) >= 1);
    drop((registration, hog));
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

#[test]
fn a_shrinker_that_stops_is_left_in_peace_and_the_refusal_comes() {
    let _running = running();
    let group = in_a_hurry("stops", MAX);
    let rogue = Rogue::new(&group, |_| Scan::Stop);
    let registration = ShrinkerBuilder::new("stops").register(rogue.clone());
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    let start = Instant::now();
    assert!(Raw::in_group(&group, 100).is_none());
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(group.events().oom, 1);
    drop((registration, hog));
}

#[test]
fn a_shrinker_is_never_refused_what_it_allocates() {
    let _running = running();
    let group = limited("allocates", MAX);
    let pages = Pages::new(&group);
    let (inner, own) = (pages.clone(), group.clone());
    let refused = Arc::new(AtomicU32::new(0));
    let counter = refused.clone();
    let rogue = Rogue::new(&group, move |_| {
        // Of the very group that is full, small and large, and beyond the reserve.
        for size in [10, 1000, 30_000, 300_000, 3 << 20] {
            if Raw::in_group(&own, size).is_none() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
        let gone = inner.pages.try_lock().map(|mut pages| pages.pop()).ok().flatten();
        gone.map_or(Scan::Stop, |_| Scan::Freed(1))
    });
    let registrations = (
        ShrinkerBuilder::new("allocates").register(rogue.clone()),
        // SAFETY: it waits for nothing, its lock is tried, and what it drops frees memory.
        unsafe { ShrinkerBuilder::new("allocates directly").register_direct(rogue.clone()) },
    );
    assert_eq!(pages.fill(1000), 256);
    let object = Raw::in_group(&group, 3 * PAGE).expect("pages go, one by one");
    assert!(rogue.calls.load(Ordering::SeqCst) >= 3);
    assert_eq!(refused.load(Ordering::SeqCst), 0, "a shrinker is never refused");
    drop((object, registrations));
    pages.pages.lock().expect("not poisoned").clear();
    memcg::drain();
    assert_eq!(group.usage(), 0, "what it was forced was paid back");
}

#[test]
fn a_shrinker_makes_and_drops_groups() {
    let _running = running();
    // What it frees of its own making counts as progress: the deadline ends it.
    let top = in_a_hurry("shrinker's groups", MAX);
    let parent = top.create("parent").expect("fresh");
    let victims: Mutex<Vec<Group>> = Mutex::new(Vec::new());
    let mut objects = Vec::new();
    for i in 0..20 {
        let victim = parent.create(&i.to_string()).expect("fresh");
        objects.push(Raw::in_group(&victim, 2 * PAGE).expect("fits"));
        victims.lock().expect("not poisoned").push(victim);
    }
    let own = parent.clone();
    let names = AtomicUsize::new(0);
    let rogue = Rogue::new(&parent, move |ctl| {
        // A group that is offline when this returns, one that goes now, and a handle of the
        // visited group that outlives the call by nothing.
        let name = format!("made {}", names.fetch_add(1, Ordering::SeqCst));
        let made = own.create(&name).expect("a fresh name");
        made.run(|| drop(vec![1_u8; 100]));
        drop((made, ctl.group().clone()));
        victims.lock().expect("not poisoned").pop();
        Scan::Freed(0)
    });
    let registrations = (
        ShrinkerBuilder::new("groups").register(rogue.clone()),
        // SAFETY: it waits for nothing: nobody else takes the lock that it takes; making and
        // dropping groups is what a shrinker may do.
        unsafe { ShrinkerBuilder::new("groups directly").register_direct(rogue.clone()) },
    );
    let hog = Raw::in_group(&top, 800 << 10).expect("fits");
    for _ in 0..8 {
        assert!(Raw::in_group(&top, 300 << 10).is_none());
    }
    drop(registrations);
    drop(rogue);
    // At a safe point, which is now.
    wait_for("what was deferred is done", || {
        Group::root().run(|| ());
        let stat = parent.stat();
        stat.nr_dying == 0 && stat.nr_descendants == 0
    });
    for object in &objects {
        assert_eq!(Group::of(object.as_ptr()), Some(parent.clone()));
    }
    drop((objects, hog));
    memcg::drain();
    assert_eq!(top.usage(), 0);
}

#[test]
fn a_shrinker_registers_and_unregisters_from_inside_a_call() {
    let _running = running();
    let _watchdog = Watchdog::new("registering inside a call");
    let group = limited("registers", MAX);
    let pages = Pages::new(&group);
    let others: Arc<Mutex<Vec<Registration>>> = Arc::new(Mutex::new(Vec::new()));
    let own: Arc<OnceLock<Mutex<Option<Registration>>>> = Arc::new(OnceLock::new());
    let (inner, kept, itself) = (pages.clone(), others.clone(), own.clone());
    let rogue = Rogue::new(&group, move |_| {
        let registration = ShrinkerBuilder::new("made in a call").register(inner.clone());
        kept.lock().expect("not poisoned").push(registration);
        drop(ShrinkerBuilder::new("made and dropped in a call").register(inner.clone()));
        // And its own: it waits for every call but this one.
        if let Some(own) = itself.get() {
            drop(own.lock().expect("not poisoned").take());
        }
        Scan::Freed(0)
    });
    let registration = ShrinkerBuilder::new("registers").register(rogue.clone());
    let _ = own.set(Mutex::new(Some(registration)));
    assert_eq!(pages.fill(1000), 256);
    let object = Raw::in_group(&group, 300 << 10);
    // Whether it is the first or a later allocation that finds the new shrinker is open.
    let object = object.or_else(|| Raw::in_group(&group, 300 << 10));
    assert!(object.is_some(), "the one that was made in the call evicts");
    assert_eq!(rogue.calls.load(Ordering::SeqCst), 1, "it ended itself");
    wait_for("the call was the last to use it", || Arc::strong_count(&rogue) == 1);
    others.lock().expect("not poisoned").clear();
}

#[test]
fn the_end_of_a_registration_waits_for_a_call_in_flight() {
    let _running = running();
    let group = limited("in flight", MAX);
    let hog = Raw::in_group(&group, 1 << 20).expect("fits");
    for _ in 0..20 {
        let over = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicBool::new(false));
        let (is_over, has_begun) = (over.clone(), begun.clone());
        let rogue = Rogue::new(&group, move |_| {
            has_begun.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
            is_over.store(true, Ordering::SeqCst);
            Scan::Stop
        });
        let registration = ShrinkerBuilder::new("in flight").register(rogue.clone());
        let other = group.clone();
        let asker = thread::spawn(move || other.reclaim(ALL).is_err());
        wait_for("a call begins", || begun.load(Ordering::SeqCst));
        drop(registration);
        assert!(over.load(Ordering::SeqCst), "the call had ended");
        assert_eq!(Arc::strong_count(&rogue), 1, "and nobody has the shrinker any more");
        let calls = rogue.calls.load(Ordering::SeqCst);
        assert!(asker.join().expect("no panic"));
        assert_eq!(rogue.calls.load(Ordering::SeqCst), calls, "no call begins after that");
    }
    drop(hog);
}
