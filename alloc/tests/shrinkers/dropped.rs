//! What the library holds keeps neither a group nor its name: groups that are dropped while a shrinker is at them.

use super::*;

/// A shrinker that is inside a call for the group at `path` until it is told to go on, and then looks at
/// what is left of it.
struct Inside {
    path: String,
    is_inside: AtomicBool,
    go_on: AtomicBool,
    found: Mutex<Option<Found>>,
}

/// What a call finds of a group that went meanwhile.
struct Found {
    group: Group,
    path: String,
    usage: u64,
    made: Result<Group, memcg::Error>,
    heir: Option<Group>,
}

impl Inside {
    fn new(group: &Group) -> Arc<Self> {
        memcg::unaccounted(|| {
            Arc::new(Self {
                path: group.path(),
                is_inside: AtomicBool::new(false),
                go_on: AtomicBool::new(false),
                found: Mutex::new(None),
            })
        })
    }
}

impl Shrinker for Inside {
    fn count(&self, ctl: &ShrinkControl<'_>) -> Count {
        let is_first = !self.go_on.load(Ordering::SeqCst);
        if is_first && ctl.group().path() == self.path { Count::Objects(1) } else { Count::Empty }
    }

    fn scan(&self, ctl: &mut ShrinkControl<'_>) -> Scan {
        self.is_inside.store(true, Ordering::SeqCst);
        while !self.go_on.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        let group = ctl.group();
        let _ = group.set_max(1);
        let heir = group.run(|| Group::of(Raw::new(100).expect("forced").as_ptr()));
        *self.found.lock().expect("not poisoned") = Some(Found {
            group: group.clone(),
            path: group.path(),
            usage: group.usage(),
            made: group.create("child"),
            heir,
        });
        Scan::Freed(0)
    }
}

#[test]
fn a_group_is_made_again_while_a_shrinker_is_at_the_one_that_was_dropped() {
    let _alone = alone();
    let _watchdog = Watchdog::new("a group that is made again");
    let top = Group::root().create("made again").expect("fresh");
    let a = top.create("a").expect("fresh");
    let object = Raw::in_group(&a, PAGE).expect("no limit");
    let inside = Inside::new(&a);
    let registration = ShrinkerBuilder::new("inside").register(inside.clone());
    memcg::drain();
    let usage = top.usage();
    thread::scope(|scope| {
        let _ends = Sets(&inside.go_on);
        let reclaims = scope.spawn(|| top.force_empty());
        wait_for("the call begins", || inside.is_inside.load(Ordering::SeqCst));
        drop(a);
        let again = top.create("a").expect("the call keeps no name");
        assert_eq!(Group::of(object.as_ptr()), Some(top.clone()), "it is the parent's at once");
        assert_eq!((top.usage(), again.usage(), top.stat().nr_descendants), (usage, 0, 1));
        assert_eq!(top.stat().nr_dying, 1, "its record is held");
        inside.go_on.store(true, Ordering::SeqCst);
        reclaims.join().expect("no panic").expect("always");

        let found = inside.found.lock().expect("not poisoned").take().expect("the call is over");
        assert_eq!((found.path.as_str(), found.usage), ("/made again/a", 0));
        assert!(found.made.expect_err("it is gone").is_gone());
        assert_eq!(found.heir, Some(top.clone()), "who enters it pays as its heir");
        assert_ne!(found.group, again);
        let clone = found.group.clone();
        assert_eq!((clone.path(), clone == again), (again.path(), false), "it is of the old one");
        assert_eq!(format!("{clone:?}"), r#"Group { path: /made again/a, usage: 0 }"#);
        assert_eq!(found.group.parent(), Some(top.clone()));
        assert_eq!(again.max(), memcg::Limit::Max, "nobody set it");
        assert_eq!(Group::lookup("/made again/a"), Some(again));
    });
    drop((registration, object));
    memcg::drain();
    let stat = top.stat();
    assert_eq!((stat.usage, stat.nr_dying, stat.nr_contexts, stat.nr_descendants), (0, 0, 0, 0));
    memcg::check();
}

/// Drops its group, and makes it again, inside its own call: the end of the old one is put off.
struct Remakes {
    group: Mutex<Option<Group>>,
    made: Mutex<Option<Result<Group, memcg::Error>>>,
}

impl Shrinker for Remakes {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        Count::Objects(1)
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        if let Some(group) = self.group.lock().expect("not poisoned").take() {
            let parent = group.parent().expect("not the root");
            let made = parent.create("below").map(drop);
            drop(group);
            let made = made.and_then(|()| parent.create("remade"));
            *self.made.lock().expect("not poisoned") = Some(made);
        }
        Scan::Stop
    }
}

#[test]
fn a_group_is_made_again_inside_the_call_that_drops_it() {
    let _running = running();
    let top = Group::root().create("remakes").expect("fresh");
    let group = top.create("remade").expect("fresh");
    let object = Raw::in_group(&group, PAGE).expect("no limit");
    let remakes = Arc::new(Remakes { group: Mutex::new(Some(group)), made: Mutex::new(None) });
    let registration = ShrinkerBuilder::new("remakes").register(remakes.clone());
    top.force_empty().expect("always");
    let made = remakes.made.lock().expect("not poisoned").take().expect("it was called");
    assert_eq!(made.expect("its end is put off, its name is not").usage(), 0);
    drop((registration, object));
    wait_for("the end that was put off", || top.stat().nr_descendants == 0);
    memcg::drain();
    assert_eq!((top.usage(), top.stat().nr_contexts), (0, 0));
}
