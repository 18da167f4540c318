//! After Lever and Boreham's `xmalloc-test`: one thread allocates, the other one frees. Batches of 128
//! objects go through a queue of four, whose containers come back and are used again.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Cx, Family, THREADS, Workload, on_threads};
use crate::block::{Allocator, Block, Shape};
use crate::meter::Meter;
use crate::random::Random;
use crate::tenants::{Tenants, Turn};

const BATCH: usize = 128;

pub(super) fn list<A: Allocator, T: Tenants>(all: &mut Vec<Workload<A, T>>) {
    all.push(Workload::new(Family::TwoThreads, "xmalloc", xmalloc));
}

type Batch = Vec<Block>;

fn xmalloc<A: Allocator, T: Tenants>(cx: Cx<A, T>, meter: &mut Meter) {
    assert_eq!(cx.team(), THREADS, "one allocates and one frees");
    let batches = cx.scale.some(2_000);
    meter.run(|| {
        let (full_in, full_out) = sync_channel::<Batch>(4);
        let (empty_in, empty_out) = sync_channel::<Batch>(4);
        for _ in 0..4 {
            empty_in.send(Vec::with_capacity(BATCH)).expect("it has room");
        }
        let producer = Mutex::new(Some((full_in, empty_out)));
        let consumer = Mutex::new(Some((full_out, empty_in)));
        on_threads(cx, |thread| {
            if thread == 0 {
                let (full, empty) = producer.lock().expect("nobody panics").take().expect("once");
                produce(cx, batches, &full, &empty);
                batches * BATCH
            } else {
                let (full, empty) = consumer.lock().expect("nobody panics").take().expect("once");
                for mut batch in full {
                    batch.drain(..).for_each(|block| cx.heap.give(block));
                    // The producer may have finished.
                    drop(empty.send(batch));
                }
                0
            }
        })
    });
}

fn produce<A, T>(cx: Cx<A, T>, batches: usize, full: &SyncSender<Batch>, empty: &Receiver<Batch>)
where
    A: Allocator,
    T: Tenants,
{
    let mut random = Random::new(29);
    let mut turn = cx.tenants.turn();
    for _ in 0..batches {
        let mut batch = empty.recv().expect("the consumer outlives the batches");
        for _ in 0..BATCH {
            batch.push(cx.heap.take_touched(Shape::of(random.within(16, 256))));
            turn.tick();
        }
        full.send(batch).expect("the consumer outlives the batches");
    }
}
