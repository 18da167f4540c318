//! What should be so: groups, each object with who pays for it, and sums over all of them.
//!
//! Nothing here is clever: an object is a line in a list, usage is a sum, and when a group goes
//! its lines are written over to its parent.

use std::alloc::Layout;
use std::collections::BTreeMap;

/// A group's line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) parent: Option<usize>,
    pub(crate) path: String,
    pub(crate) online: bool,
    /// Handles, with scopes.
    pub(crate) handles: usize,
    pub(crate) max: u64,
    /// Bytes over the limit that its own charges may go; 0: none.
    pub(crate) allowance: u64,
    /// What usage may be, although it is over `max`: it was so when the limit came, or by force.
    pub(crate) ceiling: u64,
    pub(crate) events: Counts,
}

/// The events that are compared, of the group and below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) max: u64,
    pub(crate) oom: u64,
    pub(crate) forced: u64,
}

/// Who pays for what.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) groups: Vec<Line>,
    /// Of each object: who pays, and how much.
    pub(crate) objects: Vec<(Option<usize>, u64)>,
    /// Of each cached entry, by its key.
    pub(crate) entries: BTreeMap<u64, Option<usize>>,
    /// What an entry takes.
    pub(crate) entry: u64,
}

/// What should become of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Granted,
    /// Refused by that group.
    Refused(usize),
    /// Only over a limit, and not that far: refused by one of its ancestors or itself.
    TooFar,
}

/// A charge before it is made.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) of: Option<usize>,
    pub(crate) need: u64,
    /// What the payer and its ancestors were charged.
    pub(crate) usage: Vec<(usize, u64)>,
    pub(crate) verdict: Verdict,
    /// The first group that it meets the limit of.
    pub(crate) over: Option<usize>,
    pub(crate) allowance: u64,
}

/// What an allocation takes: pages above 64 KiB, and for alignments above a page, of which jemalloc
/// gives 4 at least; else the size itself where there is such a class, and the next one else.
pub(crate) fn charged(layout: Layout) -> u64 {
    let (size, align) = (layout.size(), layout.align());
    if align > 4096 {
        return size.max(4 * 4096).next_multiple_of(4096) as u64;
    }
    if size > 64 << 10 {
        return size.next_multiple_of(4096) as u64;
    }
    let wanted = if align > 8 { size.next_multiple_of(align) } else { size };
    let (mut class, mut step) = (8, 8);
    while class < wanted {
        // Steps of 8 up to 64, then four steps for each doubling.
        if class >= 64 && class.is_power_of_two() {
            step = class / 4;
        }
        class += step;
    }
    class as u64
}

impl Books {
    /// The group itself and its ancestors.
    pub(crate) fn chain(&self, group: Option<usize>) -> impl Iterator<Item = usize> {
        std::iter::successors(group, |&i| self.groups[i].parent)
    }

    pub(crate) fn is_below(&self, group: usize, top: usize) -> bool {
        self.chain(Some(group)).any(|i| i == top)
    }

    pub(crate) fn online(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.groups.len()).filter(|&i| self.groups[i].online)
    }

    /// Adds each `(payer, bytes)` to the payer and its ancestors.
    fn sums(&self, lines: impl Iterator<Item = (Option<usize>, u64)>) -> Vec<u64> {
        let mut sums = vec![0; self.groups.len()];
        lines.for_each(|(payer, bytes)| payer.into_iter().for_each(|i| sums[i] += bytes));
        // Children come after their parents.
        for i in (0..sums.len()).rev() {
            if let Some(parent) = self.groups[i].parent.filter(|_| self.groups[i].online) {
                sums[parent] += sums[i];
            }
        }
        sums
    }

    /// Of each group: the bytes of objects, which nothing can take back.
    pub(crate) fn pinned(&self) -> Vec<u64> {
        self.sums(self.objects.iter().copied())
    }

    /// Of each group: the bytes of entries, which can be evicted.
    pub(crate) fn cached(&self) -> Vec<u64> {
        self.sums(self.entries.values().map(|&payer| (payer, self.entry)))
    }

    /// Of each group: both.
    pub(crate) fn usage(&self) -> Vec<u64> {
        self.pinned().iter().zip(self.cached()).map(|(pinned, cached)| pinned + cached).collect()
    }

    /// Whether `payer` may have `need` bytes more.
    pub(crate) fn verdict(&self, payer: Option<usize>, need: u64, fallible: bool) -> Verdict {
        let Some(payer) = payer else { return Verdict::Granted };
        let pinned = self.pinned();
        let fits = |i: &usize, over: u64| {
            pinned[*i].saturating_add(need) <= self.groups[*i].max.saturating_add(over)
        };
        let Some(refuser) = self.chain(Some(payer)).find(|i| !fits(i, 0)) else {
            return Verdict::Granted;
        };
        match self.groups[payer].allowance {
            _ if fallible => Verdict::Refused(refuser),
            0 => Verdict::Refused(refuser),
            over if self.chain(Some(payer)).all(|i| fits(&i, over)) => Verdict::Granted,
            _ => Verdict::TooFar,
        }
    }

    /// The first group over its limit, from `payer` up.
    pub(crate) fn over_max(&self, payer: Option<usize>, more: u64) -> Option<usize> {
        let usage = self.usage();
        self.chain(payer).find(|&i| usage[i].saturating_add(more) > self.groups[i].max)
    }

    /// Counts an event of `group` and its ancestors.
    pub(crate) fn count(&mut self, group: usize, event: impl Fn(&mut Counts) -> &mut u64) {
        let chain: Vec<usize> = self.chain(Some(group)).collect();
        chain.into_iter().for_each(|i| *event(&mut self.groups[i].events) += 1);
    }

    fn is_kept(&self, i: usize) -> bool {
        self.groups[i].handles > 0
            || self.groups.iter().any(|group| group.online && group.parent == Some(i))
    }

    /// Lets a handle go, and the groups that it kept.
    pub(crate) fn put(&mut self, group: usize) {
        self.groups[group].handles -= 1;
        let mut at = Some(group);
        while let Some(i) = at.filter(|&i| !self.is_kept(i)) {
            let parent = self.groups[i].parent;
            self.groups[i].online = false;
            let payers = self.objects.iter_mut().map(|(payer, _)| payer);
            for payer in payers.chain(self.entries.values_mut()) {
                if *payer == Some(i) {
                    *payer = parent;
                }
            }
            at = parent;
        }
    }
}
