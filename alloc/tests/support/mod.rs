//! What tests share: fresh processes, watchdogs, chance, raw objects; keys, futures and hoards in files of their own.

#![allow(dead_code, reason = "each test takes what it needs")]

pub(crate) mod future;
pub(crate) mod hoard;
pub(crate) mod keys;

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::io::Read;
use std::marker::PhantomData;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;

// ---- tests that share a process -----------------------------------------------------------------

/// Tests share the process: each holds this for reading, and whoever must be [`alone`] for
/// writing.
static RUNNING: RwLock<()> = RwLock::new(());

/// A test that runs beside others; when it is over, and all that it had is dropped, every invariant
/// is checked while no other test runs.
pub(crate) struct Running(Option<RwLockReadGuard<'static, ()>>);

/// To be called first, so that what it answers is dropped last.
pub(crate) fn running() -> Running {
    Running(Some(RUNNING.read().unwrap_or_else(PoisonError::into_inner)))
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.take());
        if !thread::panicking() {
            let _alone = alone();
            memcg::check();
        }
    }
}

/// Keeps every other test out.
pub(crate) fn alone() -> impl Sized {
    RUNNING.write().unwrap_or_else(PoisonError::into_inner)
}

// ---- what a crate exports ------------------------------------------------------------------------

/// What `lib.rs` of a crate exports: `pub use` of names that begin with a capital, not for one
/// configuration alone.
pub(crate) fn exported(lib: &str) -> BTreeSet<&str> {
    let mut lines = lib.split("\n#[cfg(memcg_counting)]\n");
    let first = lines.next().unwrap_or_default();
    let rest = lines.map(|part| part.split_once(';').map_or("", |(_, rest)| rest));
    let uses = [first].into_iter().chain(rest).flat_map(|part| part.split("\npub use ").skip(1));
    uses.flat_map(|line| {
        let names = line.split_once(';').map_or(line, |(names, _)| names);
        let names = names.rsplit_once("::").map_or(names, |(_, names)| names);
        names.split(|c: char| !c.is_alphanumeric() && c != '_')
    })
    .filter(|name| {
        let is_type = name.chars().any(char::is_lowercase);
        is_type && name.starts_with(char::is_uppercase)
    })
    .collect()
}

// ---- fresh processes ----------------------------------------------------------------------------

/// Names the case that a process was started for.
const CASE: &str = "MEMCG_TEST_CASE";
/// No child takes longer, also where many others run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Whether this process was started by [`rerun`] for `case`.
pub(crate) fn is_case(case: &str) -> bool {
    std::env::var(CASE).is_ok_and(|value| value == case)
}

/// The case that this process was started for.
pub(crate) fn case() -> Option<String> {
    std::env::var(CASE).ok()
}

/// A command that runs the test `test` of this binary, alone, in a process that [`is_case`].
pub(crate) fn rerun(test: &str, case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(CASE, case).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a process came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `command` to its end, which must come within [`PATIENCE`].
pub(crate) fn run(command: &mut Command) -> Ended {
    let mut child = command.spawn().expect("a child");
    let read = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let status = wait_for(&mut child);
    let (stdout, stderr) = (stdout.join().expect("read"), stderr.join().expect("read"));
    let Some(status) = status else {
        panic!("a child did not end:\n{stdout}\n{stderr}");
    };
    Ended { status, stdout, stderr }
}

fn wait_for(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().expect("our own child") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Runs one case in a fresh process, which must pass.
pub(crate) fn pass(test: &str, case: &str) {
    let ended = run(&mut rerun(test, case));
    assert!(ended.status.success(), "{case}: {ended:#?}");
}

// ---- forked processes ---------------------------------------------------------------------------

/// Forks, and runs `work` in the child, which must return within [`PATIENCE`].
///
/// # Panics
///
/// Panics if it does not, or if `work` panics in the child.
pub(crate) fn fork_and(work: impl FnOnce()) {
    show_panics_of_children();
    // SAFETY: the child does only what the allocator, which is under test, promises to allow.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: it ends the child at once; what the parent owns is the parent's to drop.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let start = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place, and the child is ours.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid {
            break;
        }
        if start.elapsed() > PATIENCE {
            // SAFETY: the child is ours, and was not waited for, so the id is still its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            panic!("the child of a fork did not end");
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status, 0, "the child of a fork failed");
}

/// Panics of forked children are written to standard error as they are: the harness of the parent
/// would keep them.
fn show_panics_of_children() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let parent = std::process::id();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::process::id() == parent {
                return before(info);
            }
            let line = format!("in a forked child: {info}\n");
            // SAFETY: the bytes are the line's.
            unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
        }));
    });
}

/// A thread made without std: where others begin while the process forks, a child can start no
/// thread of std's, for it may find a lock of std's taken.
pub(crate) struct Bare<'a> {
    thread: libc::pthread_t,
    work: PhantomData<&'a ()>,
}

impl<'a> Bare<'a> {
    pub(crate) fn new(work: &'a (dyn Fn() + Sync)) -> Self {
        extern "C" fn run(work: *mut c_void) -> *mut c_void {
            // SAFETY: `new` made it, for this thread alone.
            let work = unsafe { Box::from_raw(work.cast::<&(dyn Fn() + Sync)>()) };
            // A panic ends the process: nothing unwinds out of here.
            work();
            std::ptr::null_mut()
        }
        let mut thread = 0;
        let work = Box::into_raw(Box::new(work)).cast::<c_void>();
        // SAFETY: `thread` is a valid place; `run` takes the box, whose reference outlives the
        // thread, for dropping this value joins it.
        let answer = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), run, work) };
        assert_eq!(answer, 0, "a thread");
        Self { thread, work: PhantomData }
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        // SAFETY: the thread was created by `new`, and is joined here alone.
        unsafe { libc::pthread_join(self.thread, std::ptr::null_mut()) };
    }
}

/// Aborts the process if it is not dropped in time: a hang fails, and shows where.
pub(crate) struct Watchdog(std::sync::mpsc::Sender<()>);

impl Watchdog {
    pub(crate) fn new(what: &'static str) -> Self {
        Self::patient(what, PATIENCE)
    }

    /// One that waits for `patience`, for what takes longer by its nature.
    pub(crate) fn patient(what: &'static str, patience: Duration) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let ended = receiver.recv_timeout(patience);
            if ended == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{what} hangs");
                std::process::abort();
            }
        });
        Self(sender)
    }
}

/// Sets a flag when it is dropped: threads that look at it end, also when a test fails.
pub(crate) struct Sets<'a>(pub(crate) &'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

// ---- chance -------------------------------------------------------------------------------------

/// A small generator: the same seed, the same numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 11).expect("64-bit") % n
    }
}

// ---- raw objects --------------------------------------------------------------------------------

/// An object that is allocated fallibly and knows nothing but its layout: it holds no other
/// memory, and may be freed by any thread.
#[derive(Debug)]
pub(crate) struct Raw {
    object: *mut u8,
    layout: Layout,
}

// SAFETY: the object is this value's alone.
unsafe impl Send for Raw {}

impl Raw {
    /// An object of `size` bytes, aligned to 8, for whoever is current.
    pub(crate) fn new(size: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size, 8).expect("a small layout");
        // SAFETY: no caller asks for 0 bytes.
        let object = unsafe { std::alloc::alloc(layout) };
        if object.is_null() {
            return None;
        }
        // SAFETY: the object has at least this byte.
        unsafe { object.write(1) };
        Some(Self { object, layout })
    }

    pub(crate) fn in_group(group: &Group, size: usize) -> Option<Self> {
        group.run(|| Self::new(size))
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.object
    }

    pub(crate) fn size(&self) -> usize {
        self.layout.size()
    }

    /// Gives the object away; [`Raw::from_parts`] takes it back.
    pub(crate) fn into_parts(self) -> (*mut u8, usize) {
        let this = std::mem::ManuallyDrop::new(self);
        (this.object, this.layout.size())
    }

    /// # Safety
    ///
    /// - The parts are those of one [`into_parts`](Raw::into_parts), and are used once.
    pub(crate) unsafe fn from_parts(object: *mut u8, size: usize) -> Self {
        Self { object, layout: Layout::from_size_align(size, 8).expect("a small layout") }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { std::alloc::dealloc(self.object, self.layout) };
    }
}

// ---- the process ----------------------------------------------------------------------------------

/// The names of the process's threads.
pub(crate) fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Has the process see `code`, a status that a test ends itself with.
pub(crate) fn exit(code: c_int) -> ! {
    std::process::exit(code)
}
