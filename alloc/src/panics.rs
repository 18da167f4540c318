//! Panics: the hook runs for nobody, and what unwinding needs is its group's.

use std::cell::Cell;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};

use memcg_shrink::Panic;

use crate::scope::{self, Current};

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// Whether the hook that [`protect_panics`] installed is there: not once the program has set another in its place.
static IS_PROTECTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IN_HOOK: Cell<u32> = const { Cell::new(0) };
}

/// What the calling thread is at, if it panics.
pub(crate) fn current() -> Option<Panic> {
    if !std::thread::panicking() {
        return None;
    }
    // Relaxed: who panics while the hook is exchanged has either.
    let unwinds = IN_HOOK.get() == 0 && IS_PROTECTED.load(Ordering::Relaxed);
    Some(if unwinds { Panic::Unwinds } else { Panic::MayReport })
}

/// Has the panic hook, with the backtrace that it makes, run for nobody, in whatever group the thread is that panics.
///
/// To be called once at the start, after the program has set a hook of its own: it wraps the one that is there. A
/// second call does nothing, but after [`set_hook`](std::panic::set_hook), which takes the wrapper out, it wraps the
/// new one. A hook that was made of the wrapper (by [`take_hook`](std::panic::take_hook)) has only
/// that part of it run for nobody.
///
/// It is for what std keeps for good of what a hook does first: with `RUST_BACKTRACE=1` 32 to 42 MB of symbols, which
/// were charged to the tenant that panicked first, and locked it out. Without it a
/// thread that panics may bring its group 64 MiB over its limits, so that a backtrace gets through; with it 16 MiB, for
/// what drops need as the stack unwinds. Either is charged, and counted in
/// [`Events::forced`](crate::Events::forced) and [`SelfStat::overshot`](crate::SelfStat::overshot); beyond it the
/// policy of the group decides: where that refuses, an allocation that can't fail ends the process, as outside of a
/// panic.
///
/// Without it a panic hook that needs more than its allowance may hang. `std::backtrace` holds a lock of the process while it
/// makes a report; an allocation that is refused inside ends in a report of its own, which waits for that lock; so does every
/// later report, of whichever tenant. With it the report is charged to nobody, and no limit refuses it.
///
/// What else std fills as it is first needed, and charges to who needs it: the buffer of standard output, which
/// this makes, for nobody; symbols, where a tenant prints a [`Backtrace`](std::backtrace::Backtrace) of its own; a
/// thread's handle, in threads that std has not started. Thread-locals of the program that are filled lazily are of the kind
/// too: fill them within [`unaccounted`](crate::unaccounted), or in a group of the program's own.
///
/// # Panics
///
/// If the calling thread panics already: std lets nobody set a hook then.
///
/// # Examples
///
/// ```
/// # #[global_allocator]
/// # static ALLOC: memcg::Memcg = memcg::Memcg::new();
/// let reports = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
/// let hook_reports = reports.clone();
/// std::panic::set_hook(Box::new(move |_| {
///     assert_eq!(memcg::Group::current(), memcg::Group::root(), "whoever panics");
///     hook_reports.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
/// }));
/// memcg::protect_panics();
///
/// let tenant = memcg::Group::root().builder("acme").max(1 << 20).build()?;
/// let panicked = std::panic::catch_unwind(|| tenant.run(|| panic!("tenant code panics")));
/// assert!(panicked.is_err());
/// assert_eq!(reports.load(std::sync::atomic::Ordering::Relaxed), 1);
/// assert_eq!(tenant.events().forced, 0);
/// # Ok::<(), memcg::Error>(())
/// ```
pub fn protect_panics() {
    assert!(!std::thread::panicking(), "a thread that panics sets no hook");
    // Relaxed: of two threads that come together one wraps.
    if IS_PROTECTED.swap(true, Ordering::Relaxed) {
        return;
    }
    scope::unaccounted(|| {
        drop(std::io::stdout());
        let wrapper = Wrapper { hook: panic::take_hook() };
        panic::set_hook(Box::new(move |info| wrapper.run(info)));
    });
}

/// The hook that was there. It is dropped as another takes its place.
struct Wrapper {
    hook: Hook,
}

impl Wrapper {
    fn run(&self, info: &PanicHookInfo<'_>) {
        let _in_hook = InHook::new();
        (self.hook)(info);
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        IS_PROTECTED.store(false, Ordering::Relaxed);
    }
}

/// The calling thread is in the hook, for nobody, until this is dropped. No scope: the end of one is a safe point, and
/// there is none in a hook.
struct InHook {
    before: Current,
}

impl InHook {
    fn new() -> Self {
        IN_HOOK.set(IN_HOOK.get() + 1);
        Self { before: scope::switch(Current::NOBODY) }
    }
}

impl Drop for InHook {
    fn drop(&mut self) {
        scope::switch(self.before);
        IN_HOOK.set(IN_HOOK.get() - 1);
    }
}
