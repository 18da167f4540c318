//! tokio: eight pairs of tasks on two threads; one makes buffers, the other reads and drops them.

use std::hint::black_box;

use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::{Cx, Family, THREADS, Workload};
use crate::block::Allocator;
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::Tenants;

const PAIRS: usize = 8;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::Application, "tokio", tasks));
}

fn tasks<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    let buffers = cx.scale.some(1_000);
    let tenants = cx.tenants;
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        // A worker thread stays at home for as long as it lives.
        .on_thread_start(move || std::mem::forget(tenants.home()))
        .build()
        .expect("threads can be made");
    meter.run(|| {
        let mut handles = Vec::new();
        for pair in 0..PAIRS {
            let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(32);
            let producer = async move {
                let mut random = Random::new(59 + pair as u64);
                for _ in 0..buffers {
                    let buffer = vec![1; random.power_law(64, 4096)];
                    if sender.send(buffer).await.is_err() {
                        break;
                    }
                }
            };
            let consumer = async move {
                while let Some(buffer) = receiver.recv().await {
                    black_box(buffer.iter().map(|byte| usize::from(*byte)).sum::<usize>());
                }
            };
            handles.push(runtime.spawn(tenants.future(2 * pair, producer)));
            handles.push(runtime.spawn(tenants.future(2 * pair + 1, consumer)));
        }
        for handle in handles {
            runtime.block_on(handle).expect("no task panics");
        }
        PAIRS * buffers
    });
}
