//! Refusals: what one costs beside threads of other tenants, and what these notice of a tenant that hammers its limit.

use std::alloc::{GlobalAlloc, Layout};
use std::error::Error;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memcg::Group;

use super::{MEMCG, roomy};
use crate::aim::Aim;
use crate::meter::{Scale, cpu_time};

const TENANTS: usize = 64;
/// What the threads cache, of all tenants in turn.
const SIZES: [usize; 4] = [8, 16, 24, 32];

pub(super) fn run(scale: Scale) -> Result<Vec<Aim>, Box<dyn Error>> {
    println!("### refusals\n");
    println!(
        "CPU of one refusal beside threads of {TENANTS} other tenants, which cache as much as they may, in ms;"
    );
    println!("an allocation of another tenant's, p99.9, in ns\n");
    println!("| threads | first | next | alone | beside a tenant that hammers its limit |");
    println!("|---|---|---|---|---|");
    let tenants: Result<Vec<Group>, _> =
        (0..TENANTS).map(|n| roomy(&Group::root(), &format!("tenant-{n}"))).collect();
    let tenants = tenants?;
    let full = Group::root().builder("full").max(4 << 10).build()?;
    let held = std::hint::black_box(full.run(|| vec![0_u8; 3 << 10]));
    let mut aims = Vec::new();
    let counts: &[usize] = if scale == Scale::Full { &[2, 32, 256, 1000] } else { &[2, 32] };
    for &count in counts {
        let (begin, end) = (Barrier::new(count + 1), Barrier::new(count + 1));
        let [first, next, alone, beside] = thread::scope(|scope| {
            for _ in 0..count {
                let build = thread::Builder::new().stack_size(512 << 10);
                let (begin, end, tenants) = (&begin, &end, &tenants);
                let work = move || {
                    warm(tenants);
                    begin.wait();
                    end.wait();
                };
                build.spawn_scoped(scope, work).expect("a thread");
            }
            begin.wait();
            let figures = [
                refusal(&full),
                refusal(&full),
                victim(&tenants[0], None),
                victim(&tenants[0], Some(&full)),
            ];
            end.wait();
            figures
        });
        println!("| {count} | {first:.3} | {next:.3} | {alone:.0} | {beside:.0} |");
        if count == 256 {
            aims.push(Aim::new("a refusal beside 256 threads, ms of CPU", 1.0, first));
        }
        aims.push(Aim::new(
            format!("p99.9 beside refusals / alone, {count} threads"),
            2.0,
            beside / alone,
        ));
    }
    drop(held);
    println!();
    Ok(aims)
}

/// Fills the thread's caches.
fn warm(tenants: &[Group]) {
    for size in SIZES {
        let layout = Layout::array::<u8>(size).expect("small");
        let objects: Vec<_> = (0..4000)
            // SAFETY: the layout is not empty.
            .map(|n| tenants[n % TENANTS].run(|| unsafe { MEMCG.alloc(layout) }))
            .collect();
        // SAFETY: each was allocated above, with this layout.
        objects.into_iter().for_each(|object| unsafe { MEMCG.dealloc(object, layout) });
    }
}

/// The CPU time of one refusal, in ms: nobody else runs.
fn refusal(full: &Group) -> f64 {
    let start = cpu_time();
    refuse(full);
    (cpu_time() - start).as_secs_f64() * 1e3
}

fn refuse(full: &Group) {
    let mut buffer = Vec::<u8>::new();
    let answer = full.run(|| memcg::fallible(|| buffer.try_reserve_exact(2 << 10)));
    // Or no memory is asked for: nobody uses it.
    std::hint::black_box(&buffer);
    answer.expect_err("the group is full");
}

/// The 99.9th percentile of a victim's allocations and frees, in ns, while another thread is refused by `full`.
fn victim(tenant: &Group, full: Option<&Group>) -> f64 {
    let stop = AtomicBool::new(false);
    let layout = Layout::new::<[u64; 8]>();
    let mut times = Vec::with_capacity(4 << 20);
    thread::scope(|scope| {
        if let Some(full) = full {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    refuse(full);
                }
            });
        }
        let begin = Instant::now();
        tenant.run(|| {
            while begin.elapsed() < Duration::from_millis(500) && times.len() < times.capacity() {
                let start = Instant::now();
                // SAFETY: the layout is not empty.
                let object = std::hint::black_box(unsafe { MEMCG.alloc(layout) });
                // SAFETY: allocated above, with this layout.
                unsafe { MEMCG.dealloc(object, layout) };
                times.push(start.elapsed());
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    times.sort_unstable();
    times[times.len() * 999 / 1000].as_nanos() as f64
}
