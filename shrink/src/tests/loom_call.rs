//! Model: calls of a shrinker against its end, and against its beginning.
//!
//! The data is a cell that loom watches: a call reads it, the end writes it. Each test with
//! `should_panic` weakens one step and shows that the model notices.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::raw::{Control, Place, RawCount, RawScan, RawShrinker, ShrinkerName};
use crate::slot::{Begun, Slot, Waited, Weakened};

/// What a shrinker's data points to.
struct Data {
    value: UnsafeCell<u32>,
    nr_drops: AtomicU32,
}

impl Data {
    fn new() -> Arc<Data> {
        Arc::new(Data { value: UnsafeCell::new(1), nr_drops: AtomicU32::new(0) })
    }
}

// SAFETY: the slot's protocol guards the value, which is what the models test.
unsafe impl Sync for Data {}
// SAFETY: as above.
unsafe impl Send for Data {}

/// # Safety
///
/// `data` is a `Data` that lives.
unsafe fn count(data: *const (), _: &Control) -> RawCount {
    // SAFETY: by contract.
    let data = unsafe { &*data.cast::<Data>() };
    // SAFETY: a reader, which loom checks against writers.
    let value = data.value.with(|value| unsafe { *value });
    assert_eq!(value, 1, "a call finds the data as it was registered");
    RawCount::Empty
}

/// # Safety
///
/// None.
unsafe fn scan(_: *const (), _: &mut Control) -> RawScan {
    RawScan::Stop
}

/// # Safety
///
/// See [`count`].
unsafe fn end(data: *const ()) {
    // SAFETY: by contract.
    let data = unsafe { &*data.cast::<Data>() };
    // SAFETY: the one writer, which loom checks.
    data.value.with_mut(|value| unsafe { *value = 0 });
    data.nr_drops.fetch_add(1, Ordering::Relaxed);
}

fn shrinker(data: &Arc<Data>) -> RawShrinker {
    RawShrinker {
        data: Arc::as_ptr(data).cast(),
        count,
        scan,
        drop: end,
        name: ShrinkerName::new("model"),
        place: Place::Direct,
        group_aware: true,
        starts_marked: true,
        seeks: 2,
        batch: 0,
    }
}

/// A reclaimer: calls if it may, and sees to the data if it was left to it.
fn call(slot: &Slot) {
    if slot.begin() != Begun::Yes {
        return;
    }
    let raw = slot.raw().expect("a slot that is called has a shrinker");
    let control = Control {
        group: memcg_accounting::GroupRef::ROOT,
        nr_to_scan: 0,
        nr_scanned: 0,
        priority: 12,
        cause: crate::Cause::Direct,
    };
    // SAFETY: the call has begun and not ended.
    unsafe { (raw.count)(raw.data, &control) };
    if slot.end() {
        finish(slot);
    }
}

fn finish(slot: &Slot) {
    let raw = slot.take().expect("it ends once");
    // SAFETY: the calls are over, and the shrinker was taken out: the one drop.
    unsafe { (raw.drop)(raw.data) };
}

/// Whoever ends it, with or without waiting for the calls.
fn unregister(slot: &Slot, timeout_ms: Option<u32>) {
    slot.retire();
    if slot.wait(0, timeout_ms) == Waited::Over {
        finish(slot);
    }
}

fn against_the_end(callers: u32, timeout_ms: Option<u32>, site: Option<Weakened>) {
    loom::model(move || {
        let (slot, data) = (Arc::new(Slot::weakened(site)), Data::new());
        slot.publish(shrinker(&data), None, 0);
        let threads: Vec<_> = (0..callers)
            .map(|_| {
                // The data outlives the model's end of it, so that a late use is seen by loom.
                let (slot, data) = (slot.clone(), data.clone());
                thread::spawn(move || {
                    call(&slot);
                    drop(data);
                })
            })
            .collect();
        unregister(&slot, timeout_ms);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(data.nr_drops.load(Ordering::Relaxed), 1, "it is dropped once");
    });
}

fn against_the_beginning(site: Option<Weakened>) {
    loom::model(move || {
        let (slot, data) = (Arc::new(Slot::weakened(site)), Data::new());
        let caller = {
            let (slot, data) = (slot.clone(), data.clone());
            thread::spawn(move || {
                call(&slot);
                drop(data);
            })
        };
        slot.publish(shrinker(&data), None, 0);
        caller.join().expect("no panic");
        unregister(&slot, None);
        // The slot is used again.
        let next = Data::new();
        slot.publish(shrinker(&next), None, 0);
        call(&slot);
        unregister(&slot, None);
        assert_eq!(next.nr_drops.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn the_end_waits_for_calls() {
    against_the_end(1, None, None);
    against_the_end(2, None, None);
}

#[test]
fn an_orphan_is_dropped_by_the_last_call() {
    against_the_end(1, Some(0), None);
    against_the_end(2, Some(0), None);
}

#[test]
fn a_call_finds_what_was_registered() {
    against_the_beginning(None);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_test_of_live() {
    against_the_end(1, None, Some(Weakened::LiveTest));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_wait() {
    against_the_end(1, None, Some(Weakened::Wait));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_release_of_a_calls_end() {
    against_the_end(1, None, Some(Weakened::EndRelease));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_acquire_of_the_wait() {
    against_the_end(1, None, Some(Weakened::WaitAcquire));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_acquire_of_a_call() {
    against_the_beginning(Some(Weakened::BeginAcquire));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_release_of_publishing() {
    against_the_beginning(Some(Weakened::PublishRelease));
}
