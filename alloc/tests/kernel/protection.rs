//! `test_memcg_min` and `test_memcg_low`, after `test_memcg_protection` in `test_memcontrol.c`.
//!
//! ```text
//!   A             max 200M
//!   ├─ B          protected 50M
//!   │  ├─ C       protected 75M,  cached 50M    ─► about 29M
//!   │  ├─ D       protected 25M,  cached 50M    ─► about 21M
//!   │  ├─ E       not protected,  cached 50M    ─► about 0
//!   │  └─ F       protected 500M, cached 0      ─► 0
//!   └─ G          pins 148M, then 170M
//! ```
//!
//! C and D claim more than B has, so each gets of it in proportion to what it uses; as they
//! shrink, so do their claims, until what is left of all three is B's 50M: 29 to 21 is where the
//! kernel's model (`memcg_protection.m`) ends.

use memcg::Group;

use crate::support::running;
use crate::{MIB, PageCache, Pinned, assert_close, group, patient, task};

/// Which protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Min,
    Low,
}

impl Kind {
    fn protect(self, group: &Group, bytes: u64) {
        match self {
            Kind::Min => group.set_min(bytes),
            Kind::Low => group.set_low(bytes),
        }
        .expect("tracked");
    }
}

fn protection(kind: Kind) {
    let a = group(if kind == Kind::Min { "min" } else { "low" });
    a.set_max(200 * MIB).expect("empty");
    let b = patient(a.builder("B"));
    let [c, d, e, f] = ["C", "D", "E", "F"].map(|name| patient(b.builder(name)));
    let g = patient(a.builder("G"));
    let pages = PageCache::new("protected");
    for leaf in [&c, &d, &e] {
        task(|| pages.read(leaf, 50 * MIB)).expect("150M of 200M");
    }
    memcg::drain();
    assert_eq!(b.usage(), 150 * MIB);
    kind.protect(&b, 50 * MIB);
    for (leaf, bytes) in [(&c, 75), (&d, 25), (&e, 0), (&f, 500)] {
        kind.protect(leaf, bytes * MIB);
    }

    // All that is not protected gives way.
    assert!(task(|| Pinned::new(&g, 148 * MIB).complete));
    memcg::drain();
    let usages = [&b, &c, &d, &e, &f].map(Group::usage);
    println!("{kind:?}: B, C, D, E, F: {:?} KiB", usages.map(|usage| usage >> 10));
    // What G leaves it: not less than is protected, and 2M more.
    assert!((50 * MIB..=52 * MIB).contains(&usages[0]), "B: {}", usages[0]);
    assert_close("C", usages[1], 29 * MIB, 15);
    assert_close("D", usages[2], 21 * MIB, 20);
    assert!(usages[3] <= 2 * MIB, "E: {}", usages[3]);
    assert_eq!(usages[4], 0, "F");
    assert_eq!(pages.bytes_in(&c) + pages.bytes_in(&d) + pages.bytes_in(&e), usages[0]);
    assert_eq!(a.events().oom, 0);

    // What is protected gives way only where it is by `low`, and that is counted.
    let lows = [&c, &d, &e, &f].map(|leaf| leaf.events().low);
    assert_eq!(lows, [0; 4], "there was enough besides");
    let complete = task(|| Pinned::new(&g, 170 * MIB).complete);
    memcg::drain();
    println!("{kind:?}: B has {} KiB after 170M", b.usage() >> 10);
    match kind {
        Kind::Min => {
            assert!(!complete);
            assert_close("B", b.usage(), 50 * MIB, 3);
            assert_eq!(a.events_local().oom, 1);
        }
        Kind::Low => {
            assert!(complete);
            assert_close("B", b.usage(), 30 * MIB, 3);
            assert_eq!(a.events_local().oom, 0);
            let lows = [&c, &d, &e, &f].map(|leaf| leaf.events().low);
            assert!(lows[0] > 0 && lows[1] > 0, "C and D: {lows:?}");
            assert_eq!(lows[3], 0, "F had nothing");
        }
    }
    assert!([&c, &d, &e, &f].iter().all(|leaf| leaf.events().oom == 0));

    // The target of reclaim is not protected against it, whatever it was granted before.
    let others = d.usage();
    c.shrink_to(10 * MIB).expect("its own protection does not count");
    assert!(c.usage() <= 10 * MIB);
    assert_close("C", c.usage(), 10 * MIB, 3);
    assert_eq!(d.usage(), others, "nobody else was asked");
}

/// `min` is never reclaimed; a refusal comes first.
#[test]
fn test_memcg_min() {
    let _running = running();
    protection(Kind::Min);
}

/// `low` is reclaimed only when nothing else is left, and that is an event.
#[test]
fn test_memcg_low() {
    let _running = running();
    protection(Kind::Low);
}
