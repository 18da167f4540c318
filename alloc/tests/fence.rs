//! Drains where `membarrier` is refused, from the beginning or from some moment on: both sides use
//! full fences then, and everything stays exact.

mod support;

use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;
use support::{Random, Raw, Sets, Watchdog, case, rerun, run};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

const MAX: u64 = 1 << 20;

/// Whether the system does `membarrier`.
fn has_membarrier() -> bool {
    // SAFETY: the query takes and changes nothing.
    unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_QUERY, 0, 0) >= 0 }
}

/// Has the kernel refuse `membarrier` from now on, for every thread of the process if `all`, and
/// for what it executes. Allocates nothing.
fn refuse_membarrier(all: bool) -> std::io::Result<()> {
    let number = u32::try_from(libc::SYS_membarrier).expect("a small number");
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).expect("a small number");
    let code = |bits: u32| u16::try_from(bits).expect("codes have 16 bits");
    let step = |bits, jt, jf, k| libc::sock_filter { code: code(bits), jt, jf, k };
    // The number of the call is the first word of what a filter sees.
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: it takes four numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let flags = if all { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
    // SAFETY: the program and its steps are valid, and the kernel copies them.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Threads allocate, hand over and free across limits while others drain; `midway` runs in the
/// middle of it. Afterwards everything is exact.
fn stay_exact(midway: impl FnOnce()) {
    let _watchdog = Watchdog::new("drains without membarrier");
    let groups: Vec<Group> = (0..4)
        .map(|i| Group::root().builder(&format!("fenced {i}")).max(MAX).build().expect("fresh"))
        .collect();
    let passed: Mutex<Vec<Raw>> = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Sets(&stop);
        for seed in 0..4 {
            let (groups, passed, stop) = (&groups, &passed, &stop);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut held: Vec<Raw> = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let group = &groups[random.below(groups.len())];
                    let most = if random.below(30) == 0 { 60_000 } else { 1500 };
                    held.extend(Raw::in_group(group, 1 + random.below(most)));
                    assert!(group.usage() <= MAX);
                    if held.len() > 100 {
                        let object = held.swap_remove(random.below(held.len()));
                        let other = memcg::unaccounted(|| {
                            let mut passed = passed.lock().expect("not poisoned");
                            passed.push(object);
                            (passed.len() > 50).then(|| passed.swap_remove(random.below(50)))
                        });
                        drop(other);
                    }
                }
            });
        }
        let drainer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                memcg::drain();
                let given_up = memcg::self_stat().given_up;
                let stat = groups[0].stat();
                if memcg::self_stat().given_up == given_up {
                    assert_eq!(stat.slab + stat.large, stat.usage);
                }
            }
        });
        thread::sleep(Duration::from_millis(300));
        midway();
        thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        drainer.join().expect("no panic");
    });
    // A thread that the system did not run for 100 ms in the middle of its straight-line work is
    // the one excuse that the design admits; a loaded machine has it often.
    let stat = memcg::self_stat();
    assert!(2 * stat.given_up <= stat.drains, "{} of {}", stat.given_up, stat.drains);
    passed.lock().expect("not poisoned").clear();
    memcg::drain();
    for group in &groups {
        assert_eq!(group.usage(), 0, "{group:?}");
        assert_eq!(group.events().forced, 0);
    }
    // A limit is exact, and a refusal comes after a cut: what is cached elsewhere is found.
    let small = Group::root().builder("small").max(64 << 10).build().expect("fresh");
    let (begin, end) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        let cacher = scope.spawn(|| {
            drop((0..16).map_while(|_| Raw::in_group(&small, 4096)).collect::<Vec<_>>());
            begin.wait();
            end.wait();
        });
        begin.wait();
        let object = Raw::in_group(&small, 60 << 10);
        end.wait();
        cacher.join().expect("no panic");
        assert!(object.is_some(), "what another thread caches is taken back");
    });
    memcg::drain();
    assert_eq!(small.usage(), 0);
    memcg::check();
    // New threads learn of the fence, too, and fast paths go on.
    let start = Instant::now();
    thread::spawn(|| {
        for _ in 0..10_000 {
            drop(std::hint::black_box(Box::new(1_u64)));
        }
    })
    .join()
    .expect("no panic");
    assert!(start.elapsed() < Duration::from_secs(20));
}

const TEST: &str = "limits_and_drains_are_exact_whatever_membarrier_does";

#[test]
fn limits_and_drains_are_exact_whatever_membarrier_does() {
    match case().as_deref() {
        Some("as it is") => return stay_exact(|| ()),
        Some("refused from the start") => {
            assert!(!has_membarrier(), "the filter was there before the first allocation");
            return stay_exact(|| ());
        }
        Some("refused later") => {
            return stay_exact(|| {
                refuse_membarrier(true).expect("a filter for all threads");
                assert!(!has_membarrier());
            });
        }
        Some(other) => panic!("no such case: {other}"),
        None => {}
    }
    for case in ["as it is", "refused from the start", "refused later"] {
        let mut command = rerun(TEST, case);
        if case == "refused from the start" {
            // SAFETY: what it calls allocates nothing and takes no lock.
            unsafe { command.pre_exec(|| refuse_membarrier(false)) };
        }
        let ended = run(&mut command);
        assert!(ended.status.success(), "{case}: {ended:#?}");
    }
}
