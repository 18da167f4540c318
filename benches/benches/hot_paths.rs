//! The hot paths next to tikv-jemallocator, in one process and one run.
//!
//! memcg is the global allocator, and it is asserted that it is; jemalloc is called through its
//! own `GlobalAlloc`. Both are called through the trait, so both are inlined alike.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use memcg::{Cache, Group};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

/// Objects of a batch.
const BATCH: usize = 1000;

fn assert_installed() {
    assert!(memcg::is_installed(), "memcg serves this process");
}

fn limited(name: &str) -> Group {
    Group::root().builder(name).max(1 << 30).build().expect("a fresh name")
}

/// One allocation and its free.
#[inline(always)]
fn pair<A: GlobalAlloc>(allocator: &A, layout: Layout) {
    // SAFETY: no layout of this bench has size 0.
    let object = black_box(unsafe { allocator.alloc(black_box(layout)) });
    assert!(!object.is_null());
    // SAFETY: allocated above with this layout.
    unsafe { allocator.dealloc(object, black_box(layout)) };
}

/// `BATCH` allocations, then their frees in the same order.
fn batch<A: GlobalAlloc>(allocator: &A, layout: Layout, objects: &mut Vec<*mut u8>) {
    for _ in 0..BATCH {
        // SAFETY: no layout of this bench has size 0.
        objects.push(unsafe { allocator.alloc(black_box(layout)) });
    }
    for object in objects.drain(..) {
        // SAFETY: allocated above with this layout.
        unsafe { allocator.dealloc(object, black_box(layout)) };
    }
}

fn hot_pairs(c: &mut Criterion) {
    assert_installed();
    let mut bench = c.benchmark_group("pair");
    for size in [16, 64, 256, 1024, 4096] {
        let layout = Layout::from_size_align(size, 8).expect("a valid layout");
        bench.bench_function(BenchmarkId::new("jemalloc", size), |b| {
            b.iter(|| pair(&Jemalloc, layout));
        });
        bench.bench_function(BenchmarkId::new("memcg", size), |b| {
            b.iter(|| pair(&ALLOC, layout));
        });
        let group = limited(&format!("pair {size}"));
        bench.bench_function(BenchmarkId::new("memcg-limited", size), |b| {
            group.run(|| b.iter(|| pair(&ALLOC, layout)));
        });
    }
    bench.finish();
}

fn batches(c: &mut Criterion) {
    assert_installed();
    let mut bench = c.benchmark_group("batch-1000");
    let mut objects = Vec::with_capacity(BATCH);
    for size in [16, 64, 256] {
        let layout = Layout::from_size_align(size, 8).expect("a valid layout");
        bench.throughput(criterion::Throughput::Elements(BATCH as u64));
        bench.bench_function(BenchmarkId::new("jemalloc", size), |b| {
            b.iter(|| batch(&Jemalloc, layout, &mut objects));
        });
        let group = limited(&format!("batch {size}"));
        bench.bench_function(BenchmarkId::new("memcg-limited", size), |b| {
            group.run(|| b.iter(|| batch(&ALLOC, layout, &mut objects)));
        });
    }
    bench.finish();
}

fn scopes(c: &mut Criterion) {
    assert_installed();
    let group = limited("scope");
    drop(group.run(|| vec![0_u8; 64]));
    c.bench_function("scope/enter-exit", |b| b.iter(|| drop(black_box(&group).enter())));
}

fn groups(c: &mut Criterion) {
    assert_installed();
    let parent = limited("parent");
    let mut bench = c.benchmark_group("group");
    bench.bench_function("create-drop", |b| {
        b.iter(|| drop(parent.create("child").expect("a fresh name")));
    });
    bench.bench_function("create-drop-with-a-live-object", |b| {
        b.iter_batched(
            || Vec::with_capacity(1),
            |mut held: Vec<Box<u64>>| {
                let child = parent.create("child").expect("a fresh name");
                child.run(|| held.push(Box::new(1)));
                held
            },
            criterion::BatchSize::SmallInput,
        );
    });
    bench.finish();
}

fn at_the_limit(c: &mut Criterion) {
    assert_installed();
    let full = Group::root().builder("full").max(1 << 20).build().expect("a fresh name");
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(4096);
    let reserve = || {
        let mut value = Vec::new();
        full.run(|| value.try_reserve_exact(1024)).is_ok().then_some(value)
    };
    held.extend(std::iter::from_fn(reserve));
    let mut bench = c.benchmark_group("at-the-limit");
    bench.bench_function("refused", |b| b.iter(|| assert!(reserve().is_none())));
    for (name, cache) in [
        ("insert-with-direct-eviction", Cache::<u64, [u8; 1000]>::direct("direct")),
        ("insert-with-worker-eviction", Cache::new("worker")),
    ] {
        let evicting = Group::root().builder(name).max(4 << 20).build().expect("a fresh name");
        // The bench's thread and the worker share two CPUs with whatever else runs.
        evicting.set_deadline(Duration::from_secs(1), Duration::from_secs(1));
        let mut key = 0;
        bench.bench_function(name, |b| {
            evicting.run(|| {
                b.iter(|| {
                    key += 1;
                    cache.insert(key, [0; 1000]).expect("makes room for itself")
                });
            });
        });
        // A filter on the command line may have left the bench out.
        assert!(key == 0 || cache.stat().evictions > 0);
    }
    bench.finish();
}

criterion_group!(benches, hot_pairs, batches, scopes, groups, at_the_limit);
criterion_main!(benches);
