//! A simulated layer above: objects that are charged, caches that hold garbage, real threads.

extern crate std;

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::boxed::Box;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Instant;
use std::vec::Vec;

use memcg_accounting::{
    Charged, GroupRef, Limit, OverLimit, Payer, Request, Root, SYSTEM, Settings, Tag, Tree,
};

use crate::{
    Caller, Control, Deadline, Engine, Errand, Host, Panic, Place, RawCount, RawScan, RawShrinker,
    Report, ShrinkerId, ShrinkerName,
};

std::thread_local! {
    static REQUEST: Cell<Option<&'static Request>> = const { Cell::new(None) };
    static EAGER: Cell<Option<Option<&'static Request>>> = const { Cell::new(None) };
    pub(crate) static NO_RECLAIM: Cell<bool> = const { Cell::new(false) };
    pub(crate) static FALLIBLE: Cell<bool> = const { Cell::new(false) };
    pub(crate) static PANIC: Cell<Option<Panic>> = const { Cell::new(None) };
}

/// What a test does at such a moment.
pub(crate) type Hook = Box<dyn FnMut(Moment) + Send>;

/// When a test looks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    BeforeCut,
    AfterCut,
}

/// A process: its tree, its engine, and what its threads cache.
pub(crate) struct Sim {
    pub(crate) tree: &'static Tree,
    pub(crate) engine: Engine,
    /// Freed objects that are still charged, because a thread keeps them for reuse.
    garbage: Mutex<Vec<(Tag, u64)>>,
    /// Whether frees go to `garbage`.
    pub(crate) caches: AtomicBool,
    /// Whether only the cut finds it.
    pub(crate) hides_garbage: AtomicBool,
    drain_mutex: Mutex<()>,
    pub(crate) nr_drains: AtomicU32,
    pub(crate) nr_cuts: AtomicU32,
    /// Runs before and after each cut, while it keeps all others out.
    pub(crate) around_cut: Mutex<Option<Hook>>,
    /// What the engine told of charges over `high`.
    pub(crate) over_high: Mutex<Vec<(GroupRef, u64)>>,
    pub(crate) can_start: AtomicBool,
    started: AtomicBool,
    pub(crate) nr_ticks: AtomicU32,
    pub(crate) reports: Mutex<Vec<Report>>,
    /// What threads that do not wait for memory pay with.
    pub(crate) busy: Mutex<Vec<Tag>>,
    pub(crate) nr_delivered: AtomicU32,
    /// What the tenant owes for its cuts, in microseconds.
    pub(crate) debt: AtomicU64,
    /// How often it was asked for.
    pub(crate) nr_debts: AtomicU32,
    /// Errands that have not ended, and those that have.
    pub(crate) errands: Mutex<(VecDeque<Errand>, Vec<Errand>)>,
}

/// The lock of a test, whoever panicked with it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Host for Sim {
    fn caller(&self) -> Caller {
        let request = REQUEST.get().unwrap_or_else(|| Box::leak(Box::new(Request::new())));
        REQUEST.set(Some(request));
        Caller {
            request: Some(request),
            reclaiming: EAGER.get().is_some(),
            no_reclaim: NO_RECLAIM.get(),
            fallible: FALLIBLE.get(),
            panic: PANIC.get(),
        }
    }

    fn drain(&self, target: GroupRef) -> u64 {
        self.nr_drains.fetch_add(1, Ordering::Relaxed);
        if self.hides_garbage.load(Ordering::Relaxed) { 0 } else { self.sweep(target) }
    }

    fn debt_us(&self, _: Tag) -> u64 {
        self.nr_debts.fetch_add(1, Ordering::Relaxed);
        self.debt.load(Ordering::Relaxed)
    }

    fn cut(&self, target: GroupRef, _: Tag, attempt: &mut dyn FnMut() -> bool) -> bool {
        let _drain = locked(&self.drain_mutex);
        self.nr_cuts.fetch_add(1, Ordering::Relaxed);
        if attempt() {
            return true;
        }
        self.at(Moment::BeforeCut);
        // The lock of the garbage is what stops every thread here.
        let mut garbage = locked(&self.garbage);
        self.sweep_locked(&mut garbage, target);
        let done = attempt();
        drop(garbage);
        self.at(Moment::AfterCut);
        done
    }

    fn begin_eager(&self, request: Option<&'static Request>) {
        assert!(EAGER.get().is_none(), "a reclaiming thread does not reclaim");
        EAGER.set(Some(request));
    }

    fn end_eager(&self) {
        assert!(EAGER.take().is_some());
    }

    fn start_worker(&self) -> bool {
        if !self.can_start.load(Ordering::Relaxed) {
            return false;
        }
        if !self.started.swap(true, Ordering::Relaxed) {
            let sim: &'static Sim = self.this();
            thread::spawn(move || {
                sim.engine
                    .keep(&mut || sim.nr_ticks.fetch_add(1, Ordering::Relaxed) < 2, &mut || {
                        thread::Builder::new().spawn(|| sim.engine.work()).is_ok()
                    })
            });
        }
        true
    }

    fn each_busy(&self, look: &mut dyn FnMut(Tag)) {
        locked(&self.busy).iter().for_each(|&tag| look(tag));
    }

    fn deliver(&self) {
        self.nr_delivered.fetch_add(1, Ordering::Relaxed);
    }

    fn serve_task(&self, turn: &mut dyn FnMut(&mut Errand)) -> bool {
        let Some(mut errand) = locked(&self.errands).0.pop_front() else { return false };
        turn(&mut errand);
        let mut errands = locked(&self.errands);
        if errand.end().is_some() {
            self.engine.end_task();
            errands.1.push(errand);
        } else {
            errands.0.push_back(errand);
        }
        true
    }

    fn charged_over_high(&self, group: GroupRef, bytes: u64) {
        locked(&self.over_high).push((group, bytes));
    }

    fn report(&self, report: Report) {
        locked(&self.reports).push(report);
    }
}

impl Sim {
    pub(crate) fn new(root: Root) -> &'static Sim {
        let tree: &'static Tree = Box::leak(Box::new(Tree::new()));
        assert!(tree.make(root, &SYSTEM));
        let sim: &'static Sim = Box::leak(Box::new(Sim {
            tree,
            engine: Engine::new(tree),
            garbage: Mutex::new(Vec::new()),
            caches: AtomicBool::new(false),
            hides_garbage: AtomicBool::new(false),
            drain_mutex: Mutex::new(()),
            nr_drains: AtomicU32::new(0),
            nr_cuts: AtomicU32::new(0),
            around_cut: Mutex::new(None),
            over_high: Mutex::new(Vec::new()),
            can_start: AtomicBool::new(true),
            started: AtomicBool::new(false),
            nr_ticks: AtomicU32::new(0),
            reports: Mutex::new(Vec::new()),
            busy: Mutex::new(Vec::new()),
            nr_delivered: AtomicU32::new(0),
            debt: AtomicU64::new(0),
            nr_debts: AtomicU32::new(0),
            errands: Mutex::new((VecDeque::new(), Vec::new())),
        }));
        assert!(sim.engine.set_host(sim));
        assert!(!sim.engine.set_host(sim), "a host is set once");
        sim
    }

    fn at(&self, moment: Moment) {
        if let Some(hook) = &mut *locked(&self.around_cut) {
            hook(moment);
        }
    }

    fn this(&self) -> &'static Sim {
        // SAFETY: every `Sim` is leaked by `new`.
        unsafe { &*core::ptr::from_ref(self) }
    }

    // ---- groups -------------------------------------------------------------------------

    pub(crate) fn group(&self, parent: GroupRef, name: &str, max: u64) -> GroupRef {
        let settings = Settings { max: Limit::Bytes(max), ..Settings::default() };
        let group = self.engine.create(parent, name, settings).expect("made");
        // Where a test is not about time, other tests that take the CPU must not decide it.
        let long = Deadline { first_ms: 2000, total_ms: 4000 };
        assert!(self.engine.set_deadline(group, long));
        group
    }

    /// A test that waits for the deadline does not wait long.
    pub(crate) fn hurry_in(&self, group: GroupRef) {
        assert!(self.engine.set_deadline(group, Deadline::default()));
    }

    pub(crate) fn be_patient_in(&self, group: GroupRef) {
        let long = Deadline { first_ms: 5000, total_ms: 10_000 };
        assert!(self.engine.set_deadline(group, long));
    }

    pub(crate) fn send_out(&self, group: GroupRef, bytes: u64) {
        locked(&self.errands).0.push_back(Errand::new(group, bytes));
        self.engine.add_task();
    }

    // ---- memory -------------------------------------------------------------------------

    /// Allocates `bytes`; the answer says who pays.
    pub(crate) fn alloc(&self, group: GroupRef, bytes: u64) -> Result<Object, OverLimit> {
        self.alloc_for(self.tree.payer(group), bytes)
    }

    pub(crate) fn alloc_for(&self, payer: Payer, bytes: u64) -> Result<Object, OverLimit> {
        let Charged { tag, bytes: charged, .. } = self.engine.charge(payer, bytes, 0)?;
        assert_eq!(charged, bytes, "nothing is taken ahead");
        Ok(Object { tag, bytes })
    }

    pub(crate) fn free(&self, object: Object) {
        let Object { tag, bytes } = object;
        match EAGER.get() {
            Some(Some(request)) => self.tree.uncharge_for(tag, bytes, request),
            Some(None) => self.tree.uncharge(tag, bytes),
            None if self.caches.load(Ordering::Relaxed) => locked(&self.garbage).push((tag, bytes)),
            None => self.tree.uncharge(tag, bytes),
        }
    }

    fn sweep(&self, target: GroupRef) -> u64 {
        self.sweep_locked(&mut locked(&self.garbage), target)
    }

    fn sweep_locked(&self, garbage: &mut Vec<(Tag, u64)>, target: GroupRef) -> u64 {
        let mut swept = 0;
        garbage.retain(|(tag, bytes)| {
            let ours = self.tree.contains(target, *tag);
            if ours {
                self.tree.uncharge(*tag, *bytes);
                swept += bytes;
            }
            !ours
        });
        swept
    }

    // ---- shrinkers ----------------------------------------------------------------------

    pub(crate) fn register(&self, recipe: Recipe) -> (ShrinkerId, Arc<AtomicU32>) {
        let dropped = recipe.dropped.clone();
        let raw = RawShrinker {
            count: count_raw,
            scan: scan_raw,
            drop: drop_raw,
            name: ShrinkerName::new(recipe.name),
            place: recipe.place,
            group_aware: recipe.group_aware,
            starts_marked: recipe.starts_marked,
            seeks: 2,
            batch: recipe.batch,
            data: Box::into_raw(Box::new(recipe)).cast_const().cast(),
        };
        // SAFETY: the functions take a boxed recipe, whose closures are `Send + Sync`; none of
        // them unwinds; direct ones wait for nothing that matters here.
        let id = unsafe { self.engine.register(raw) };
        (id.expect("memory"), dropped)
    }
}

/// An allocation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) tag: Tag,
    pub(crate) bytes: u64,
}

pub(crate) type CountFn = dyn Fn(&Control) -> RawCount + Send + Sync;
pub(crate) type ScanFn = dyn Fn(&mut Control) -> RawScan + Send + Sync;

/// A shrinker to register.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    pub(crate) group_aware: bool,
    pub(crate) starts_marked: bool,
    pub(crate) batch: u32,
    pub(crate) count: Box<CountFn>,
    pub(crate) scan: Box<ScanFn>,
    pub(crate) dropped: Arc<AtomicU32>,
}

impl Recipe {
    pub(crate) fn new(
        name: &'static str,
        place: Place,
        count: impl Fn(&Control) -> RawCount + Send + Sync + 'static,
        scan: impl Fn(&mut Control) -> RawScan + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            place,
            group_aware: true,
            starts_marked: true,
            batch: 0,
            count: Box::new(count),
            scan: Box::new(scan),
            dropped: Arc::new(AtomicU32::new(0)),
        }
    }
}

/// # Safety
///
/// `data` is a boxed recipe.
unsafe fn recipe<'a>(data: *const ()) -> &'a Recipe {
    // SAFETY: by contract.
    let recipe = unsafe { &*data.cast::<Recipe>() };
    assert_eq!(recipe.dropped.load(Ordering::SeqCst), 0, "nothing is called after its drop");
    recipe
}

/// # Safety
///
/// See [`recipe`].
unsafe fn count_raw(data: *const (), control: &Control) -> RawCount {
    // SAFETY: by contract.
    (unsafe { recipe(data) }.count)(control)
}

/// # Safety
///
/// See [`recipe`].
unsafe fn scan_raw(data: *const (), control: &mut Control) -> RawScan {
    // SAFETY: by contract.
    (unsafe { recipe(data) }.scan)(control)
}

/// # Safety
///
/// See [`recipe`]; it is not used any more.
unsafe fn drop_raw(data: *const ()) {
    // SAFETY: by contract.
    let recipe = unsafe { recipe(data) };
    // The box is leaked, so that a call after this is caught and not undefined.
    recipe.dropped.fetch_add(1, Ordering::SeqCst);
}

/// A cache of objects that any group pays for.
pub(crate) struct Toy {
    sim: &'static Sim,
    objects: Mutex<Vec<Object>>,
    /// Its shrinker, which it marks in the group of each object that it gets.
    id: OnceLock<ShrinkerId>,
    /// The most recent scan's control.
    pub(crate) last: Mutex<Option<(Control, thread::ThreadId)>>,
    pub(crate) nr_counts: AtomicUsize,
    pub(crate) nr_scanned: AtomicUsize,
}

impl Toy {
    pub(crate) fn new(sim: &'static Sim) -> Arc<Toy> {
        Arc::new(Toy {
            sim,
            objects: Mutex::new(Vec::new()),
            id: OnceLock::new(),
            last: Mutex::new(None),
            nr_counts: AtomicUsize::new(0),
            nr_scanned: AtomicUsize::new(0),
        })
    }

    /// A cache that is registered, and its shrinker.
    pub(crate) fn registered(sim: &'static Sim, place: Place) -> (Arc<Toy>, ShrinkerId) {
        let toy = Toy::new(sim);
        let (id, _) = sim.register(toy.recipe("toy", place));
        toy.id.set(id).expect("set once");
        (toy, id)
    }

    /// The shrinker that it marks from now on.
    pub(crate) fn serve(&self, id: ShrinkerId) {
        self.id.set(id).expect("set once");
    }

    pub(crate) fn recipe(self: &Arc<Self>, name: &'static str, place: Place) -> Recipe {
        let (counting, scanning) = (self.clone(), self.clone());
        Recipe::new(
            name,
            place,
            move |control| counting.count(control),
            move |control| scanning.scan(control),
        )
    }

    pub(crate) fn fill(&self, group: GroupRef, objects: usize, bytes: u64) {
        for _ in 0..objects {
            let object = self.sim.alloc(group, bytes).expect("room");
            self.insert(object);
        }
    }

    pub(crate) fn insert(&self, object: Object) {
        let tag = object.tag;
        locked(&self.objects).push(object);
        if let Some(id) = self.id.get() {
            self.sim.engine.mark(self.sim.tree.owner(tag).unwrap_or(GroupRef::ROOT), *id);
        }
    }

    pub(crate) fn len(&self) -> usize {
        locked(&self.objects).len()
    }

    pub(crate) fn take(&self) -> Option<Object> {
        locked(&self.objects).pop()
    }

    fn is_in(&self, group: GroupRef, object: &Object) -> bool {
        self.sim.tree.owner(object.tag).unwrap_or(GroupRef::ROOT) == group
    }

    pub(crate) fn count(&self, control: &Control) -> RawCount {
        self.nr_counts.fetch_add(1, Ordering::Relaxed);
        let Ok(objects) = self.objects.try_lock() else { return RawCount::Unknown };
        match objects.iter().filter(|object| self.is_in(control.group, object)).count() {
            0 => RawCount::Empty,
            n => RawCount::Objects(n),
        }
    }

    pub(crate) fn scan(&self, control: &mut Control) -> RawScan {
        *locked(&self.last) = Some((*control, thread::current().id()));
        let Ok(mut objects) = self.objects.try_lock() else { return RawScan::Stop };
        let mut evicted = Vec::new();
        while evicted.len() < control.nr_to_scan
            && let Some(at) = objects.iter().position(|o| self.is_in(control.group, o))
        {
            evicted.push(objects.swap_remove(at));
        }
        drop(objects);
        self.nr_scanned.fetch_add(control.nr_to_scan, Ordering::Relaxed);
        let freed = evicted.len();
        evicted.into_iter().for_each(|object| self.sim.free(object));
        RawScan::Freed(freed)
    }
}

/// Waits for `done`, for as long as a loaded machine may take.
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not happen that {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A switch that shrinkers of a test wait for.
#[derive(Default)]
pub(crate) struct Latch {
    open: Mutex<bool>,
    changed: std::sync::Condvar,
}

impl Latch {
    pub(crate) fn new() -> Arc<Latch> {
        Arc::new(Latch::default())
    }

    pub(crate) fn open(&self) {
        *locked(&self.open) = true;
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) {
        let open = locked(&self.open);
        let opened = self.changed.wait_while(open, |open| !*open);
        drop(opened.unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}
