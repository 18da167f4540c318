//! After `test_kmem.c`.

use std::thread;
use std::time::{Duration, Instant};

use memcg::{Cache, Group};

use crate::support::{alone, running};
use crate::{MIB, PAGE, Pinned, group, patient, task};

/// Dentries: objects of about 200 bytes.
type Dentries = Cache<u64, [u8; 130]>;

/// Looks up `nr` names that are not there yet.
fn look_up(dentries: &Dentries, group: &Group, first: u64, nr: u64) {
    for key in first..first + nr {
        group.run(|| dentries.insert(key, [1; 130])).expect("no limit");
    }
}

/// What an entry takes.
fn size_of_entry(dentries: &Dentries, group: &Group) -> u64 {
    group.stat().slab / dentries.len_in(group) as u64
}

/// 100,000 objects of about 200 bytes give way to 1 MiB, at once and to the byte, by `high` and by
/// `reclaim`. The kernel's test waits a second and is content with half of them.
#[test]
fn test_kmem_basic() {
    let _running = running();
    for by_high in [true, false] {
        let group = group(if by_high { "kmem_basic_high" } else { "kmem_basic_reclaim" });
        let dentries = Dentries::direct("kmem_basic");
        task(|| look_up(&dentries, &group, 0, 100_000));
        let before = group.stat();
        let size = size_of_entry(&dentries, &group);
        assert!((180..=224).contains(&size), "{size} bytes");
        assert_eq!(before.slab, 100_000 * size);

        let start = Instant::now();
        if by_high {
            group.set_high(MIB).expect("tracked");
        } else {
            group.reclaim(group.usage() - MIB).expect("all of it can be had");
        }
        let took = start.elapsed();
        let after = group.stat();
        println!("{} objects went in {took:?}", 100_000 - dentries.len());
        assert!(after.slab <= MIB && group.usage() <= MIB, "{after:?}");
        assert!(after.slab >= MIB - MIB / 8, "no more than was asked for: {after:?}");
        assert_eq!(after.slab, dentries.len_in(&group) as u64 * size);
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

/// 100 children, each with 4 threads that cache 100 objects, are dropped: what the parent's figures
/// say agrees exactly, and all of it can be reclaimed.
#[test]
fn test_kmem_memcg_deletion() {
    let _running = running();
    let parent = group("kmem_deletion");
    let dentries = Dentries::direct("kmem_deletion");
    for index in 0..100_u64 {
        let child = patient(parent.builder(&format!("child {index}")));
        thread::scope(|scope| {
            for thread in 0..4 {
                let (child, dentries) = (&child, &dentries);
                scope.spawn(move || look_up(dentries, child, (index * 4 + thread) * 100, 100));
            }
        });
        assert_eq!(dentries.len_in(&child), 400);
    }
    assert!(parent.children().is_empty());
    assert_eq!(dentries.len_in(&parent), 40_000, "they are the parent's");
    let stat = parent.stat();
    assert_eq!(stat.usage, parent.usage());
    assert_eq!(stat.slab + stat.large, stat.usage);
    assert_eq!(stat.usage, 40_000 * size_of_entry(&dentries, &parent));
    assert_eq!((stat.nr_descendants, stat.nr_contexts), (0, 100));

    assert_eq!(parent.force_empty().expect("nothing is pinned"), stat.usage);
    let stat = parent.stat();
    assert_eq!((stat.usage, parent.usage(), dentries.len()), (0, 0, 0));
    assert_eq!(stat.nr_contexts, 0, "nor are there names of children that are gone");
}

/// Who pays can be asked of all memory at any time. The kernel's test reads the owner of every page
/// of the machine; here the walk is over every object's tag.
#[test]
fn test_kmem_proc_kpagecgroup() {
    let _running = running();
    let group = group("kmem_owner");
    let pinned = Pinned::new(&group, 100 * PAGE);
    assert!(pinned.is_charged_to(&group));
    let objects = |group: &Group| {
        let classes = group.classes();
        let nr_of = |size| classes.iter().find(|class| class.size == size).map(|c| c.objects);
        (classes.iter().map(|class| class.objects).sum::<u64>(), nr_of(PAGE))
    };
    assert_eq!(objects(&group), (100, Some(100)));
    drop(pinned);
    assert_eq!(objects(&group), (0, Some(0)));
}

/// 1,000 objects of a page each are 4,096,000 bytes.
#[test]
fn test_kmem_kernel_stacks() {
    let _running = running();
    let group = group("kmem_stacks");
    let stacks: Vec<Pinned> = (0..10).map(|_| task(|| Pinned::new(&group, 100 * PAGE))).collect();
    assert!(stacks.iter().all(|stack| stack.complete));
    let stat = group.stat();
    assert!(stat.slab >= 4_096_000);
    assert_eq!((stat.slab, stat.usage), (4_096_000, 4_096_000));
}

/// 30 children that cached something are dropped: none is dying afterwards. The kernel's test looks
/// five times, a second apart.
#[test]
fn test_kmem_dead_cgroups() {
    // What is dying is counted for the whole process.
    let _alone = alone();
    let parent = group("kmem_dead");
    let dentries = Dentries::direct("kmem_dead");
    for index in 0..30 {
        let child = patient(parent.builder(&format!("child {index}")));
        task(|| look_up(&dentries, &child, index * 100, 100));
        drop(child);
        assert_eq!(parent.stat().nr_dying, 0);
    }
    let stat = parent.stat();
    assert_eq!((stat.nr_dying, stat.nr_descendants), (0, 0));
    assert_eq!(dentries.len_in(&parent), 3_000);
    drop(dentries);
    memcg::drain();
    assert_eq!(parent.usage(), 0);
    memcg::check();
}

/// 1,000 children cost their parent nothing: the kernel charges what a group takes to the parent, and
/// its test wants usage and `stat` to agree on it. Here it is charged to nobody, and bounded by how
/// many there may be.
#[test]
fn test_percpu_basic() {
    let _running = running();
    let parent = group("percpu");
    parent.set_max_descendants(1000).expect("no other error");
    let children: Vec<Group> = (0..1000)
        .map(|index| parent.create(&format!("child {index}")).expect("as many as there may be"))
        .collect();
    let error = parent.create("one more").expect_err("one too many");
    assert!(error.is_again(), "{error}");
    let stat = parent.stat();
    assert_eq!((stat.usage, parent.usage(), parent.peak()), (0, 0, 0));
    assert_eq!(stat.nr_descendants, 1000);
    drop(children);
    assert_eq!(parent.stat().nr_descendants, 0);
}
