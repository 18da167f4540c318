//! A thread that a debugger holds, wherever it is: the others drain, allocate and are refused rightly.
//!
//! The process under test is a child of this one, which stops one of its threads with `ptrace`, asks the rest of it to work,
//! and lets the thread go on. The thread does nothing but pairs that need no lock, so it is held in its `busy` region or outside
//! the allocator, and hardly ever with a lock that all need: then all wait, as `SECURITY.md` says, and it is let go.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{PATIENCE, Raw, Sets, is_case, rerun};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const TEST: &str = "others_go_on_while_a_debugger_holds_a_thread";
const MAX: u64 = 1 << 20;
/// How often the thread is held; enough for some times in its busy region.
const TURNS: u32 = 400;
/// Without an answer for so long, the thread is held with a lock.
const LONGEST: Duration = Duration::from_secs(10);
/// How often a drain must have given it up: then it was in its busy region.
const WANTED: u64 = 20;

/// The process under test: one thread works, and for each line on standard input another one drains and allocates.
fn work() {
    let group = Group::root().builder("held").max(MAX).build().expect("fresh");
    let stop = AtomicBool::new(false);
    let victim = AtomicI32::new(0);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        let (group, stop, victim) = (&group, &stop, &victim);
        scope.spawn(move || {
            let _scope = group.enter();
            // The first ones take locks.
            (0..100).for_each(|_| drop(Raw::new(500)));
            // SAFETY: it takes nothing.
            victim.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            while !stop.load(Ordering::Relaxed) {
                drop(Raw::new(500));
            }
        });
        while victim.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        println!("\nvictim {}", victim.load(Ordering::SeqCst));
        for line in std::io::stdin().lines() {
            if line.is_err() {
                break;
            }
            let start = Instant::now();
            memcg::drain();
            // As much as the limit has room for, but for what the thread that is held may have.
            let mut held = Vec::with_capacity(300);
            held.extend(std::iter::from_fn(|| Raw::in_group(group, 4096)).take(300));
            let usage = group.usage();
            assert!(usage <= MAX, "{usage}");
            assert!(held.len() > 150, "{} objects: what is cached was not taken", held.len());
            drop(held);
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "nobody waits for a thread that is held"
            );
            println!("\ngave up {}", memcg::self_stat().given_up);
        }
        stop.store(true, Ordering::Relaxed);
    });
    memcg::drain();
    assert_eq!(group.usage(), 0, "once it goes on, everything is exact");
    memcg::check();
}

/// One call of `ptrace` without an address and without data.
fn ptrace(request: u32, thread: libc::pid_t) -> std::io::Result<()> {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the requests that are made here take no memory.
    let answer = unsafe { libc::ptrace(request, thread, null, null) };
    if answer == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn others_go_on_while_a_debugger_holds_a_thread() {
    if is_case("held") {
        return work();
    }
    let mut command = rerun(TEST, "held");
    command.stdin(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().expect("a child");
    let mut input = child.stdin.take().expect("piped");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        // Until the child has ended, or nobody listens.
        let _ = output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
    });
    // What the child says next that begins so, if it does within a while.
    let said = |what: &str, patience: Duration| -> Option<u64> {
        let start = Instant::now();
        loop {
            let line = lines.recv_timeout(patience.saturating_sub(start.elapsed())).ok()?;
            if let Some(number) = line.strip_prefix(what) {
                return Some(number.trim().parse().expect("a number"));
            }
        }
    };
    let victim = said("victim ", PATIENCE).expect("it lives");
    let victim = libc::pid_t::try_from(victim).expect("an id");
    if let Err(error) = ptrace(libc::PTRACE_SEIZE, victim) {
        // A sandbox may forbid it; then there is nobody who could hold a thread.
        eprintln!("no ptrace here: {error}");
        drop(input);
        assert!(child.wait().expect("our own child").success());
        return;
    }
    let (start, mut given_up, mut turns, mut locks) = (Instant::now(), 0, 0, 0);
    while given_up < WANTED && turns < TURNS && start.elapsed() < PATIENCE / 2 {
        ptrace(libc::PTRACE_INTERRUPT, victim).expect("it is ours");
        let mut status = 0;
        // SAFETY: `status` is a valid place, and the thread is traced by this one.
        let stopped = unsafe { libc::waitpid(victim, &raw mut status, libc::__WALL) };
        assert!(stopped == victim && libc::WIFSTOPPED(status), "{status:#x}");
        input.write_all(b"go\n").expect("it listens");
        let answer = said("gave up ", LONGEST);
        ptrace(libc::PTRACE_CONT, victim).expect("it is stopped");
        given_up = answer.unwrap_or_else(|| {
            locks += 1;
            said("gave up ", PATIENCE).expect("it goes on once the thread does")
        });
        // Elsewhere next time.
        thread::sleep(Duration::from_micros(300 + u64::from(turns % 7) * 100));
        turns += 1;
    }
    ptrace(libc::PTRACE_INTERRUPT, victim).expect("it is ours");
    // SAFETY: no place is asked for, and the thread is traced by this one.
    unsafe { libc::waitpid(victim, std::ptr::null_mut(), libc::__WALL) };
    ptrace(libc::PTRACE_DETACH, victim).expect("it is stopped");
    drop(input);
    assert!(child.wait().expect("our own child").success());
    reader.join().expect("no panic");
    println!("held {turns} times: given up {given_up} times, {locks} times with a lock");
    assert!(turns > 2 * locks, "it was held with a lock {locks} of {turns} times");
    assert!(given_up > 0, "it was never held in its busy region");
}
