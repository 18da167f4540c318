//! The end of the address space soon after the first group: the allocator's own threads do without what they do not
//! get.

mod support;

use std::alloc::{Layout, alloc, dealloc};
use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use memcg::{Changed, EventKind, Group, Threshold, Watch};
use support::{PATIENCE, case, pass};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// What the process may take beyond what it has.
const ROOM: u64 = 64 << 20;

/// What the process has, and `room` more.
fn limit_address_space(room: u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').next().and_then(|word| word.parse::<u64>().ok());
    set_limit(pages.expect("a number") * 4096 + room);
}

fn set_limit(most: libc::rlim_t) {
    let limits = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limits` is valid for reading.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limits) }, 0);
}

/// Asks for more than there is, again and again; answers how often it was refused.
fn fill(group: &Group, held: &mut [Vec<u8>]) -> usize {
    let empty = held.iter_mut().filter(|value| value.capacity() == 0);
    group.run(|| empty.filter_map(|value| value.try_reserve_exact(100_000).err()).count())
}

/// The keeper ticks, and a worker comes, while there is no memory.
fn own_threads() {
    let group = Group::root().builder("g").max(1_u64 << 40).build().expect("fresh");
    let mut held = [const { Vec::new() }; 1000];
    limit_address_space(ROOM);
    assert!(fill(&group, &mut held) > 0, "there is an end");
    let small = Group::root().builder("small").max(1 << 20).build();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        fill(&group, &mut held);
        if let Ok(small) = &small {
            // Met at the limit: the worker is asked.
            let mut value = Vec::<u8>::new();
            assert!(small.run(|| value.try_reserve_exact(2 << 20)).is_err());
        }
        thread::sleep(Duration::from_millis(5));
    }
    // What reports the test needs some.
    set_limit(libc::RLIM_INFINITY);
    memcg::drain();
    drop(held);
    memcg::drain();
    assert_eq!(group.usage(), 0);
}

const TEST: &str = "without_memory_the_allocators_own_threads_do_without";

#[test]
fn without_memory_the_allocators_own_threads_do_without() {
    match case() {
        None => pass(TEST, "soon"),
        Some(_) => own_threads(),
    }
}

/// All memory that the process can get, of every size, for nobody.
struct All(*mut u8, usize);

impl All {
    const SIZES: [usize; 24] = [
        1 << 20,
        1 << 17,
        1 << 16,
        40_960,
        32_768,
        24_576,
        16_384,
        12_288,
        8192,
        6144,
        4096,
        3072,
        2048,
        1536,
        1024,
        768,
        512,
        384,
        256,
        128,
        64,
        48,
        32,
        16,
    ];

    /// Of each object the first words say which is next, and its size.
    fn take() -> Self {
        let mut first = Self(ptr::null_mut(), 0);
        for size in Self::SIZES {
            let layout = Layout::from_size_align(size, 8).expect("a layout");
            loop {
                // SAFETY: the size is not 0.
                let object = memcg::unaccounted(|| unsafe { alloc(layout) });
                if object.is_null() {
                    break;
                }
                // SAFETY: the object is new, and has room for both words.
                unsafe { object.cast::<Self>().write(first) };
                first = Self(object, size);
            }
        }
        first
    }

    fn give_back(mut self) {
        while !self.0.is_null() {
            // SAFETY: `take` wrote it.
            let next = unsafe { self.0.cast::<Self>().read() };
            let layout = Layout::from_size_align(self.1, 8).expect("a layout");
            // SAFETY: it was allocated with this layout, and is in the list once.
            unsafe { dealloc(self.0, layout) };
            self = next;
        }
    }
}

struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

static TOLD: AtomicU32 = AtomicU32::new(0);
const WATCHES: usize = 300;

/// A worker has news for many watches and their wakers, and refusals to tell, while there is no memory.
fn news() {
    let group = Group::root().builder("full").max(1 << 20).build().expect("fresh");
    let watches: Vec<Watch> = (0..WATCHES)
        .map(|_| group.watch(Threshold::Event(EventKind::Max)).expect("a descriptor"))
        .collect();
    let woken = Arc::new(Woken(AtomicU32::new(0)));
    let waker = Waker::from(woken.clone());
    let mut changed: Vec<Pin<Box<Changed<'_>>>> =
        watches.iter().map(|watch| Box::pin(watch.changed())).collect();
    let mut poll = move |nr: usize| changed[nr].as_mut().poll(&mut Context::from_waker(&waker));
    // The last one waits only once there is no memory.
    assert!((0..WATCHES - 1).all(|nr| poll(nr).is_pending()));
    memcg::on_refusal(|refusal| {
        assert_eq!((refusal.path(), refusal.max()), ("/full", 1 << 20));
        TOLD.fetch_add(1, Ordering::Relaxed);
    });

    limit_address_space(0);
    let all = All::take();
    let is_woken = poll(WATCHES - 1).is_pending() && woken.0.load(Ordering::Relaxed) == 1;
    let mut value = Vec::<u8>::new();
    let refused = group.run(|| value.try_reserve_exact(2 << 20)).is_err();
    let start = Instant::now();
    while start.elapsed() < PATIENCE && (woken.0.load(Ordering::Relaxed) as usize) < WATCHES {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(300));
    all.give_back();
    set_limit(libc::RLIM_INFINITY);
    assert!(is_woken, "whoever can't wait is woken at once");
    assert!(refused && poll(0) == Poll::Ready(()));
    assert_eq!(woken.0.load(Ordering::Relaxed) as usize, WATCHES);
    let start = Instant::now();
    while TOLD.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < PATIENCE, "it is told once there is memory");
        thread::sleep(Duration::from_millis(5));
    }
}

const NEWS: &str = "without_memory_news_is_delivered_and_refusals_are_told_later";

#[test]
fn without_memory_news_is_delivered_and_refusals_are_told_later() {
    match case() {
        None => pass(NEWS, "news"),
        Some(_) => news(),
    }
}
