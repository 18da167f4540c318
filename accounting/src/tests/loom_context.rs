//! Charges, uncharges, pins and questions against the end of groups, on the tree itself.
//!
//! What each thread does is a whole call of the tree; loom interleaves the steps inside. After
//! each run the tree checks its invariants. Each step named in [`Weakened`] is left out once,
//! and a model must see it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::boxed::Box;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::Arc;
use std::vec::Vec;

use loom::model::Builder;
use loom::thread;

use crate::tree::Weakened;
use crate::{GroupRef, Payer, Request, Root, Settings, Source, Stock, Tag, Tree, Want};

const ROOT: GroupRef = GroupRef::ROOT;

// ---- memory of one run ------------------------------------------------------------------

static HEAP: Source = Source { map, unmap };

std::thread_local! {
    /// What is mapped; loom runs the threads of a model on one thread of the system.
    static MAPPED: RefCell<Vec<(*mut u8, Layout)>> = const { RefCell::new(Vec::new()) };
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 4096).expect("a small size")
}

fn map(size: usize) -> *mut u8 {
    // SAFETY: no size that the tree asks for is 0.
    let memory = unsafe { alloc_zeroed(layout(size)) };
    MAPPED.with_borrow_mut(|mapped| mapped.push((memory, layout(size))));
    memory
}

/// # Safety
///
/// See [`Source::unmap`].
unsafe fn unmap(memory: *mut u8, size: usize) {
    MAPPED.with_borrow_mut(|mapped| mapped.retain(|(other, _)| *other != memory));
    // SAFETY: by contract it came from `map` with this size, and nobody uses it.
    unsafe { dealloc(memory, layout(size)) };
}

/// Gives back what the trees of earlier runs, which are gone, have mapped.
fn sweep() {
    for (memory, layout) in MAPPED.take() {
        // SAFETY: mapped with this layout by a run that has ended.
        unsafe { dealloc(memory, layout) };
    }
}

// ---- models -----------------------------------------------------------------------------

pub(super) fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound.get_or_insert(5);
    builder.check(move || {
        sweep();
        model();
    });
}

/// By itself, so that what it takes of loom's small stacks goes back before a model begins.
#[inline(never)]
pub(super) fn tree(left_out: Option<Weakened>) -> Arc<Tree> {
    let tree = Arc::new(Tree::weakened(left_out));
    assert!(tree.make(Root::Untracked, &HEAP));
    tree
}

#[inline(never)]
fn stock() -> Box<Stock> {
    Box::new(Stock::new())
}

pub(super) fn child(tree: &Tree, parent: GroupRef, name: &str) -> GroupRef {
    tree.create(parent, name, Settings::default()).expect("created")
}

pub(super) fn end(tree: &Tree, group: GroupRef) {
    let mut dying = tree.put(group);
    while let Some(group) = dying {
        dying = tree.offline(group);
    }
}

pub(super) fn charge(tree: &Tree, payer: Payer, bytes: u64) -> Tag {
    tree.charge(payer, Want::exactly(bytes)).expect("no limit").tag
}

/// Runs `f` beside the rest of a model.
pub(super) fn beside<T: 'static>(
    tree: &Arc<Tree>,
    f: impl FnOnce(&Tree) -> T + 'static,
) -> thread::JoinHandle<T> {
    let tree = Arc::clone(tree);
    thread::spawn(move || f(&tree))
}

fn live_contexts(tree: &Tree) -> usize {
    (1..tree.contexts.len())
        .filter(|&tag| tree.contexts.get(tag).is_some_and(|context| !context.is_idle()))
        .count()
}

/// Nothing is charged, and `contexts` are alive.
pub(super) fn is_at_rest(tree: &Tree, top: GroupRef, contexts: usize) {
    tree.check();
    assert_eq!((tree.usage(top), tree.nr_contexts(top)), (0, 0));
    assert_eq!(live_contexts(tree), contexts);
}

/// Says that `model` sees the difference: it panics with `step` left out.
pub(super) fn is_needed(step: Weakened, model: fn(Option<Weakened>)) {
    let run = AssertUnwindSafe(|| model(Some(step)));
    let panic = catch_unwind(run).expect_err("the model passes without it");
    let text = panic.downcast_ref::<String>().map_or("", String::as_str);
    assert!(!text.contains("exceeded"), "it fails by what it checks, not by {text:?}");
}

/// A charge and its uncharge, while the group goes.
#[test]
fn loom_charge_and_uncharge_against_offline() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let payer = tree.payer(b);
        let other = beside(&tree, move |tree| {
            let tag = charge(tree, payer, 10);
            assert!(tag == payer.tag || tag.is_nobody());
            tree.uncharge(tag, 10);
        });
        end(&tree, b);
        other.join().expect("no panic");
        is_at_rest(&tree, a, 1);
        assert!(tree.peak(a) == 10 || tree.peak(a) == 0);
    });
}

/// Two threads charge through one tag, one more takes it and its parent away.
#[test]
fn loom_two_charge_against_a_chain_of_ends() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let c = child(&tree, b, "c");
        let payer = tree.payer(c);
        assert_eq!(tree.put(b), None);
        let others =
            [3, 4].map(|bytes| beside(&tree, move |tree| (charge(tree, payer, bytes), bytes)));
        end(&tree, c);
        let charges = others.map(|other| other.join().expect("no panic"));
        let paid: u64 =
            charges.iter().filter(|(tag, _)| !tag.is_nobody()).map(|(_, bytes)| bytes).sum();
        assert_eq!(tree.usage(a), paid);
        tree.check();
        tree.uncharge_all(&charges);
        is_at_rest(&tree, a, 1);
    });
}

/// Uncharges of several trees take each tree's own lock.
#[test]
fn loom_uncharges_of_two_trees_against_charges() {
    explore(|| {
        let tree = tree(None);
        let tops = [child(&tree, ROOT, "a"), child(&tree, ROOT, "b")];
        let tags = tops.map(|top| charge(&tree, tree.payer(top), 10));
        let other = beside(&tree, move |tree| tree.uncharge_all(&[(tags[0], 1), (tags[1], 2)]));
        let payer = tree.payer(tops[1]);
        assert_eq!(charge(&tree, payer, 5), payer.tag);
        other.join().expect("no panic");
        assert_eq!(tops.map(|top| tree.usage(top)), [9, 13]);
        tree.check();
    });
}

/// Bytes that were charged before are the parent's after, exactly; the last of them free the
/// tag, whoever is last.
#[test]
fn loom_uncharge_against_offline() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let tag = charge(&tree, tree.payer(b), 10);
        let other = beside(&tree, move |tree| {
            tree.uncharge(tag, 4);
            tree.uncharge_all(&[(tag, 6)]);
        });
        end(&tree, b);
        assert!([0, 6, 10].contains(&tree.usage(a)));
        other.join().expect("no panic");
        is_at_rest(&tree, a, 1);
    });
}

/// Two ends, one above the other, while the way is resolved and let go.
fn chain_of_ends(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let c = child(&tree, b, "c");
        let tag = charge(&tree, tree.payer(c), 10);
        assert_eq!(tree.put(b), None);
        let other = beside(&tree, move |tree| {
            let owner = tree.owner(tag).expect("bytes keep the tag");
            assert!(owner == a || owner == b || owner == c);
            tree.uncharge(tag, 10);
        });
        end(&tree, c);
        other.join().expect("no panic");
        is_at_rest(&tree, a, 1);
    });
}

#[test]
fn loom_resolve_against_a_chain_of_ends() {
    chain_of_ends(None);
}

#[test]
fn loom_needs_the_pin_of_the_target() {
    is_needed(Weakened::PinTarget, chain_of_ends);
}

/// Two threads compress the same way at once.
#[test]
fn loom_two_resolve_one_way() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let c = child(&tree, b, "c");
        let tag = charge(&tree, tree.payer(c), 10);
        assert_eq!(tree.put(b), None);
        end(&tree, c);
        let other = beside(&tree, move |tree| tree.uncharge(tag, 3));
        assert_eq!(tree.owner(tag), Some(a));
        tree.uncharge(tag, 7);
        other.join().expect("no panic");
        is_at_rest(&tree, a, 1);
    });
}

/// A thread charges as a group that goes, and whose tag another group takes over.
fn old_payer(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let payer = tree.payer(b);
        let other = beside(&tree, move |tree| {
            let tag = charge(tree, payer, 10);
            tree.uncharge(tag, 10);
        });
        end(&tree, b);
        let c = child(&tree, a, "c");
        other.join().expect("no panic");
        assert_eq!(tree.peak(c), 0, "nobody charges a stranger");
        is_at_rest(&tree, a, 2);
    });
}

#[test]
fn loom_an_old_payer_never_charges_a_stranger() {
    old_payer(None);
}

#[test]
fn loom_needs_the_generation() {
    is_needed(Weakened::Generation, old_payer);
}

/// A scope of a group that goes is left open; the thread enters the group that takes over the tag, and
/// comes back to the old scope.
fn leaked_scope(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let leaked = tree.payer(b);
        let other = beside(&tree, move |tree| {
            end(tree, b);
            child(tree, a, "c")
        });
        let mut stock = stock();
        let empty = |stock: &mut Stock| stock.prune(|_| true, |tag| tree.unpin(tag));
        if tree.settle(&mut stock, leaked, Tag::NOBODY) {
            let owner = tree.owner(leaked.tag);
            assert!(owner == Some(a) || owner == Some(b), "its entry keeps the tag: {owner:?}");
            empty(&mut stock);
        }
        let c = other.join().expect("no panic");
        let stranger = tree.payer(c);
        assert!(tree.settle(&mut stock, stranger, Tag::NOBODY));
        if tree.settle(&mut stock, leaked, stranger.tag) {
            assert_eq!(tree.owner(leaked.tag), Some(a), "what is paid by tag is paid by the heir");
        }
        empty(&mut stock);
        is_at_rest(&tree, a, 2);
    });
}

#[test]
fn loom_a_leaked_scope_never_pays_as_a_stranger() {
    leaked_scope(None);
}

#[test]
fn loom_needs_the_generation_of_an_entry() {
    is_needed(Weakened::WholePayer, leaked_scope);
}

/// A pinned tag is not taken over.
#[test]
fn loom_pin_against_offline() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let b = child(&tree, a, "b");
        let payer = tree.payer(b);
        let other = beside(&tree, move |tree| {
            if tree.pin(payer) {
                let owner = tree.owner(payer.tag);
                assert!(owner == Some(a) || owner == Some(b), "{owner:?}");
                tree.unpin(payer.tag);
            }
        });
        end(&tree, b);
        child(&tree, a, "c");
        other.join().expect("no panic");
        is_at_rest(&tree, a, 2);
    });
}

/// Somebody asks with a tag that is free, while its record goes to a tree with another lock and
/// is used there.
fn old_tag(left_out: Option<Weakened>) {
    explore(move || {
        let tree = tree(left_out);
        let (x, y) = (child(&tree, ROOT, "x"), child(&tree, ROOT, "y"));
        let stripe = |group| tree.group(group).expect("online").stripe();
        assert_ne!(stripe(x), stripe(y));
        // Two tags that lead on into the tree of `x` are free, the lower one first in line.
        let low = child(&tree, x, "low");
        let lower = child(&tree, low, "lower");
        let old = tree.payer(lower).tag;
        assert_eq!(tree.put(low), None);
        end(&tree, lower);
        let other = beside(&tree, move |tree| {
            tree.contains(x, old);
        });
        let b = child(&tree, y, "b");
        let c = child(&tree, b, "c");
        assert_eq!(charge(&tree, tree.payer(c), 10), old);
        assert_eq!(tree.put(b), None);
        end(&tree, c);
        tree.uncharge(old, 10);
        other.join().expect("no panic");
        is_at_rest(&tree, y, 2);
    });
}

#[test]
fn loom_an_old_tag_changes_nothing_in_another_tree() {
    old_tag(None);
}

#[test]
fn loom_needs_the_second_look_at_the_stripe() {
    is_needed(Weakened::StripeAgain, old_tag);
}

#[test]
fn loom_needs_the_lock_that_a_context_leaves() {
    is_needed(Weakened::MoveLock, old_tag);
}

/// Somebody's credit and the end of the request: every byte is counted once.
#[test]
fn loom_credit_against_close() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let payer = tree.payer(a);
        let garbage = charge(&tree, payer, 10);
        let request = Arc::new(Request::new());
        assert!(tree.open_request(&request, payer, a, 6));
        let asked = Arc::clone(&request);
        let other = beside(&tree, move |tree| tree.uncharge_for(garbage, 10, &asked));
        let credit = tree.close_request(&request);
        other.join().expect("no panic");
        assert!(credit == 0 || credit == 6, "{credit}");
        assert_eq!(tree.usage(a), 0);
        is_at_rest(&tree, a, 1);
    });
}

/// The last handle goes while somebody finds the group by name: it ends once, or lives on.
#[test]
fn loom_the_last_handle_against_a_lookup() {
    explore(|| {
        let tree = tree(None);
        let a = child(&tree, ROOT, "a");
        let other = beside(&tree, move |tree| {
            let found = tree.lookup("/a");
            assert!(found.is_none() || found == Some(a));
            found.is_some_and(|found| tree.put(found).map(|dying| tree.offline(dying)).is_some())
        });
        let ended = tree.put(a).map(|dying| tree.offline(dying)).is_some();
        assert!(ended ^ other.join().expect("no panic"), "one of the two ends it");
        is_at_rest(&tree, ROOT, 0);
        assert_eq!(tree.nr_descendants(ROOT), 0);
    });
}
