//! What is done while calls are refused, and what must be true whatever was refused.
//!
//! # Invariants
//!
//! - What may be refused is asked for fallibly, or in small pieces that spans have room for (see [`World::new`]): an infallible
//!   allocation that finds no memory would end the process, as Rust has it.
//! - Each object's bytes say what it was filled with.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memcg::{
    Cache, Count, EventKind, Group, OnLimit, Scan, ShrinkControl, Shrinker, ShrinkerBuilder,
    Threshold, Watch,
};

use crate::seam;
use crate::support::{Random, Raw};

/// Sizes that objects take exactly: six of slab classes, three of jemalloc's.
const SIZES: [usize; 9] = [16, 112, 1024, 4096, 20480, 64 << 10, 81920, 256 << 10, 1 << 20];
/// Objects there are at once.
const MOST_OBJECTS: usize = 60;
const MOST_GROUPS: usize = 24;
const MOST_WATCHES: usize = 8;
/// The limit of the group that is filled.
const MAX: u64 = 256 << 10;

struct Object {
    at: *mut u8,
    size: usize,
    fill: u8,
}

impl Object {
    fn layout(&self) -> Layout {
        Layout::from_size_align(self.size, 16).expect("a small layout")
    }

    fn fill(&self) {
        // SAFETY: the object has that many bytes, and is this value's.
        unsafe { self.at.write_bytes(self.fill, self.size) };
    }

    /// Both ends of its first `size` bytes are what they were filled with.
    fn verify(&self, size: usize) {
        for at in [0, size / 2, size - 1] {
            // SAFETY: the object has more bytes than that.
            let byte = unsafe { self.at.add(at) };
            // SAFETY: as above, and they were written.
            let byte = unsafe { byte.read() };
            assert_eq!(byte, self.fill, "byte {at} of {}", self.size);
        }
    }
}

impl Object {
    /// What it takes: one that could not shrink where it is stays as large as it was.
    fn taken(&self) -> u64 {
        if self.size <= 64 << 10 {
            return self.size as u64;
        }
        // SAFETY: the object is live, and no slab class is that large.
        unsafe { seam::real_size(self.at) as u64 }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.verify(self.size);
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { dealloc(self.at, self.layout()) };
    }
}

/// Gives a few bytes, so that there is something to reclaim.
struct Gives(AtomicU64);

impl Shrinker for Gives {
    fn count(&self, _: &ShrinkControl<'_>) -> Count {
        Count::Objects(1)
    }

    fn scan(&self, _: &mut ShrinkControl<'_>) -> Scan {
        self.0.fetch_add(1, Ordering::Relaxed);
        Scan::Stop
    }
}

/// How often a step came to nothing, and how often to something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) done: u64,
    pub(crate) refused: u64,
}

pub(crate) struct World {
    top: Group,
    limited: Group,
    groups: Vec<Group>,
    objects: Vec<Object>,
    watches: Vec<Watch>,
    cache: Cache<u64, [u8; 500]>,
    random: Random,
    names: u64,
    pub(crate) outcome: Outcome,
    /// Keeps spans of the small classes in use, with room in them.
    ballast: Vec<Raw>,
}

impl World {
    /// A world with everything made once.
    pub(crate) fn new(seed: u64) -> Self {
        let top = Group::root().create("faults").expect("nothing is refused yet");
        let limited = Group::root().builder("limited").max(MAX).build().expect("as above");
        limited.set_on_limit(OnLimit::Fail);
        limited.set_deadline(Duration::from_millis(5), Duration::from_millis(10));
        let mut world = Self {
            top,
            limited,
            groups: Vec::with_capacity(MOST_GROUPS),
            objects: Vec::with_capacity(MOST_OBJECTS),
            watches: Vec::with_capacity(MOST_WATCHES),
            cache: Cache::direct("faults"),
            random: Random::new(seed),
            names: 0,
            outcome: Outcome::default(),
            ballast: Vec::new(),
        };
        world.ballast = ballast();
        world.must_work();
        world
    }

    /// Does `steps` things by chance.
    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            let done = self.step();
            let count = if done { &mut self.outcome.done } else { &mut self.outcome.refused };
            *count += 1;
        }
    }

    /// One step; `false`: it was refused.
    fn step(&mut self) -> bool {
        match self.random.below(20) {
            0..5 => self.allocate(false),
            5 => self.allocate(true),
            6 | 7 => self.free(),
            8..11 => self.resize(),
            11 | 12 => self.create(),
            13 => self.drop_group(),
            14 => self.watch(),
            15 => {
                let group = self.group();
                let key = self.random.next() % 200;
                group.run(|| self.cache.insert(key, [7; 500])).is_ok()
            }
            16 => self.start_thread(),
            17 => {
                memcg::drain();
                true
            }
            18 if self.random.below(4) == 0 => {
                memcg::purge();
                true
            }
            18 => self.fill(),
            // It waits for the worker.
            _ if self.random.below(10) == 0 => self.reclaim(),
            _ => self.resize_nobodys(),
        }
    }

    fn group(&mut self) -> Group {
        match self.groups.len() {
            0 => self.top.clone(),
            n => self.groups[self.random.below(n)].clone(),
        }
    }

    /// A group, or nobody.
    fn payer(&mut self) -> Group {
        if self.random.below(5) == 0 { Group::root() } else { self.group() }
    }

    fn allocate(&mut self, zeroed: bool) -> bool {
        if self.objects.len() == MOST_OBJECTS {
            self.free();
        }
        let group = self.payer();
        let size = SIZES[self.random.below(SIZES.len())];
        let fill = self.random.next().to_le_bytes()[7];
        let layout = Layout::from_size_align(size, 16).expect("a small layout");
        let at = group.run(|| {
            if zeroed {
                // SAFETY: the size is not 0.
                unsafe { alloc_zeroed(layout) }
            } else {
                // SAFETY: as above.
                unsafe { alloc(layout) }
            }
        });
        if at.is_null() {
            return false;
        }
        if zeroed {
            let object = Object { at, size, fill: 0 };
            object.verify(size);
            std::mem::forget(object);
        }
        let object = Object { at, size, fill };
        object.fill();
        self.objects.push(object);
        true
    }

    fn free(&mut self) -> bool {
        if !self.objects.is_empty() {
            let at = self.random.below(self.objects.len());
            drop(self.objects.swap_remove(at));
        }
        true
    }

    fn resize(&mut self) -> bool {
        if self.objects.is_empty() {
            return true;
        }
        let group = self.payer();
        let at = self.random.below(self.objects.len());
        let size = SIZES[self.random.below(SIZES.len())];
        let object = &mut self.objects[at];
        let layout = object.layout();
        // SAFETY: the object has this layout, and the size is not 0.
        let moved = group.run(|| unsafe { realloc(object.at, layout, size) });
        if moved.is_null() {
            object.verify(object.size);
            return false;
        }
        let kept = object.size.min(size);
        (object.at, object.size) = (moved, size);
        object.verify(kept);
        object.fill();
        true
    }

    /// A large object of nobody's: jemalloc moves it by itself.
    fn resize_nobodys(&mut self) -> bool {
        let layout = Layout::from_size_align(256 << 10, 16).expect("a small layout");
        // SAFETY: the size is not 0.
        let at = memcg::unaccounted(|| unsafe { alloc(layout) });
        if at.is_null() {
            return false;
        }
        let mut object = Object { at, size: layout.size(), fill: 5 };
        object.fill();
        // SAFETY: the object has this layout, and the size is not 0.
        let moved = memcg::unaccounted(|| unsafe { realloc(at, layout, 2 << 20) });
        if !moved.is_null() {
            (object.at, object.size) = (moved, 2 << 20);
            object.verify(layout.size());
            object.fill();
        }
        !moved.is_null()
    }

    fn create(&mut self) -> bool {
        use std::fmt::Write;
        if self.groups.len() == MOST_GROUPS {
            self.drop_group();
        }
        let parent = self.group();
        self.names += 1;
        let mut name = String::with_capacity(32);
        write!(name, "{}", self.names).expect("a string takes it");
        match parent.create(&name) {
            Ok(group) => {
                self.groups.push(group);
                true
            }
            Err(error) => {
                assert!(error.is_system(), "{error}");
                false
            }
        }
    }

    fn drop_group(&mut self) -> bool {
        if !self.groups.is_empty() {
            let at = self.random.below(self.groups.len());
            drop(self.groups.swap_remove(at));
        }
        true
    }

    fn watch(&mut self) -> bool {
        if self.watches.len() == MOST_WATCHES {
            self.watches.clear();
        }
        let group = self.group();
        let threshold = match self.random.below(3) {
            0 => Threshold::Event(EventKind::Max),
            _ => Threshold::Usage(1 << 20),
        };
        match group.watch(threshold) {
            Ok(watch) => {
                let _ = watch.try_wait();
                self.watches.push(watch);
                true
            }
            Err(error) => {
                assert!(error.is_system() || error.is_gone(), "{error}");
                false
            }
        }
    }

    /// A thread that has never allocated: it wants a record.
    fn start_thread(&mut self) -> bool {
        extern "C" fn run(group: *mut c_void) -> *mut c_void {
            // SAFETY: the thread is joined before the group goes.
            let group = unsafe { &*group.cast::<Group>() };
            for size in [16, 112, 4096, 16, 112] {
                drop(Raw::in_group(group, size));
            }
            std::ptr::null_mut()
        }
        let group = self.group();
        let mut thread = 0;
        let argument = (&raw const group).cast_mut().cast();
        // SAFETY: `thread` is a valid place, and `run` takes what the argument is.
        let answer =
            unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), run, argument) };
        if answer != 0 {
            return false;
        }
        // SAFETY: the thread was created above and is joined once.
        assert_eq!(unsafe { libc::pthread_join(thread, std::ptr::null_mut()) }, 0);
        true
    }

    /// Fills a group to its limit, which holds.
    fn fill(&mut self) -> bool {
        let mut held: [Option<Raw>; 80] = [const { None }; 80];
        let mut nr = 0;
        while nr < held.len()
            && let Some(object) = Raw::in_group(&self.limited, 4096)
        {
            held[nr] = Some(object);
            nr += 1;
        }
        let usage = self.limited.usage();
        assert!(usage <= MAX, "{usage}");
        assert!(nr as u64 <= MAX / 4096, "{nr} objects");
        nr as u64 == MAX / 4096
    }

    fn reclaim(&mut self) -> bool {
        let group = self.group();
        let gives = Arc::new(Gives(AtomicU64::new(0)));
        let registration = ShrinkerBuilder::new("gives").register(gives);
        let task = group.reclaim_async(1000);
        let _ = self.limited.reclaim(1000);
        task.cancel();
        drop(registration);
        true
    }

    // ---- whatever was refused ---------------------------------------------------------------------------

    /// No fault is on: all invariants hold, and each group is charged for what lives in it.
    pub(crate) fn check(&mut self) {
        self.cache.clear();
        memcg::drain();
        memcg::check();
        self.objects.iter().for_each(|object| object.verify(object.size));
        let bytes_of = |group: &Group| -> u64 {
            let own = |object: &&Object| Group::of(object.at).is_some_and(|payer| payer == *group);
            self.objects.iter().filter(own).map(Object::taken).sum()
        };
        let everybody = std::iter::once(&self.top).chain(&self.groups);
        let own: Vec<(&Group, u64)> = everybody.map(|group| (group, bytes_of(group))).collect();
        for (group, _) in &own {
            let path = group.path();
            let below =
                |other: &Group| other == *group || other.path().starts_with(&format!("{path}/"));
            // A group whose handle went lives on below while it has children.
            let hidden: u64 = self
                .objects
                .iter()
                .filter_map(|object| Some((Group::of(object.at)?, object.taken())))
                .filter(|(payer, _)| below(payer) && !own.iter().any(|(known, _)| *known == payer))
                .map(|(_, bytes)| bytes)
                .sum();
            let known: u64 =
                own.iter().filter(|(other, _)| below(other)).map(|(_, bytes)| bytes).sum();
            assert_eq!(group.stat().usage, known + hidden, "{path}");
        }
        assert_eq!(self.limited.stat().usage, 0);
    }

    /// Nothing is refused any more: everything works.
    pub(crate) fn must_work(&mut self) {
        while self.objects.len() > MOST_OBJECTS / 2 {
            self.free();
        }
        for (what, done) in [
            ("objects", (0..20).all(|_| self.allocate(false))),
            ("zeroed objects", (0..10).all(|_| self.allocate(true))),
            ("resizing", (0..20).all(|_| self.resize())),
            ("groups", (0..4).all(|_| self.create())),
            ("watches", (0..2).all(|_| self.watch())),
            ("threads", (0..2).all(|_| self.start_thread())),
            ("a full group", self.fill()),
        ] {
            assert!(done, "{what} are there again");
        }
        let inserted = self.top.run(|| self.cache.insert(1, [1; 500]));
        assert!(inserted.is_ok());
    }

    /// Everything goes, and nothing is left.
    pub(crate) fn finish(mut self) {
        self.check();
        self.watches.clear();
        self.objects.clear();
        self.groups.clear();
        drop((self.cache, self.ballast));
        memcg::drain();
        let stat = self.top.stat();
        assert_eq!((stat.usage, stat.nr_descendants, stat.nr_contexts), (0, 0, 0), "{stat:?}");
        memcg::check();
    }
}

/// Of each small class some objects, a few of them kept, so that spans with room stay.
fn ballast() -> Vec<Raw> {
    let mut kept = Vec::with_capacity(1000);
    for size in (16..=2048).step_by(16) {
        let objects: Vec<Raw> = (0..150).filter_map(|_| Raw::new(size)).collect();
        kept.extend(objects.into_iter().step_by(30));
    }
    kept
}
