//! What `Debug` and `Display` show of every public type: paths and names, on one line, bounded, nothing internal; also where
//! the group is full.

mod support;

use std::fmt::{self, Debug, Write};
use std::sync::{Arc, mpsc};

use memcg::{
    Cache, Count, FutureExt, Group, Lru, LruNode, ObjectCache, OnLimit, Refusal, Scan,
    ShrinkControl, Shrinker, ShrinkerBuilder, Threshold,
};
use support::{PATIENCE, exported};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// No text is longer: 16 names of 255 bytes, and what stands around them.
const LONGEST: usize = 6000;

/// Keeps what is written in place: it allocates nothing.
struct Text {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// `value` as text, written where `group` is current, which is full.
fn written(group: &Group, value: fmt::Arguments<'_>) -> String {
    let mut text = Text { bytes: [0; LONGEST], len: 0 };
    let written = group.run(|| text.write_fmt(value));
    assert!(written.is_ok(), "longer than {LONGEST}: {value}");
    String::from_utf8_lossy(&text.bytes[..text.len]).into_owned()
}

/// A shrinker that shows how it was called.
struct Shows(mpsc::SyncSender<String>);

impl Shrinker for Shows {
    fn count(&self, control: &ShrinkControl<'_>) -> Count {
        let _ = self.0.try_send(format!("{control:?}"));
        Count::Unknown
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        Scan::Stop
    }
}

#[test]
fn every_public_type_shows_paths_and_no_indices() {
    let (tell, told) = mpsc::channel();
    memcg::on_refusal(move |refusal| drop(tell.send(refusal.clone())));
    let (show, shown) = mpsc::sync_channel(1);
    let registration = ShrinkerBuilder::new("shows").register(Arc::new(Shows(show)));
    let group = Group::root().create("shown").expect("fresh").builder("below").max(64 << 10);
    let builder = group.clone();
    let group = group.build().expect("fresh");
    group.set_on_limit(OnLimit::Fail);
    let cache = ObjectCache::<[u8; 1000]>::new("objects");
    let mut objects = Vec::with_capacity(100);
    let over = loop {
        match group.run(|| memcg::no_reclaim(|| cache.alloc([0; 1000]))) {
            Ok(object) => objects.push(object),
            Err(over) => break over,
        }
    };
    assert!(group.run(|| memcg::fallible(|| Vec::<u8>::new().try_reserve(1 << 20))).is_err());
    let control = shown.recv_timeout(PATIENCE).expect("it is asked");
    // Those of other tests are told too.
    let is_own = |refusal: &Refusal| refusal.group().as_ref() == Some(&group);
    let refusal =
        std::iter::from_fn(|| told.recv_timeout(PATIENCE).ok()).find(is_own).expect("it is told");
    let watch = group.watch(Threshold::Usage(1)).expect("made");
    let task = group.reclaim_async(0);
    let error = group.shrink_to(0).expect_err("it is in use");
    let entered = group.enter();
    let owned = group.clone().enter_owned();
    // What the test itself allocates is not the full group's.
    let root = Group::root();
    let _root = root.enter();
    let in_group = std::future::ready(1).in_group(&group);
    let until = std::future::ready(1).in_group(&group).until_over_limit();
    let mut peak = group.peak_reader();
    peak.reset();
    let direct = Cache::<u8, u8>::direct("cache");

    let mut seen = Vec::new();
    macro_rules! show {
        ($($name:ident: $value:expr),* $(,)?) => {$(
            seen.push((stringify!($name), written(&group, format_args!("{:?}", $value))));
        )*};
    }
    // With a path.
    show!(
        Changed: watch.changed(), Entered: entered, EnteredOwned: owned, Error: error, Group: group,
        GroupBuilder: builder, InGroup: in_group, OverLimit: over, PeakReader: peak,
        ReclaimTask: task, Refusal: refusal, UntilOverLimit: until, Watch: watch,
    );
    for (name, text) in &seen {
        assert!(text.contains("/shown"), "{name}: {text}");
    }
    assert!(control.contains("group: /"), "{control}");
    for text in [format_args!("{error}"), format_args!("{over}"), format_args!("{refusal}")] {
        let text = written(&group, text);
        assert!(text.contains("/shown/below"), "{text}");
    }
    // With a name.
    let built = ObjectCache::<u8>::builder("built");
    show!(ObjectCache: cache, ObjectCacheBuilder: built, Registration: registration);
    assert!(seen.iter().any(|(_, text)| text.contains("\"shows\"")), "{seen:#?}");
    assert!(seen.iter().any(|(_, text)| text.contains("\"objects\"")), "{seen:#?}");
    // With figures.
    show!(
        Cache: direct, CacheBox: objects[0], CacheStat: direct.stat(), Cause: memcg::Cause::Direct,
        ClassStat: group.classes()[0], Count: Count::Empty, EventKind: memcg::EventKind::Oom,
        Events: group.events(), Limit: group.max(), Lru: Lru::<u8>::new(), LruNode: LruNode::new(1),
        LruStatus: memcg::LruStatus::Skip, Memcg: ALLOC, ObjectCacheStat: cache.stat(),
        OnLimit: group.on_limit(), ParseLimitError: "x".parse::<memcg::Limit>(),
        Pressure: group.pressure(), Scan: Scan::Stop, SelfStat: memcg::self_stat(),
        ShrinkerBuilder: ShrinkerBuilder::new("built"), Stall: group.pressure().some,
        Stat: group.stat(), Threshold: Threshold::Usage(1),
    );
    seen.push(("ShrinkControl", control));
    for (name, text) in &seen {
        for internal in ["GroupRef", "index", "generation", "Tag(", "Payer", "slot", "ShrinkerId"] {
            assert!(!text.contains(internal), "{name}: {text}");
        }
    }
    let traits = ["FutureExt", "PlainDrop", "Shrinker"];
    let exported = exported(include_str!("../src/lib.rs"));
    let is_shown =
        |name: &&&str| traits.contains(*name) || seen.iter().any(|(seen, _)| seen == *name);
    let unseen: Vec<_> = exported.iter().filter(|name| !is_shown(name)).collect();
    assert!(unseen.is_empty(), "exported, and not shown in `alloc/tests/debug.rs`: {unseen:?}");
}

#[test]
fn long_names_deep_paths_and_names_of_several_lines_stay_short_and_on_one_line() {
    let name = format!("line\nbreak\x1b[2J{}", "é".repeat(100));
    let mut group = Group::root();
    for _ in 0..20 {
        group = group.create(&name).expect("fresh");
    }
    let over = group.builder("full").max(4096).build().expect("fresh");
    let cache = Cache::<u8, [u8; 8000]>::direct("pages");
    let refused = over.run(|| cache.insert(1, [0; 8000])).expect_err("it does not fit");
    let error = group.create("a/b").expect_err("no name");
    let exists = group.parent().expect("deep").create(&name).expect_err("it is there");
    let builder = group.builder(&"x".repeat(1 << 20));
    let all = [
        format_args!("{group:?}"),
        format_args!("{refused:?}"),
        format_args!("{refused}"),
        format_args!("{error}"),
        format_args!("{exists}"),
        format_args!("{builder:?}"),
    ];
    for text in all {
        let text = written(&over, text);
        assert!(!text.contains(char::is_control), "{text:?}");
    }
    assert!(format!("{group:?}").contains("/../line?break?[2Jé"));
    // The path itself is as it is.
    assert!(group.path().starts_with("/line\nbreak"));
    drop(over);
    assert!(format!("{refused:?} {refused}").contains("a group that is gone"));
}

/// A writer is code of the program: it may do what it likes with the group that is written.
#[test]
fn a_writer_may_use_the_tree_and_panic() {
    struct Uses(Option<Group>, bool);
    impl Write for Uses {
        fn write_str(&mut self, _: &str) -> fmt::Result {
            drop(self.0.take().map(|group| group.create("made while it is written")));
            assert!(!self.1, "told to");
            Ok(())
        }
    }
    let group = Group::root().create("written").expect("fresh");
    let debug: &dyn Debug = &group;
    assert!(write!(Uses(Some(group.clone()), false), "{debug:?}").is_ok());
    let panics = || write!(Uses(Some(group.clone()), true), "{debug:?}");
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert!(group.usage() < 1 << 20 && group.create("later").is_ok());
}
