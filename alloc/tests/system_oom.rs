//! The system has no memory: errors, nothing half done, and everything goes on once it has some.

mod support;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memcg::Group;
use support::{Raw, case};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Bytes of address space that the process has.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').next().and_then(|word| word.parse::<u64>().ok());
    pages.expect("a number of pages") * 4096
}

fn set_address_space(limit: libc::rlim_t) {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` is a valid place.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limits) }, 0);
    limits.rlim_cur = limit.min(limits.rlim_max);
    // SAFETY: `limits` is valid for reading.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limits) }, 0);
}

/// Runs `f` while the system gives at most `more` bytes of address space.
fn with_little<R>(more: u64, f: impl FnOnce() -> R) -> R {
    set_address_space(address_space() + more);
    let answer = f();
    set_address_space(libc::RLIM_INFINITY);
    answer
}

/// Runs `f` while the system gives not a page: what was unmapped since the limit was set, too, is
/// taken.
fn with_nothing<R>(f: impl FnOnce() -> R) -> R {
    let map = |bytes| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let null = std::ptr::null_mut();
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing.
        let memory = unsafe { libc::mmap(null, bytes, libc::PROT_NONE, flags, -1, 0) };
        (memory != libc::MAP_FAILED).then_some((memory, bytes))
    };
    let mut taken = Vec::with_capacity(100_000);
    let answer = with_little(0, || {
        for shift in (12..24).rev() {
            taken.extend(std::iter::from_fn(|| map(1 << shift)).take(1000));
        }
        f()
    });
    for (memory, bytes) in taken {
        // SAFETY: mapped above with this size, and not used.
        assert_eq!(unsafe { libc::munmap(memory, bytes) }, 0);
    }
    answer
}

/// Room for objects that does not have to grow where there is no memory.
fn room(n: usize) -> Vec<Raw> {
    memcg::unaccounted(|| {
        let mut room = Vec::with_capacity(n);
        room.extend((0..n).map_while(|_| Raw::new(8)));
        room.clear();
        room
    })
}

/// What `group` is charged for, which is nothing but `objects`.
fn assert_charged(group: &Group, objects: &[Raw]) {
    let sum: u64 = objects.iter().map(|object| object.size() as u64).sum();
    assert_eq!(group.stat().usage, sum, "counters are right");
}

fn large() {
    let group = Group::root().create("large").expect("memory");
    let mut objects = room(1000);
    let mut value = Vec::<u8>::new();
    with_little(64 << 20, || {
        assert!(group.run(|| value.try_reserve_exact(1 << 30)).is_err());
        assert_charged(&group, &[]);
        while let Some(object) = Raw::in_group(&group, 1 << 20) {
            assert!(objects.len() < 900, "there is an end");
            objects.push(object);
        }
        assert_charged(&group, &objects);
        assert!(objects.len() > 10);
        // A refused growth leaves the old block.
        let mut grown = objects.pop().map(|_| Vec::<u8>::new()).expect("many");
        group.run(|| grown.try_reserve_exact(1 << 20)).expect("the room of the one that went");
        grown.resize(1 << 20, 9);
        assert!(group.run(|| grown.try_reserve_exact(512 << 20)).is_err());
        assert!(grown.len() == 1 << 20 && grown.iter().all(|&byte| byte == 9));
        drop(grown);
        assert_charged(&group, &objects);
    });
    assert!(group.run(|| value.try_reserve_exact(256 << 20)).is_ok(), "there is memory again");
    drop((value, objects));
    assert_charged(&group, &[]);
}

fn small() {
    let group = Group::root().create("small").expect("memory");
    for size in [8, 64, 1024, 4096, 32 << 10] {
        let mut objects = room(2_000_000 / (1 + size / 64));
        with_little(4 << 20, || {
            while objects.len() < objects.capacity()
                && let Some(object) = Raw::in_group(&group, size)
            {
                objects.push(object);
            }
            assert!(objects.len() < objects.capacity(), "{size} bytes: there is an end");
            assert_charged(&group, &objects);
            // What is freed is found again.
            drop(objects.pop());
            objects.extend(Raw::in_group(&group, size));
            assert_charged(&group, &objects);
        });
        objects.extend(Raw::in_group(&group, size));
        assert!(objects.len() > 1);
        assert_charged(&group, &objects);
        objects.clear();
        assert_charged(&group, &[]);
    }
}

/// The first tag of the process: its vector has no memory.
fn tags() {
    let group = Group::root().create("tags").expect("memory");
    let objects = room(1000);
    assert_eq!(memcg::self_stat().tags, 0, "no object had a tag yet");
    let failed = with_nothing(|| {
        // Spans of this class exist, with objects in.
        (0..100).filter(|_| Raw::in_group(&group, 8).is_none()).count()
    });
    assert_eq!(failed, 100, "an object that can't be tagged is not handed out");
    assert_charged(&group, &[]);
    let object = Raw::in_group(&group, 8).expect("there is memory again");
    assert_eq!(Group::of(object.as_ptr()), Some(group.clone()));
    assert_charged(&group, std::slice::from_ref(&object));
    // And the map of large objects.
    drop(objects);
}

static BEGIN: AtomicBool = AtomicBool::new(false);
static END: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicU32 = AtomicU32::new(0);
static ANSWERED: AtomicU32 = AtomicU32::new(0);
static GROUP: std::sync::OnceLock<Group> = std::sync::OnceLock::new();

/// A thread without a record, and of which jemalloc has not heard either: it needs both when there is no memory.
extern "C" fn bare_thread(_: *mut c_void) -> *mut c_void {
    WAITING.fetch_add(1, Ordering::SeqCst);
    while !BEGIN.load(Ordering::SeqCst) {
        // SAFETY: it takes nothing.
        unsafe { libc::sched_yield() };
    }
    let group = GROUP.get().expect("set before");
    // jemalloc may have some of it; most threads get nothing.
    drop(Raw::in_group(group, 3 << 20));
    for i in 0..1000 {
        let object = Raw::in_group(group, 8 * (1 + i % 8));
        ANSWERED.fetch_add(u32::from(object.is_some()), Ordering::SeqCst);
    }
    WAITING.fetch_sub(1, Ordering::SeqCst);
    // Its stack is memory: it goes when there is some again.
    while !END.load(Ordering::SeqCst) {
        // SAFETY: as above.
        unsafe { libc::sched_yield() };
    }
    std::ptr::null_mut()
}

/// The allocator's figures once its own threads, which have records too, have begun.
fn settled() -> memcg::SelfStat {
    loop {
        let before = memcg::self_stat();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let after = memcg::self_stat();
        if after.metadata == before.metadata {
            return after;
        }
    }
}

fn records() {
    let group = Group::root().create("records").expect("memory");
    let warm: Vec<Raw> = memcg::unaccounted(|| {
        (0..1000).filter_map(|i| Raw::in_group(&group, 8 * (1 + i % 8))).collect()
    });
    drop(warm);
    GROUP.set(group.clone()).expect("once");
    let before = settled();
    let mut threads = [0; 8];
    for thread in &mut threads {
        let null = std::ptr::null_mut();
        // SAFETY: `thread` is a valid place, and the function takes no argument.
        let answer = unsafe { libc::pthread_create(thread, std::ptr::null(), bare_thread, null) };
        assert_eq!(answer, 0);
    }
    while WAITING.load(Ordering::SeqCst) < 8 {
        std::thread::yield_now();
    }
    with_nothing(|| {
        BEGIN.store(true, Ordering::SeqCst);
        while WAITING.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
    });
    END.store(true, Ordering::SeqCst);
    for thread in threads {
        // SAFETY: the thread was created above and is joined once.
        assert_eq!(unsafe { libc::pthread_join(thread, std::ptr::null_mut()) }, 0);
    }
    assert_eq!(memcg::self_stat().metadata, before.metadata, "there was no memory for a record");
    assert_eq!(ANSWERED.load(Ordering::SeqCst), 8000, "without a record, too, there were objects");
    assert_charged(&group, &[]);
}

fn groups() {
    let top = Group::root().create("groups").expect("memory");
    let mut made: Vec<Group> = Vec::with_capacity(400_000);
    made.extend((0..400_000).map(|_| top.clone()));
    made.clear();
    let mut name = String::with_capacity(16);
    let error = with_nothing(|| {
        loop {
            use std::fmt::Write;
            name.clear();
            write!(name, "{}", made.len()).expect("a string grows");
            match top.create(&name) {
                Ok(group) => made.push(group),
                Err(error) => break error,
            }
            assert!(made.len() < 400_000, "there is an end");
        }
    });
    assert!(error.is_system(), "{error}");
    assert!(error.to_string().contains("/groups"), "{error}");
    assert_eq!(top.stat().nr_descendants, made.len() as u64, "nothing is half done");
    assert_eq!(Group::lookup(&format!("/groups/{name}")), None);
    let again = top.create(&name).expect("there is memory again");
    let object = Raw::in_group(&again, 100).expect("memory");
    assert_eq!(Group::of(object.as_ptr()), Some(again));
    drop((made, object));
    assert_eq!(top.stat().nr_descendants, 0);
    assert_eq!(top.stat().usage, 0);
}

const TEST: &str = "without_memory_there_are_errors_and_counters_are_right";

#[test]
fn without_memory_there_are_errors_and_counters_are_right() {
    match case().as_deref() {
        Some("large") => large(),
        Some("small") => small(),
        Some("tags") => tags(),
        Some("records") => records(),
        Some("groups") => groups(),
        Some(other) => panic!("no such case: {other}"),
        None => {
            for case in ["large", "small", "tags", "records", "groups"] {
                support::pass(TEST, case);
            }
            return;
        }
    }
    memcg::check();
}
