//! What can be read of a group and of the allocator itself.

use memcg_accounting::GroupRef;

use crate::class::Class;
use crate::group::Group;
use crate::peak::PeakReader;
use crate::process::{ENGINE, TREE};
use crate::{budget, central, cooling, drain, maps, objects, record, roster, vector};

/// A group's figures, taken after a drain, so exact. Bytes unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// Charged to the group and below: `slab + large`.
    pub usage: u64,
    /// The part that slab-class objects take.
    pub slab: u64,
    /// The part that large objects take.
    pub large: u64,
    /// Objects that shrinkers looked at in the group itself, and in groups below that are gone.
    pub scanned: u64,
    /// Bytes that came back from there.
    pub reclaimed: u64,
    /// Groups below.
    pub nr_descendants: u64,
    /// Offline groups of the process whose release is queued: 0 at rest.
    pub nr_dying: u64,
    /// Contexts of gone groups that this one pays for.
    pub nr_contexts: u64,
    /// What [`Group::set_max_objects`] bounds; of the root, all of the process.
    pub nr_objects: u64,
}

/// One size class of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStat {
    /// Bytes of an object.
    pub size: u64,
    /// Objects that the group itself pays for, cached ones too.
    pub objects: u64,
}

/// The allocator's own figures. Bytes unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelfStat {
    /// Address space of groups, contexts, thread records, spans' records and maps, of which
    /// only what was touched is memory. Charged to nobody.
    pub metadata: u64,
    /// Tag vectors.
    pub tags: u64,
    /// Pages between live objects that the system has back: address space that spans have, and no memory.
    pub returned: u64,
    /// Threads that have a record.
    pub threads: u64,
    /// Drains so far.
    pub drains: u64,
    /// Microseconds of CPU that cuts took, which come before a refusal, while threads of other tenants were stopped. A
    /// tenant whose cuts take more than 5 % of the time waits at its limit.
    pub stopped_us: u64,
    /// How often a drain gave up on a thread that was stopped in its straight-line work.
    pub given_up: u64,
    /// Objects that threads cache.
    pub cached: u64,
    /// Bytes that were charged over limits since the start because a thread reclaimed (16 MiB over at most) or panicked (16 MiB,
    /// without [`protect_panics`](crate::protect_panics) 64).
    pub overshot: u64,
    /// Threads that run shrinkers: one, and one more for each of `held_workers`.
    pub workers: u64,
    /// Those of them that have been inside one call of the program's code for longer than 20 ms: a shrinker, a waker, a
    /// hook. About 64 at most, of which 4 by wakers and hooks; each keeps its stack, some 20 KiB.
    pub held_workers: u64,
    /// What [`set_max_objects`](crate::set_max_objects) bounds.
    pub objects: u64,
}

impl Stat {
    fn read(group: GroupRef) -> Self {
        let usage = TREE.usage(group);
        let large = TREE.large_bytes(group);
        let (scanned, reclaimed) = ENGINE.scan_counts(group);
        Self {
            usage,
            slab: usage.saturating_sub(large),
            large,
            scanned,
            reclaimed,
            nr_descendants: u64::from(TREE.nr_descendants(group)),
            nr_dying: u64::from(TREE.nr_dying()),
            nr_contexts: u64::from(TREE.nr_contexts(group)),
            nr_objects: objects::nr_objects_of(group),
        }
    }
}

impl Group {
    /// The group's figures. Exact: drains first, so it costs up to milliseconds with many
    /// threads. `slab + large == usage`.
    ///
    /// Source: `memory.stat` and `cgroup.stat`. The kernel's may be 2 s old, and has the kinds of
    /// memory that a kernel knows.
    #[must_use]
    pub fn stat(&self) -> Stat {
        drain::everything(|| Stat::read(self.as_ref())).unwrap_or_default()
    }

    /// Objects by size class that the group itself pays for. Walks the tag vectors of all
    /// spans: `O(spans)`, milliseconds for each GiB of small objects. Drains first.
    #[must_use]
    pub fn classes(&self) -> Vec<ClassStat> {
        drain::drain();
        let own = self.as_ref();
        let mut last = (memcg_accounting::Tag::NOBODY, false);
        let mut is_own = |tag| {
            if last.0 != tag {
                last = (tag, TREE.owner(tag) == Some(own));
            }
            last.1
        };
        let none = |class: Class| ClassStat { size: class.size() as u64, objects: 0 };
        let mut classes: Vec<_> = Class::all().map(none).collect();
        central::for_each_span(|span| {
            let objects = &mut classes[span.class().index()].objects;
            span.for_each_tag(|tag| *objects += u64::from(is_own(tag)));
        });
        classes
    }

    /// A reader of the peak that can be reset on its own.
    ///
    /// # Panics
    ///
    /// Panics beyond [`Group::set_max_objects`], and [`set_max_objects`](crate::set_max_objects).
    #[must_use]
    #[track_caller]
    pub fn peak_reader(&self) -> PeakReader {
        PeakReader::new(self.clone())
    }
}

/// Groups that are read while all threads are stopped once: some hundred microseconds.
const AT_ONCE: usize = 1024;

/// The figures of several groups, after one drain for each 1,024 of them: so many are of the same
/// moment, and nobody is stopped for longer by a list that is long.
#[must_use]
pub fn snapshot(groups: &[Group]) -> Vec<Stat> {
    let mut stats = Vec::with_capacity(groups.len());
    for groups in groups.chunks(AT_ONCE) {
        drain::everything(|| stats.extend(groups.iter().map(|group| Stat::read(group.as_ref()))));
    }
    stats
}

/// The allocator's own figures. Stops all threads for a moment to look at what they cache.
#[must_use]
pub fn self_stat() -> SelfStat {
    let (drains, given_up) = drain::counts();
    let engine = ENGINE.stat();
    let metadata = TREE.metadata_bytes()
        + engine.metadata_bytes
        + record::metadata_bytes()
        + central::metadata_bytes()
        + maps::leaf_bytes()
        + vector::other_bytes();
    SelfStat {
        metadata: metadata as u64,
        tags: vector::bytes() as u64,
        returned: cooling::returned_bytes() as u64,
        threads: u64::from(roster::nr_claimed()),
        drains,
        stopped_us: budget::taken_us(),
        given_up,
        cached: drain::cached_bytes(),
        overshot: engine.let_over,
        workers: u64::from(engine.workers),
        held_workers: u64::from(engine.held),
        objects: objects::nr_objects(),
    }
}
