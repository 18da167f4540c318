//! Contexts: what becomes of tags when groups go.

use super::support::{charge, charge_as, child, end, limited, live_contexts, offline, tree};
use crate::{GroupRef, Limit, Payer, Root, Settings, Tag, Tree, Want};

const ROOT: GroupRef = GroupRef::ROOT;

/// Groups `/0/1/2/…`, each below the one before.
fn chain<const N: usize>(tree: &Tree) -> [GroupRef; N] {
    let mut above = ROOT;
    core::array::from_fn(|i| {
        let settings = Settings { max_depth: Some(Limit::Max), ..Settings::default() };
        above = tree.create(above, &std::format!("{i}"), settings).expect("created");
        above
    })
}

#[test]
fn bytes_of_a_group_that_is_gone_are_its_parents() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = child(tree, a, "b");
    let tag = charge(tree, b, 30);
    end(tree, b);
    assert_eq!((tree.usage(a), tree.owner(tag)), (30, Some(a)), "charges do not move");
    assert_eq!((tree.nr_contexts(a), tree.is_forwarded(tag)), (1, true));
    assert!(tree.contains(a, tag) && tree.contains(ROOT, tag) && !tree.contains(b, tag));
    tree.check();
    tree.uncharge(tag, 10);
    assert_eq!((tree.usage(a), tree.nr_contexts(a)), (20, 1));
    tree.uncharge(tag, 20);
    assert_eq!((tree.usage(a), tree.nr_contexts(a), tree.owner(tag)), (0, 0, None));
    tree.check();
}

#[test]
fn a_chain_of_ends_leads_to_whoever_is_left() {
    let tree = tree(Root::Untracked);
    let [a, b, c, d] = chain(tree);
    let tags = [b, c, d].map(|group| charge(tree, group, 10));
    assert_eq!((tree.put(b), tree.put(c)), (None, None));
    let dying = tree.put(d).expect("the last handle");
    let dying = tree.offline(dying).expect("c was kept by d alone");
    assert_eq!(tags.map(|tag| tree.owner(tag)), [Some(b), Some(c), Some(c)]);
    assert_eq!(tree.nr_contexts(c), 1);
    tree.check();
    offline(tree, Some(dying));
    assert_eq!(tags.map(|tag| tree.owner(tag)), [Some(a); 3]);
    assert_eq!((tree.usage(a), tree.nr_contexts(a), live_contexts(tree)), (30, 3, 4));
    tree.check();
    for (i, tag) in [(1, tags[1]), (2, tags[0]), (3, tags[2])] {
        tree.uncharge(tag, 10);
        assert_eq!((tree.nr_contexts(a), live_contexts(tree)), (3 - i, 4 - i as usize));
        tree.check();
    }
    assert_eq!(tree.usage(a), 0);
}

#[test]
fn resolving_compresses_and_frees_what_stood_between() {
    let tree = tree(Root::Untracked);
    let [a, b, c, d] = chain(tree);
    let tag = charge(tree, d, 10);
    assert_eq!((tree.put(b), tree.put(c)), (None, None));
    end(tree, d);
    assert_eq!((live_contexts(tree), tree.nr_contexts(a)), (4, 3), "each pins the next");
    assert_eq!(tree.owner(tag), Some(a));
    assert_eq!((live_contexts(tree), tree.nr_contexts(a)), (2, 1));
    tree.check();
    tree.uncharge(tag, 10);
    assert_eq!((live_contexts(tree), tree.nr_contexts(a)), (1, 0));
    tree.check();
}

#[test]
fn a_long_chain_is_freed_in_one_go() {
    let tree = tree(Root::Untracked);
    let groups: [GroupRef; 200] = chain(tree);
    let payer = tree.payer(groups[199]);
    assert!(tree.pin(payer));
    for &group in &groups[1..] {
        end(tree, group);
    }
    assert_eq!(live_contexts(tree), 200);
    tree.unpin(payer.tag);
    assert_eq!((live_contexts(tree), tree.nr_contexts(groups[0])), (1, 0));
    tree.check();
}

#[test]
fn tags_are_reused_and_old_payers_are_strangers() {
    let tree = tree(Root::Untracked);
    let old = child(tree, ROOT, "old");
    let stale = tree.payer(old);
    end(tree, old);
    assert_eq!(tree.charge(stale, Want::exactly(5)).map(|c| c.tag), Ok(Tag::NOBODY), "free");
    let new = limited(tree, ROOT, "new", 100);
    let payer = tree.payer(new);
    assert_eq!(payer.tag, stale.tag, "the tag is used again");
    assert_ne!(payer.generation, stale.generation);
    assert_eq!(tree.charge(stale, Want::exactly(500)).map(|c| c.tag), Ok(Tag::NOBODY));
    assert_eq!(tree.force(stale, 5).tag, Tag::NOBODY);
    assert!(!tree.pin(stale));
    assert_eq!((tree.usage(new), tree.peak(new)), (0, 0));
    tree.check();
}

#[test]
fn the_payer_of_a_gone_group_is_its_parent_while_the_tag_lives() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 50);
    let b = child(tree, a, "b");
    let payer = tree.payer(b);
    charge_as(tree, payer, 20);
    end(tree, b);
    assert_eq!(charge_as(tree, payer, 20), payer.tag);
    assert_eq!(tree.usage(a), 40);
    assert_eq!(tree.charge(payer, Want::exactly(11)).map_err(|over| over.group), Err(a));
    tree.set_on_limit(a, crate::OnLimit::OvercommitBy(7));
    assert_eq!(tree.policy_of(payer), crate::OnLimit::OvercommitBy(7));
    tree.uncharge(payer.tag, 40);
    assert_eq!(tree.charge(payer, Want::exactly(1)).map(|c| c.tag), Ok(Tag::NOBODY));
    tree.check();
}

#[test]
fn a_pin_keeps_a_tag_from_being_reused() {
    let tree = tree(Root::Untracked);
    let a = child(tree, ROOT, "a");
    let b = child(tree, a, "b");
    let payer = tree.payer(b);
    assert!(tree.pin(payer) && tree.pin(payer));
    end(tree, b);
    assert_eq!((tree.nr_contexts(a), tree.owner(payer.tag)), (1, Some(a)));
    let c = child(tree, a, "c");
    assert_ne!(tree.payer(c).tag, payer.tag);
    tree.unpin(payer.tag);
    assert!(tree.pin(payer), "one is left");
    tree.unpin(payer.tag);
    tree.unpin(payer.tag);
    assert!(!tree.pin(payer));
    let d = child(tree, a, "d");
    assert_eq!(tree.payer(d).tag, payer.tag);
    tree.check();
}

#[test]
fn a_top_level_group_goes_to_nobody_or_to_the_accounted_root() {
    for root in [Root::Untracked, Root::Accounted] {
        let tree = tree(root);
        let a = child(tree, ROOT, "a");
        let payer = tree.payer(a);
        let tag = charge_as(tree, payer, 10);
        end(tree, a);
        let later = tree.charge(payer, Want::exactly(1)).expect("fits");
        if root == Root::Untracked {
            assert_eq!((tree.owner(tag), tree.usage(ROOT)), (None, 0));
            assert_eq!((later.tag, tree.nr_contexts(ROOT)), (Tag::NOBODY, 0));
            assert_eq!(live_contexts(tree), 1);
        } else {
            assert_eq!((tree.owner(tag), tree.usage(ROOT)), (Some(ROOT), 11));
            assert_eq!((later.tag, tree.nr_contexts(ROOT)), (tag, 1));
            tree.uncharge(tag, 1);
        }
        tree.check();
        tree.uncharge(tag, 10);
        assert_eq!((tree.usage(ROOT), tree.nr_contexts(ROOT)), (0, 0));
        assert_eq!(live_contexts(tree), usize::from(root == Root::Accounted));
        tree.check();
    }
}

#[test]
fn compression_towards_nobody_frees_the_way() {
    let tree = tree(Root::Untracked);
    let [a, b, c] = chain(tree);
    let tag = charge(tree, c, 10);
    assert_eq!((tree.put(a), tree.put(b)), (None, None));
    end(tree, c);
    assert_eq!(live_contexts(tree), 3);
    assert_eq!(tree.owner(tag), None);
    assert_eq!(live_contexts(tree), 1);
    tree.uncharge(tag, 10);
    assert_eq!(live_contexts(tree), 0);
    tree.check();
}

#[test]
fn asking_with_a_tag_that_is_free_changes_nothing() {
    let tree = tree(Root::Untracked);
    let [a, b, c] = chain(tree);
    let free = tree.payer(c).tag;
    let between = tree.payer(b).tag;
    assert_eq!(tree.put(b), None);
    end(tree, c);
    assert_eq!(live_contexts(tree), 1);
    // The free record still leads to `between`, which is somebody else's now.
    let next = child(tree, a, "next");
    assert_eq!(tree.payer(next).tag, between);
    assert!(!tree.contains(a, free));
    assert_eq!(tree.owner(free), None);
    assert_eq!(tree.owner_handle(free), None);
    tree.check();
    tree.uncharge(free, 0);
    tree.uncharge_all(&[(free, 0)]);
    tree.check();
    let unknown = Tag::from_bits(1 << 20);
    assert_eq!((tree.owner(unknown), tree.contains(a, unknown)), (None, false));
    assert!(!tree.pin(Payer { tag: unknown, generation: 1 }));
    tree.uncharge(unknown, 1);
    tree.check();
}

#[test]
fn the_owner_of_a_dying_groups_bytes_is_its_parent_already() {
    for root in [Root::Untracked, Root::Accounted] {
        let tree = tree(root);
        let a = child(tree, ROOT, "a");
        let b = child(tree, a, "b");
        let tag = charge(tree, b, 10);
        assert_eq!(tree.owner_handle(tag), Some(b));
        end(tree, b);
        let dying = tree.put(b).expect("the last handle");
        assert_eq!(tree.owner_handle(tag), Some(a));
        end(tree, a);
        assert_eq!(tree.put(a), None, "b keeps it");
        let dying = tree.offline(dying).expect("a was kept by b alone");
        let above = (root == Root::Accounted).then_some(ROOT);
        assert_eq!(tree.owner_handle(tag), above);
        offline(tree, Some(dying));
        assert_eq!(tree.owner_handle(tag), above);
        tree.uncharge(tag, 10);
        tree.check();
    }
}

#[test]
fn charges_of_a_dying_group_still_meet_its_limit() {
    let tree = tree(Root::Untracked);
    let a = limited(tree, ROOT, "a", 100);
    let b = limited(tree, a, "b", 10);
    let payer = tree.payer(b);
    charge_as(tree, payer, 10);
    let dying = tree.put(b).expect("the last handle");
    assert_eq!(tree.charge(payer, Want::exactly(1)).map_err(|over| over.group), Err(b));
    assert_eq!(tree.max(b), Limit::Bytes(10));
    offline(tree, Some(dying));
    charge_as(tree, payer, 90);
    assert_eq!(tree.charge(payer, Want::exactly(1)).map_err(|over| over.group), Err(a));
    tree.check();
}

#[test]
fn a_tag_that_moves_to_another_tree_takes_its_new_lock() {
    let tree = tree(Root::Untracked);
    let old = child(tree, ROOT, "old");
    let stripe = |group| tree.group(group).expect("online").stripe();
    let (tag, before) = (tree.payer(old).tag, stripe(old));
    end(tree, old);
    let new = child(tree, ROOT, "new");
    assert_eq!(tree.payer(new).tag, tag);
    assert_ne!(stripe(new), before);
    assert_eq!(tree.contexts.get(tag.to_bits()).map(|context| context.stripe()), Some(stripe(new)));
    charge(tree, new, 5);
    tree.check();
}
