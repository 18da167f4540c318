//! Counts near their ends: what would wrap is set there, and does not.

use std::vec::Vec;

use super::support::{charge, charge_as, child, end, tree};
use crate::{GroupRef, Root, Tree};

const ROOT: GroupRef = GroupRef::ROOT;

/// Runs `f` in a child process; answers how it ended and what it said on standard error.
fn in_a_child(f: impl FnOnce()) -> (i32, Vec<u8>) {
    let mut pipe = [0; 2];
    // SAFETY: there is room for two.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the child does what `f` does, and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // SAFETY: both are open.
        unsafe { libc::dup2(pipe[1], libc::STDERR_FILENO) };
        f();
        // SAFETY: it ends the child at once.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: it is open, and not used any more.
    unsafe { libc::close(pipe[1]) };
    let mut said = std::vec![0; 1000];
    // SAFETY: there is room for as much.
    let len = unsafe { libc::read(pipe[0], said.as_mut_ptr().cast(), said.len()) };
    // SAFETY: it is open, and not used any more.
    unsafe { libc::close(pipe[0]) };
    said.truncate(usize::try_from(len).expect("read"));
    let mut status = 0;
    // SAFETY: the child is ours, and the place is valid.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    (status, said)
}

fn leak(tree: &Tree, group: GroupRef, handles: u32) {
    tree.group(group).expect("online").leak_handles(handles);
}

#[test]
fn more_handles_than_can_be_counted_end_the_process() {
    let tree = tree(Root::Untracked);
    let group = child(tree, ROOT, "a");
    leak(tree, group, (1 << 31) - 2);
    tree.get(group);
    assert_eq!(tree.put(group), None);
    tree.get(group);
    let (status, said) = in_a_child(|| tree.get(group));
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT, "{status:#x}");
    assert!(said.starts_with(b"memcg: more than 2^31 handles"), "{said:?}");
    // An online child is a handle, too.
    let (status, _) = in_a_child(|| _ = child(tree, group, "b"));
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
}

#[test]
fn a_slot_whose_generations_are_used_up_is_not_used_again() {
    let tree = tree(Root::Untracked);
    let first = child(tree, ROOT, "a");
    let slot = first.index();
    let record = tree.groups.get(slot).expect("there");
    record.wear(u32::MAX - 2);
    let worn = tree.lookup("/a").expect("online");
    assert_eq!((tree.put(worn), worn.generation()), (None, u32::MAX - 2));
    end(tree, worn);
    let last = child(tree, ROOT, "a");
    assert_eq!((last.index(), last.generation()), (slot, u32::MAX - 1));
    end(tree, last);
    tree.check();
    let next = child(tree, ROOT, "a");
    assert_ne!(next.index(), slot, "a reference to the first would be one to this");
    assert!(!tree.exists(first) && !tree.exists(last));
    tree.check();
}

#[test]
fn a_tag_whose_generations_are_used_up_is_not_used_again() {
    let tree = tree(Root::Untracked);
    let first = child(tree, ROOT, "a");
    let tag = tree.payer(first).tag;
    tree.context(tag).expect("used").wear(u32::MAX - 1);
    let worn = tree.payer(first);
    assert_eq!(charge_as(tree, worn, 1), tag);
    tree.uncharge(tag, 1);
    end(tree, first);
    tree.check();
    let next = child(tree, ROOT, "b");
    assert_ne!(tree.payer(next).tag, tag, "a scope that was leaked would pay as this one");
    assert!(!tree.pin(worn), "nobody's");
    charge(tree, next, 1);
    tree.check();
}

#[test]
fn a_group_has_the_lock_and_the_number_of_its_context_after_any_number_of_trees() {
    let tree = tree(Root::Untracked);
    for nth in [0, 60_000, 1 << 24, u32::MAX - 70] {
        tree.skip_trees(nth);
        for _ in 0..100 {
            let group = child(tree, ROOT, "a");
            let tag = tree.payer(group).tag;
            assert_eq!(tree.number_of_group(group), Some(tree.number_of(tag)), "tree {nth}");
            charge(tree, group, 1);
            assert!(tree.contains(group, tag));
            tree.check();
            tree.uncharge(tag, 1);
            end(tree, group);
        }
    }
}
