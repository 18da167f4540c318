//! The drain before reclaim: garbage goes before live data does.
//!
//! A charge that meets a limit first has drained what threads cache of the group, if the last time
//! that paid or is long ago, and is tried while the threads are still stopped, so that nobody
//! takes the room in between. One that finds such a drain under way waits for it instead of
//! evicting what it might make room for, but no longer than its deadline.

use memcg_accounting::{GroupRef, Tag, now_ms};

use crate::Engine;
use crate::groups::Tidiness;
use crate::pass::pause;

/// How often a charge tries this while drains pay, but for others.
const ROUNDS: u32 = 16;

impl Engine {
    /// Has `retry` tried with less garbage in `group`; answers whether it succeeded. After it did,
    /// it is not asked again. Waits for others' drains for `longest_ms` in all.
    pub(crate) fn tidy_for(
        &self,
        group: GroupRef,
        payer: Tag,
        longest_ms: u32,
        retry: &mut dyn FnMut() -> bool,
    ) -> bool {
        let start = now_ms();
        let has_time = || now_ms().wrapping_sub(start) < longest_ms;
        let Some(record) = self.groups.record(self.tree, group) else { return retry() };
        for _ in 0..ROUNDS {
            match record.tidiness(now_ms()) {
                Tidiness::Due if record.tidy_begins(now_ms()) => {
                    let paid = self.cut_for(group, payer, retry);
                    record.tidied(now_ms(), u64::from(paid != Paid::Nothing));
                    match paid {
                        Paid::Enough => return true,
                        Paid::Nothing => return false,
                        Paid::Some => {}
                    }
                }
                Tidiness::Due | Tidiness::UnderWay => {
                    let mut looks = 0;
                    while record.tidiness(now_ms()) == Tidiness::UnderWay && has_time() {
                        looks += 1;
                        pause(looks);
                    }
                    if retry() {
                        return true;
                    }
                    if !has_time() {
                        return false;
                    }
                }
                // Also here: another drain may have taken what there was.
                Tidiness::Done => return retry(),
            }
        }
        false
    }

    /// One cut, with what it brought.
    fn cut_for(&self, group: GroupRef, payer: Tag, retry: &mut dyn FnMut() -> bool) -> Paid {
        let (mut before, mut after) = (None, u64::MAX);
        let done = self.host().cut(group, payer, &mut || {
            after = self.tree.usage(group);
            before.get_or_insert(after);
            retry()
        });
        match before {
            _ if done => Paid::Enough,
            Some(before) if after < before => Paid::Some,
            _ => Paid::Nothing,
        }
    }
}

/// What a drain brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paid {
    Enough,
    Some,
    Nothing,
}
