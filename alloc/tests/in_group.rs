//! Futures in groups: entered for polls and for the drop, ended over the limit.

use std::cell::RefCell;
use std::future::{self, Future};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use memcg::{FutureExt, Group, OnLimit};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::new();

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Pending once, then ready.
async fn pause() {
    let mut paused = false;
    future::poll_fn(|_| {
        if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Notes the current group when it is dropped.
struct OnDrop(Rc<RefCell<Vec<String>>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let current = Group::current();
        memcg::unaccounted(|| self.0.borrow_mut().push(current.path()));
    }
}

#[test]
fn a_future_runs_and_drops_in_its_group() {
    let group = Group::root().create("ig-run").expect("made");
    let notes = Rc::new(RefCell::new(Vec::new()));
    let on_drop = OnDrop(notes.clone());
    let future = async move {
        let _on_drop = on_drop;
        let first = Group::current();
        pause().await;
        (first, Group::current(), Box::new([0u8; 100]))
    };
    let mut future = pin!(future.in_group(&group));
    assert!(poll(future.as_mut()).is_pending());
    assert_eq!(Group::current(), Group::root(), "between polls it is not entered");
    let Poll::Ready((first, second, object)) = poll(future.as_mut()) else { panic!("ready") };
    assert_eq!([&first, &second], [&group, &group]);
    assert_eq!(Group::of(&raw const *object), Some(group));
    assert_eq!(*notes.borrow(), ["/ig-run"]);
}

#[test]
fn a_future_that_is_dropped_before_its_end_drops_in_its_group() {
    let group = Group::root().create("ig-drop").expect("made");
    let notes = Rc::new(RefCell::new(Vec::new()));
    for polls in 0..2 {
        let on_drop = OnDrop(notes.clone());
        let future = async move {
            let _on_drop = on_drop;
            pause().await;
            pause().await;
        };
        let mut future = Box::pin(future.in_group(&group));
        for _ in 0..polls {
            assert!(poll(future.as_mut()).is_pending());
        }
        drop(future);
    }
    assert_eq!(*notes.borrow(), ["/ig-drop", "/ig-drop"]);
    assert_eq!(Group::current(), Group::root());
}

#[test]
fn the_current_group_can_be_taken_along_and_is_kept_online() {
    let group = Group::root().create("ig-current").expect("made");
    let future = group.run(|| async { Group::current().path() }.in_current_group());
    assert_eq!(future.group(), &group);
    drop(group);
    assert!(Group::lookup("/ig-current").is_some(), "the future has a handle");
    assert_eq!(poll(pin!(future)), Poll::Ready("/ig-current".to_owned()));
    assert!(Group::lookup("/ig-current").is_none());
}

#[test]
fn a_panic_leaves_the_thread_where_it_was() {
    let group = Group::root().create("ig-panic").expect("made");
    let polled = std::panic::catch_unwind(|| {
        let future = async { panic!("told to") }.in_group(&group);
        poll(pin!(future))
    });
    assert!(polled.is_err());
    assert_eq!(Group::current(), Group::root());
}

#[test]
fn groups_nest() {
    let outer = Group::root().create("ig-outer").expect("made");
    let inner = outer.create("inner").expect("made");
    let future = async {
        let in_inner = async { Group::current().path() }.in_group(&inner).await;
        (in_inner, Group::current().path())
    };
    let polled = poll(pin!(future.in_group(&outer)));
    assert_eq!(polled, Poll::Ready(("/ig-outer/inner".to_owned(), "/ig-outer".to_owned())));
}

#[test]
fn over_the_limit_the_future_ends_at_the_next_poll() {
    let group = Group::root()
        .builder("ig-over")
        .max(64 << 10)
        .on_limit(OnLimit::Overcommit)
        .build()
        .expect("made");
    let notes = Rc::new(RefCell::new(Vec::new()));
    let on_drop = OnDrop(notes.clone());
    let future = async move {
        let _on_drop = on_drop;
        let mut kept = Vec::new();
        for _ in 0..100 {
            kept.push(vec![0u8; 10 << 10]);
            pause().await;
        }
        kept.len()
    };
    let mut future = pin!(future.in_group(&group).until_over_limit());
    let mut polls = 0;
    let over = loop {
        match poll(future.as_mut()) {
            Poll::Pending => polls += 1,
            Poll::Ready(result) => break result.expect_err("it is over the limit"),
        }
    };
    assert!((5..=7).contains(&polls), "{polls} polls");
    assert_eq!(over.group(), Some(group.clone()));
    assert!(over.usage() > over.max() && over.max() == 64 << 10);
    assert_eq!(*notes.borrow(), ["/ig-over"], "it was dropped, inside its group");
    memcg::drain();
    assert_eq!(group.usage(), 0);
    assert!(group.check().is_ok());
}

#[test]
fn a_poll_that_is_ready_wins() {
    let group = Group::root()
        .builder("ig-ready")
        .max(64 << 10)
        .on_limit(OnLimit::Overcommit)
        .build()
        .expect("made");
    let future = async { vec![0u8; 100 << 10] }.in_group(&group).until_over_limit();
    let Poll::Ready(Ok(large)) = poll(pin!(future)) else { panic!("it is ready") };
    let over = group.check().expect_err("it is over the limit");
    assert!(over.usage() >= 100 << 10);
    let ended = poll(pin!(async {}.in_group(&group).until_over_limit()));
    assert!(matches!(ended, Poll::Ready(Err(_))), "looks before the first poll too");
    drop(large);
}
