//! The seam: every place where the allocator asks the system or jemalloc for something that it may be refused.
//!
//! ```text
//!   memcg, jemalloc ── mmap ──► __wrap_mmap ── not refused ──► the real mmap
//!                                     └─ refused ──► ENOMEM
//! ```
//!
//! The linker leads each call here (`build.rs`); the code under test is the one that everybody links. What is refused is a
//! plan for each [`Point`]: calls by number, or by chance. Only threads that are [`exposed`](expose) meet a plan, unless it is for
//! all of them.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Pages for metadata: groups, contexts, thread records, tables, maps, tag vectors.
    Metadata,
    /// Pages for jemalloc.
    Pages,
    /// Memory of jemalloc: a large object, or a span.
    Object,
    /// A large object that moves as it grows.
    Moving,
    /// A large object that grows or shrinks where it is.
    InPlace,
    /// A setting or command of jemalloc.
    Control,
    /// Pages that go back.
    Advice,
    /// `membarrier`.
    Barrier,
    /// A sleep on a futex: it ends at once, for no reason.
    Sleep,
    /// A thread.
    Thread,
    /// What a thread is to be like.
    Attributes,
    /// An eventfd.
    Eventfd,
    /// The word that has the exit hook of a thread run.
    ExitHook,
    /// The key of that word, which the process has one of.
    ExitKey,
    /// The handlers of `fork`, which the process has once.
    ForkHandlers,
}

impl Point {
    pub(crate) const ALL: [Point; 15] = [
        Point::Metadata,
        Point::Pages,
        Point::Object,
        Point::Moving,
        Point::InPlace,
        Point::Control,
        Point::Advice,
        Point::Barrier,
        Point::Sleep,
        Point::Thread,
        Point::Attributes,
        Point::Eventfd,
        Point::ExitHook,
        Point::ExitKey,
        Point::ForkHandlers,
    ];

    fn plan(self) -> &'static Plan {
        &PLANS[self as usize]
    }
}

/// What is refused at one point.
struct Plan {
    /// From which call on, counted from 1; 0: none.
    first: AtomicU64,
    last: AtomicU64,
    /// Of a thousand calls, how many.
    rate: AtomicU32,
    calls: AtomicU64,
    refused: AtomicU64,
}

static PLANS: [Plan; Point::ALL.len()] = [const {
    Plan {
        first: AtomicU64::new(0),
        last: AtomicU64::new(0),
        rate: AtomicU32::new(0),
        calls: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    }
}; Point::ALL.len()];

/// Whether every thread meets the plans.
static FOR_ALL: AtomicBool = AtomicBool::new(false);
/// Whether `membarrier` is not done, and says that it was.
static PRETEND: AtomicBool = AtomicBool::new(false);
static CHANCE: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static EXPOSED: Cell<bool> = const { Cell::new(false) };
    /// How deep the thread is in jemalloc.
    static IN_JEMALLOC: Cell<u32> = const { Cell::new(0) };
}

// ---- plans ------------------------------------------------------------------------------------------

/// From now on the calling thread meets the plans, or no longer.
pub(crate) fn expose(yes: bool) {
    EXPOSED.set(yes);
}

/// Every thread meets the plans, or only those that are exposed.
pub(crate) fn expose_all(yes: bool) {
    FOR_ALL.store(yes, Ordering::SeqCst);
}

/// Calls `first ..= last`, counted from now on, are refused at `point`.
pub(crate) fn refuse(point: Point, first: u64, last: u64) {
    let plan = point.plan();
    plan.calls.store(0, Ordering::SeqCst);
    plan.last.store(last, Ordering::SeqCst);
    plan.first.store(first, Ordering::SeqCst);
}

/// Of a thousand calls so many are refused at `point`, by chance.
pub(crate) fn refuse_some(point: Point, rate: u32) {
    point.plan().rate.store(rate, Ordering::SeqCst);
}

/// The faults end.
pub(crate) fn relent() {
    for plan in &PLANS {
        plan.first.store(0, Ordering::SeqCst);
        plan.rate.store(0, Ordering::SeqCst);
    }
    expose_all(false);
}

/// From now on `membarrier` says that it was done, and is not.
#[cfg(not(debug_assertions))]
pub(crate) fn pretend_barriers() {
    PRETEND.store(true, Ordering::SeqCst);
}

/// How often `point` was refused.
pub(crate) fn nr_refused(point: Point) -> u64 {
    point.plan().refused.load(Ordering::SeqCst)
}

/// Whether this call is refused. Allocates nothing.
fn is_refused(point: Point) -> bool {
    if !EXPOSED.get() && !FOR_ALL.load(Ordering::Relaxed) {
        return false;
    }
    let plan = point.plan();
    let call = plan.calls.fetch_add(1, Ordering::Relaxed) + 1;
    let first = plan.first.load(Ordering::Relaxed);
    let by_number = first != 0 && first <= call && call <= plan.last.load(Ordering::Relaxed);
    let rate = plan.rate.load(Ordering::Relaxed);
    let refused = by_number || (rate != 0 && chance() % 1000 < u64::from(rate));
    plan.refused.fetch_add(u64::from(refused), Ordering::Relaxed);
    refused
}

fn chance() -> u64 {
    let mut x = CHANCE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x >> 33
}

fn fail(error: c_int) {
    // SAFETY: it takes nothing, and answers the thread's own word.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the word is the thread's, and lives as long as it.
    unsafe { errno.write(error) };
}

/// Runs `f` as a part of jemalloc.
fn in_jemalloc<R>(f: impl FnOnce() -> R) -> R {
    IN_JEMALLOC.set(IN_JEMALLOC.get() + 1);
    let answer = f();
    IN_JEMALLOC.set(IN_JEMALLOC.get() - 1);
    answer
}

// ---- from the first call on -------------------------------------------------------------------------

/// What the environment of a process says is refused from its beginning on: `POINT FIRST LAST`, as numbers.
pub(crate) const AT_START: &str = "MEMCG_REFUSED_AT_START";

/// Runs before `main`, and before the allocator makes its keys.
#[used]
#[unsafe(link_section = ".init_array.00097")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    // SAFETY: the name ends with a NUL, and the answer is null or a string of the environment.
    let value = unsafe { libc::getenv(c"MEMCG_REFUSED_AT_START".as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: checked above; nobody changes the environment before `main`.
    let value = unsafe { std::ffi::CStr::from_ptr(value) };
    let mut numbers =
        value.to_str().unwrap_or("").split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (point, first, last) = (next(), next(), next());
    // jemalloc boots before anything is refused: its own first steps are its own affair.
    // SAFETY: it takes two numbers.
    unsafe { __real__rjem_nallocx(16, 0) };
    if let Some(&point) = usize::try_from(point).ok().and_then(|at| Point::ALL.get(at)) {
        refuse(point, first, last);
        expose_all(true);
    }
}

// ---- the calls --------------------------------------------------------------------------------------

unsafe extern "C" {
    fn __real_mmap(
        at: *mut c_void,
        size: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn __real_sbrk(more: isize) -> *mut c_void;
    fn __real_madvise(at: *mut c_void, size: usize, advice: c_int) -> c_int;
    fn __real_syscall(number: c_long, ...) -> c_long;
    fn __real_eventfd(count: c_uint, flags: c_int) -> c_int;
    fn __real_pthread_create(
        thread: *mut libc::pthread_t,
        attributes: *const libc::pthread_attr_t,
        run: extern "C" fn(*mut c_void) -> *mut c_void,
        argument: *mut c_void,
    ) -> c_int;
    fn __real_pthread_attr_init(attributes: *mut libc::pthread_attr_t) -> c_int;
    fn __real_pthread_key_create(
        key: *mut libc::pthread_key_t,
        end: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> c_int;
    fn __real_pthread_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
    ) -> c_int;
    fn __real_pthread_setspecific(key: libc::pthread_key_t, value: *const c_void) -> c_int;
    fn __real__rjem_mallocx(size: usize, flags: c_int) -> *mut c_void;
    fn __real__rjem_rallocx(object: *mut c_void, size: usize, flags: c_int) -> *mut c_void;
    fn __real__rjem_xallocx(object: *mut c_void, size: usize, extra: usize, flags: c_int) -> usize;
    fn __real__rjem_dallocx(object: *mut c_void, flags: c_int);
    fn __real__rjem_nallocx(size: usize, flags: c_int) -> usize;
    fn __real__rjem_mallctl(
        name: *const c_char,
        old: *mut c_void,
        old_size: *mut usize,
        new: *mut c_void,
        new_size: usize,
    ) -> c_int;
    fn _rjem_sallocx(object: *const c_void, flags: c_int) -> usize;
}

/// # Safety
///
/// As for `mmap`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_mmap(
    at: *mut c_void,
    size: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let point = if IN_JEMALLOC.get() == 0 { Point::Metadata } else { Point::Pages };
    if is_refused(point) {
        fail(libc::ENOMEM);
        return libc::MAP_FAILED;
    }
    // SAFETY: by contract.
    unsafe { __real_mmap(at, size, prot, flags, fd, offset) }
}

/// Where jemalloc turns to if it gets no mapping.
///
/// # Safety
///
/// As for `sbrk`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_sbrk(more: isize) -> *mut c_void {
    if more > 0 && is_refused(Point::Pages) {
        fail(libc::ENOMEM);
        return libc::MAP_FAILED;
    }
    // SAFETY: by contract.
    unsafe { __real_sbrk(more) }
}

/// # Safety
///
/// As for `madvise`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_madvise(at: *mut c_void, size: usize, advice: c_int) -> c_int {
    if is_refused(Point::Advice) {
        fail(libc::EAGAIN);
        return -1;
    }
    // SAFETY: by contract.
    unsafe { __real_madvise(at, size, advice) }
}

/// Six words, whatever the call takes: they are passed in registers, and what is not meant is not read.
///
/// # Safety
///
/// As for `syscall`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if number == libc::SYS_membarrier && PRETEND.load(Ordering::Relaxed) {
        return 0;
    }
    // The operation of a futex, without its flags: 0 waits, 9 waits for some bits.
    let sleeps = number == libc::SYS_futex && matches!(b & 0x7F, 0 | 9);
    let refused = match number {
        libc::SYS_membarrier => is_refused(Point::Barrier).then_some(libc::EPERM),
        _ if sleeps => is_refused(Point::Sleep).then_some(libc::EINTR),
        _ => None,
    };
    if let Some(error) = refused {
        fail(error);
        return -1;
    }
    // SAFETY: by contract.
    unsafe { __real_syscall(number, a, b, c, d, e, f) }
}

#[unsafe(no_mangle)]
extern "C" fn __wrap_eventfd(count: c_uint, flags: c_int) -> c_int {
    if is_refused(Point::Eventfd) {
        fail(libc::EMFILE);
        return -1;
    }
    // SAFETY: it takes two numbers.
    unsafe { __real_eventfd(count, flags) }
}

/// # Safety
///
/// As for `pthread_create`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    run: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> c_int {
    if is_refused(Point::Thread) {
        return libc::EAGAIN;
    }
    // SAFETY: by contract.
    unsafe { __real_pthread_create(thread, attributes, run, argument) }
}

/// # Safety
///
/// As for `pthread_attr_init`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_attr_init(attributes: *mut libc::pthread_attr_t) -> c_int {
    if is_refused(Point::Attributes) {
        return libc::ENOMEM;
    }
    // SAFETY: by contract.
    unsafe { __real_pthread_attr_init(attributes) }
}

/// # Safety
///
/// As for `pthread_key_create`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_key_create(
    key: *mut libc::pthread_key_t,
    end: Option<unsafe extern "C" fn(*mut c_void)>,
) -> c_int {
    if IN_JEMALLOC.get() == 0 && is_refused(Point::ExitKey) {
        return libc::EAGAIN;
    }
    // SAFETY: by contract.
    unsafe { __real_pthread_key_create(key, end) }
}

/// # Safety
///
/// As for `pthread_atfork`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_atfork(
    prepare: Option<unsafe extern "C" fn()>,
    parent: Option<unsafe extern "C" fn()>,
    child: Option<unsafe extern "C" fn()>,
) -> c_int {
    // jemalloc ends the process if it gets none of its own.
    if IN_JEMALLOC.get() == 0 && is_refused(Point::ForkHandlers) {
        return libc::ENOMEM;
    }
    // SAFETY: by contract.
    unsafe { __real_pthread_atfork(prepare, parent, child) }
}

/// # Safety
///
/// As for `pthread_setspecific`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_setspecific(
    key: libc::pthread_key_t,
    value: *const c_void,
) -> c_int {
    // jemalloc's own is jemalloc's affair.
    if IN_JEMALLOC.get() == 0 && is_refused(Point::ExitHook) {
        return libc::ENOMEM;
    }
    // SAFETY: by contract.
    unsafe { __real_pthread_setspecific(key, value) }
}

#[unsafe(no_mangle)]
extern "C" fn __wrap__rjem_mallocx(size: usize, flags: c_int) -> *mut c_void {
    if is_refused(Point::Object) {
        return std::ptr::null_mut();
    }
    // SAFETY: it takes two numbers.
    in_jemalloc(|| unsafe { __real__rjem_mallocx(size, flags) })
}

/// # Safety
///
/// As for `rallocx`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap__rjem_rallocx(
    object: *mut c_void,
    size: usize,
    flags: c_int,
) -> *mut c_void {
    if is_refused(Point::Moving) {
        return std::ptr::null_mut();
    }
    // SAFETY: by contract.
    in_jemalloc(|| unsafe { __real__rjem_rallocx(object, size, flags) })
}

/// # Safety
///
/// As for `xallocx`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap__rjem_xallocx(
    object: *mut c_void,
    size: usize,
    extra: usize,
    flags: c_int,
) -> usize {
    if is_refused(Point::InPlace) {
        // It stays as it is.
        // SAFETY: by contract the object is jemalloc's.
        return unsafe { _rjem_sallocx(object, 0) };
    }
    // SAFETY: by contract.
    in_jemalloc(|| unsafe { __real__rjem_xallocx(object, size, extra, flags) })
}

/// Never refused: it is here so that what it calls is known as jemalloc's.
///
/// # Safety
///
/// As for `dallocx`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap__rjem_dallocx(object: *mut c_void, flags: c_int) {
    // SAFETY: by contract.
    in_jemalloc(|| unsafe { __real__rjem_dallocx(object, flags) });
}

/// As [`__wrap__rjem_dallocx`].
#[unsafe(no_mangle)]
extern "C" fn __wrap__rjem_nallocx(size: usize, flags: c_int) -> usize {
    // SAFETY: it takes two numbers.
    in_jemalloc(|| unsafe { __real__rjem_nallocx(size, flags) })
}

/// # Safety
///
/// As for `mallctl`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap__rjem_mallctl(
    name: *const c_char,
    old: *mut c_void,
    old_size: *mut usize,
    new: *mut c_void,
    new_size: usize,
) -> c_int {
    if is_refused(Point::Control) {
        return libc::EAGAIN;
    }
    // SAFETY: by contract.
    in_jemalloc(|| unsafe { __real__rjem_mallctl(name, old, old_size, new, new_size) })
}

/// What a large object really takes.
///
/// # Safety
///
/// `object` is a live large object.
pub(crate) unsafe fn real_size(object: *const u8) -> usize {
    // SAFETY: by contract.
    unsafe { _rjem_sallocx(object.cast(), 0) }
}
