//! Magazines: a thread's stacks of free objects, one per class.
//!
//! ```text
//!   bottom      floor      top    ceiling   limit
//!     | object | object | object |  .  .  .  |  .  .  .  .  |  .  .  .  .  |
//!     '- looked at -----'- not --'
//!     '--- cached ---------------'--- room ----------------'- not granted '
//!
//!   storage ──► | small | small | small | …          two or three pages of all classes
//!           ──► |    large    |    large    | …      pages that go back when a thread is idle
//! ```
//!
//! Capacities are granted from one budget of bytes: they start at nothing, double when a class
//! overflows, and are taken back from classes that have been quiet. All of that happens on slow
//! paths. A class that is granted no more than [`first`] has its words beside those of others, for a page of
//! its own would hold little; with more it moves.
//!
//! The fast path knows `floor` and `ceiling` alone. Where it meets one of them, the slow path moves both, and
//! whose the objects are that come to lie below the floor is looked at ([summary](crate::summary)), so that
//! about [`UNSEEN`] objects at most are unknown to a cut. Until there is a group nobody looks.
//!
//! # Invariants
//!
//! - `bottom <= floor <= top <= ceiling <= limit`; the words `bottom .. top` are free objects of the class, each out of its span
//!   and in no other magazine.
//! - `bottom` is the class's small home if its capacity is at most [`first`], else its large one.
//! - `granted` is the sum over classes of capacity times object size, at most [`BUDGET`].
//! - The pages of `bottom .. limit` have been touched.

use core::ptr;

use crate::class::{self, Class, Reciprocal};
use crate::os;
use crate::process;

/// Bytes of objects that one thread may cache.
pub(crate) const BUDGET: usize = 384 << 10;
/// The most objects of one class that one thread may cache.
const MOST_OBJECTS: usize = 4096;
/// The most bytes of one class.
const MOST_BYTES: usize = 256 << 10;

/// Objects above the floors of all of a thread's magazines at which it looks whose they are, once there is a group: a
/// cut looks at them otherwise, and a batch of a thousand is looked at by nobody.
pub(crate) const UNSEEN: usize = 1152;
/// By how much a floor or a ceiling moves.
const STEP: usize = 64;

/// A stack of free objects. Pointers, not indices: a top-of-stack pointer measured faster.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Magazine {
    top: *mut *mut u8,
    floor: *mut *mut u8,
    ceiling: *mut *mut u8,
    /// What finds an object's number in its span, beside what else an allocation reads.
    reciprocal: Reciprocal,
}

impl Magazine {
    const fn new() -> Self {
        let none = ptr::null_mut();
        Self { top: none, floor: none, ceiling: none, reciprocal: Reciprocal::NONE }
    }

    /// That of the class.
    #[inline(always)]
    pub(crate) fn reciprocal(&self) -> Reciprocal {
        self.reciprocal
    }

    /// The object on top, if it lies above the floor.
    #[inline(always)]
    pub(crate) fn peek(&self) -> Option<*mut u8> {
        if self.top == self.floor {
            return None;
        }
        // SAFETY: `floor < top`, so the word below `top` is in the stack (type invariant).
        let word = unsafe { self.top.sub(1) };
        // SAFETY: as above, and it was written when the object was pushed.
        Some(unsafe { word.read() })
    }

    /// Takes the object that `peek` answered off.
    ///
    /// # Safety
    ///
    /// `peek` answered one.
    #[inline(always)]
    pub(crate) unsafe fn drop_top(&mut self) {
        // SAFETY: by contract `floor < top`.
        self.top = unsafe { self.top.sub(1) };
    }

    /// Puts a free object on top; `false`: there is no room below the ceiling.
    #[inline(always)]
    pub(crate) fn push(&mut self, object: *mut u8) -> bool {
        if self.top == self.ceiling {
            return false;
        }
        // SAFETY: `top < ceiling <= limit`, so the word is granted (type invariant).
        unsafe { self.top.write(object) };
        // SAFETY: as above.
        self.top = unsafe { self.top.add(1) };
        true
    }

    /// The objects above the floor, oldest first: whose they are nobody has looked at.
    pub(crate) fn unseen(&self) -> &[*mut u8] {
        if self.floor.is_null() {
            return &[];
        }
        // SAFETY: the words `floor .. top` are initialised (type invariant), and `&self` keeps them.
        unsafe { core::slice::from_raw_parts(self.floor, words_between(self.floor, self.top)) }
    }
}

fn words_between(from: *mut *mut u8, to: *mut *mut u8) -> usize {
    (to.addr() - from.addr()) / size_of::<*mut u8>()
}

/// All magazines of a thread and the budget that they share.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Magazines {
    of: [Magazine; class::COUNT],
    /// A bit for each class that has room.
    open: u64,
    /// Words that each class is granted.
    capacities: [u16; class::COUNT],
    /// Where each magazine begins: null before it is placed.
    bottoms: [*mut *mut u8; class::COUNT],
    granted: usize,
    /// Where the small homes are, and the large ones.
    homes: [*mut *mut u8; 2],
    /// Whether a page of the large homes was touched since they last went back.
    has_moved: bool,
    hand: usize,
    /// A bit for each class that passed a slow path since its capacity was last looked at.
    used: u64,
}

const _: () = assert!(class::COUNT <= u64::BITS as usize);
const _: () = assert!(MOST_OBJECTS <= u16::MAX as usize);
const _: () = assert!(size_of::<Magazine>() == class::STRIDE);

/// What a class is granted first, and the most objects that its magazine may hold.
const BOUNDS: [[u16; 2]; class::COUNT] = bounds();

#[expect(clippy::cast_possible_truncation, reason = "at most `MOST_OBJECTS`")]
const fn bounds() -> [[u16; 2]; class::COUNT] {
    let (mut bounds, mut i) = ([[0; 2]; class::COUNT], 0);
    while i < class::COUNT {
        let size = Class::nth(i).size();
        let (first, most) = (8192 / size, MOST_BYTES / size);
        let first = if first > 64 { 64 } else { first };
        bounds[i][0] = if first < 2 { 2 } else { first as u16 };
        bounds[i][1] = if most < MOST_OBJECTS { most as u16 } else { MOST_OBJECTS as u16 };
        i += 1;
    }
    bounds
}

/// The most objects that a class's magazine may hold.
const fn most(class: Class) -> usize {
    BOUNDS[class.index()][1] as usize
}

/// What a class is granted first.
const fn first(class: Class) -> usize {
    BOUNDS[class.index()][0] as usize
}

/// Words of a page.
const PAGE: usize = 4096 / size_of::<*mut u8>();

/// Where the homes of each class begin, small ones and large ones, in words; last, where they end: on a page.
const HOMES: [[u32; class::COUNT + 1]; 2] = homes();

#[expect(clippy::cast_possible_truncation, reason = "the sum of all is less than 2^16")]
const fn homes() -> [[u32; class::COUNT + 1]; 2] {
    let (mut small, mut large) = ([0; class::COUNT + 1], [0; class::COUNT + 1]);
    let mut i = 0;
    while i < class::COUNT {
        small[i + 1] = small[i] + first(Class::nth(i)) as u32;
        large[i + 1] = large[i] + most(Class::nth(i)) as u32;
        i += 1;
    }
    small[i] = small[i].next_multiple_of(PAGE as u32);
    large[i] = large[i].next_multiple_of(PAGE as u32);
    [small, large]
}

/// Words of all homes of a kind.
const fn words(kind: usize) -> usize {
    HOMES[kind][class::COUNT] as usize
}

/// Words that the magazines of a thread need, of any alignment.
pub(crate) const STORAGE_WORDS: usize = PAGE + words(0) + words(1);

impl Magazines {
    /// Where the first magazine is in here.
    pub(crate) const FIRST_AT: usize = core::mem::offset_of!(Magazines, of);

    pub(crate) const fn new() -> Self {
        Self {
            of: [const { Magazine::new() }; class::COUNT],
            open: 0,
            capacities: [0; class::COUNT],
            bottoms: [ptr::null_mut(); class::COUNT],
            granted: 0,
            homes: [ptr::null_mut(); 2],
            has_moved: false,
            hand: 0,
            used: 0,
        }
    }

    /// Gives the magazines their storage.
    ///
    /// # Safety
    ///
    /// `storage` is [`STORAGE_WORDS`] zeroed words that are this value's alone for ever.
    pub(crate) unsafe fn place(&mut self, storage: *mut *mut u8) {
        // SAFETY: there is a page more than the homes take, which end on pages.
        let small = unsafe { storage.add(storage.align_offset(4096)) };
        // SAFETY: as above.
        self.homes = [small, unsafe { small.add(words(0)) }];
        for class in Class::all() {
            let home = self.home(class, 0);
            self.bottoms[class.index()] = home;
            let magazine = self.get(class);
            (magazine.top, magazine.floor, magazine.ceiling) = (home, home, home);
            magazine.reciprocal = class.reciprocal();
        }
    }

    /// Where a magazine of that capacity is.
    fn home(&self, class: Class, capacity: usize) -> *mut *mut u8 {
        let kind = usize::from(capacity > first(class));
        // SAFETY: the homes of all classes lie in what `place` was given.
        unsafe { self.homes[kind].add(HOMES[kind][class.index()] as usize) }
    }

    #[inline(always)]
    pub(crate) fn get(&mut self, class: Class) -> &mut Magazine {
        let first = ptr::from_mut(&mut self.of).cast::<u8>();
        let place = first.wrapping_sub(class::FIRST).wrapping_add(class.place());
        // SAFETY: the places of classes begin at `FIRST` and are `STRIDE` apart, as the magazines are,
        // and there are as many of both.
        unsafe { &mut *place.cast::<Magazine>() }
    }

    /// The classes that have room: where else nothing is cached.
    pub(crate) fn open(&self) -> impl Iterator<Item = Class> + use<> {
        let mut left = self.open;
        core::iter::from_fn(move || {
            let index = left.trailing_zeros() as usize;
            left &= left.checked_sub(1)?;
            Some(Class::nth(index))
        })
    }

    pub(crate) fn len(&self, class: Class) -> usize {
        words_between(self.bottom(class), self.of[class.index()].top)
    }

    pub(crate) fn capacity(&self, class: Class) -> usize {
        usize::from(self.capacities[class.index()])
    }

    /// See [`Magazine::unseen`].
    pub(crate) fn unseen(&self, class: Class) -> &[*mut u8] {
        self.of[class.index()].unseen()
    }

    fn bottom(&self, class: Class) -> *mut *mut u8 {
        self.bottoms[class.index()]
    }

    /// The cached objects of a class, oldest first.
    pub(crate) fn objects(&self, class: Class) -> &[*mut u8] {
        let bottom = self.bottom(class);
        if bottom.is_null() {
            return &[];
        }
        // SAFETY: the words `bottom .. top` are initialised (type invariant), and `&self`
        // keeps them.
        unsafe { core::slice::from_raw_parts(bottom, self.len(class)) }
    }

    /// Room for objects of a class to be filled in by `fill`, which answers how many it wrote.
    pub(crate) fn fill(
        &mut self,
        class: Class,
        most: usize,
        fill: impl FnOnce(&mut [*mut u8]) -> usize,
    ) -> usize {
        let room = (self.capacity(class) - self.len(class)).min(most);
        if room == 0 {
            return 0;
        }
        let top = self.get(class).top;
        // SAFETY: the words `top .. limit` are granted and touched, so they are initialised.
        let words = unsafe { core::slice::from_raw_parts_mut(top, room) };
        let filled = fill(words).min(room);
        // SAFETY: `filled <= room`.
        let top = unsafe { top.add(filled) };
        let magazine = self.get(class);
        magazine.top = top;
        // INVARIANT: the caller moves the floor, and with it the ceiling.
        magazine.ceiling = magazine.ceiling.max(top);
        filled
    }

    /// Forgets the `n` oldest objects of a class, which the caller has given away.
    pub(crate) fn forget_oldest(&mut self, class: Class, n: usize) {
        let len = self.len(class);
        let n = n.min(len);
        if n == 0 {
            return;
        }
        let (bottom, keep) = (self.bottom(class), len - n);
        // SAFETY: `n` words from the bottom are in the stack.
        let rest = unsafe { bottom.add(n) };
        // SAFETY: `keep` words follow `rest`; the ranges may overlap, which `copy` allows.
        unsafe { ptr::copy(rest, bottom, keep) };
        let unseen = self.get(class).unseen().len().min(keep);
        // SAFETY: `keep <= len`.
        self.get(class).top = unsafe { bottom.add(keep) };
        self.leave_unseen(class, unseen);
    }

    /// Puts the floor `n` objects below the top, or on the bottom, and the ceiling a step above it. The caller
    /// knows whose the objects are that lie below the floor then.
    pub(crate) fn leave_unseen(&mut self, class: Class, n: usize) {
        let n = n.min(self.len(class));
        let magazine = self.get(class);
        // SAFETY: `n` words below the top are in the stack.
        magazine.floor = unsafe { magazine.top.sub(n) };
        self.raise_ceiling(class);
    }

    /// Puts the ceiling a step above the top, or on the limit. `false`: there is no room.
    pub(crate) fn raise_ceiling(&mut self, class: Class) -> bool {
        let free = self.capacity(class) - self.len(class);
        let room = if process::is_tracking() { free.min(STEP) } else { free };
        let magazine = self.get(class);
        // SAFETY: `free` words follow the top below the limit.
        magazine.ceiling = unsafe { magazine.top.add(room) };
        room != 0
    }

    /// Lets a class be taken from that has objects, but none above its floor. `false`: it is empty.
    pub(crate) fn lower_floor(&mut self, class: Class) -> bool {
        let unseen = self.unseen(class).len();
        self.leave_unseen(class, unseen.max(STEP));
        self.len(class) != 0
    }

    /// Whether so many objects lie above the floors that it is time to look whose they are.
    pub(crate) fn is_due(&self) -> bool {
        self.open().map(|class| self.unseen(class).len()).sum::<usize>() >= UNSEEN
    }

    /// Bytes of objects that are cached.
    pub(crate) fn bytes(&self) -> usize {
        self.open().map(|class| self.len(class) * class.size()).sum()
    }

    /// Grants a class more room if the budget has it. `spare` is asked to empty a quiet class
    /// down to a number of objects first, whose room is then taken back.
    pub(crate) fn grow(
        &mut self,
        class: Class,
        mut spare: impl FnMut(&mut Self, Class, usize),
    ) -> bool {
        self.used |= 1 << class.index();
        let capacity = self.capacity(class);
        let wanted = (capacity * 2).clamp(first(class), most(class));
        if wanted <= capacity {
            return false;
        }
        let more = (wanted - capacity) * class.size();
        for _ in 0..2 * class::COUNT {
            if self.granted + more <= BUDGET {
                self.set_capacity(class, wanted);
                return true;
            }
            self.hand = (self.hand + 1) % class::COUNT;
            let victim = Class::from_index(u32::try_from(self.hand).unwrap_or(0));
            let quiet = self.used & 1 << self.hand == 0;
            self.used &= !(1 << self.hand);
            if quiet && victim != class && self.capacity(victim) > 0 {
                let half = self.capacity(victim) / 2;
                spare(self, victim, half);
                if self.len(victim) <= half {
                    self.set_capacity(victim, half);
                }
            }
        }
        false
    }

    /// Whether a class has no room and this is the first time that some is missing; from now on it is not.
    pub(crate) fn is_first_use(&mut self, class: Class) -> bool {
        let bit = 1 << class.index();
        let is_first = self.used & bit == 0 && self.capacity(class) == 0;
        self.used |= bit;
        is_first
    }

    /// Takes all room back from empty magazines.
    pub(crate) fn close(&mut self) {
        for class in Class::all() {
            if self.len(class) == 0 {
                self.set_capacity(class, 0);
                self.used &= !(1 << class.index());
            }
        }
    }

    /// Gives the pages of the large homes back to the system, if no class has room.
    pub(crate) fn give_pages_back(&mut self) {
        if self.granted == 0 && core::mem::take(&mut self.has_moved) {
            // SAFETY: no magazine is there, so what the words hold is nothing; they are whole pages.
            unsafe { os::give_back(self.homes[1].cast(), words(1) * size_of::<*mut u8>()) };
        }
    }

    /// Changes the capacity of a class that has no more objects than that.
    fn set_capacity(&mut self, class: Class, capacity: usize) {
        let (old, len, bottom) = (self.capacity(class), self.len(class), self.bottom(class));
        debug_assert!(capacity >= len && capacity <= most(class));
        let home = self.home(class, capacity);
        self.has_moved |= capacity > first(class);
        if home == bottom {
            touch(home, old, capacity);
        } else {
            touch(home, 0, capacity);
            // SAFETY: `len <= capacity`, the home has room for as many, and it is another one.
            unsafe { ptr::copy_nonoverlapping(bottom, home, len) };
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most `MOST_OBJECTS`")]
        let granted = capacity as u16;
        self.capacities[class.index()] = granted;
        self.bottoms[class.index()] = home;
        let bit = 1 << class.index();
        self.open = if capacity == 0 { self.open & !bit } else { self.open | bit };
        let unseen = self.get(class).unseen().len();
        // SAFETY: as above.
        self.get(class).top = unsafe { home.add(len) };
        self.leave_unseen(class, unseen);
        self.granted += capacity * class.size();
        self.granted -= old * class.size();
    }

    /// Tests the invariants.
    ///
    /// # Panics
    ///
    /// Panics if one does not hold.
    pub(crate) fn check(&self) {
        let mut granted = 0;
        for class in Class::all() {
            let magazine = &self.of[class.index()];
            let (bottom, capacity) = (self.bottom(class), self.capacity(class));
            let is_placed = !self.homes[0].is_null();
            assert!(!is_placed || bottom == self.home(class, capacity), "{class:?} is at home");
            assert!(self.len(class) <= capacity, "{class:?} is within its capacity");
            assert!(capacity <= most(class), "{class:?} is within its storage");
            assert_eq!(capacity != 0, self.open >> class.index() & 1 != 0, "{class:?} is open");
            let limit = bottom.wrapping_add(capacity);
            let order = [bottom, magazine.floor, magazine.top, magazine.ceiling, limit];
            assert!(order.is_sorted(), "{class:?} lies between its floor and its ceiling");
            granted += capacity * class.size();
        }
        assert_eq!(granted, self.granted, "granted is the sum of the capacities");
        assert!(granted <= BUDGET, "a thread caches at most its budget");
    }
}

/// Touches the pages of the words `from .. to`, so that no push on the fast path is the first.
fn touch(words: *mut *mut u8, from: usize, to: usize) {
    for index in (from..to).step_by(PAGE).chain(to.checked_sub(1)) {
        if index >= from {
            // SAFETY: the words up to `to` are the class's home.
            let word = unsafe { words.add(index) };
            // SAFETY: as above, and from `from` on they hold no object.
            unsafe { word.write_volatile(ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use core::alloc::Layout;

    use memcg_accounting::SYSTEM;

    use super::*;

    const BYTES: usize = STORAGE_WORDS * size_of::<*mut u8>();

    /// Magazines on pages of their own.
    fn magazines() -> Magazines {
        let storage = (SYSTEM.map)(BYTES);
        assert!(!storage.is_null());
        let mut magazines = Magazines::new();
        // SAFETY: the words are zeroed, and nobody else's for ever.
        unsafe { magazines.place(storage.cast()) };
        magazines
    }

    fn class(size: usize) -> Class {
        Class::of(Layout::from_size_align(size, 8).expect("a layout")).expect("a slab class")
    }

    fn fill(magazines: &mut Magazines, class: Class, objects: &mut impl Iterator<Item = usize>) {
        while magazines.len(class) < magazines.capacity(class) {
            let object = objects.next().expect("it does not end");
            while !magazines.get(class).push(ptr::without_provenance_mut(object)) {
                magazines.leave_unseen(class, 0);
            }
        }
    }

    fn addresses(magazines: &Magazines, class: Class) -> Vec<usize> {
        magazines.objects(class).iter().map(|object| object.addr()).collect()
    }

    #[test]
    fn magazines_keep_their_objects_as_they_move_and_touch_no_others() {
        let mut magazines = magazines();
        let mut objects = 1..;
        for class in Class::all() {
            magazines.set_capacity(class, first(class));
            fill(&mut magazines, class, &mut objects);
        }
        let all = |magazines: &Magazines| -> Vec<_> {
            Class::all().map(|class| addresses(magazines, class)).collect()
        };
        let before = all(&magazines);
        for class in Class::all() {
            magazines.set_capacity(class, most(class));
        }
        assert_eq!(all(&magazines), before);
        for class in Class::all() {
            fill(&mut magazines, class, &mut objects);
        }
        let more = all(&magazines);
        for (class, (more, before)) in Class::all().zip(more.iter().zip(&before)) {
            assert_eq!(more.len(), most(class));
            assert!(more.starts_with(before));
            magazines.forget_oldest(class, more.len() - 1);
            magazines.set_capacity(class, 1);
            assert_eq!(addresses(&magazines, class), more[more.len() - 1..]);
            magazines.forget_oldest(class, 1);
        }
        magazines.close();
        magazines.check();
    }

    #[test]
    fn pages_go_back_once_no_class_has_room() {
        let mut magazines = magazines();
        let resident = |magazines: &Magazines| {
            let mut pages = [0_u8; words(1) / PAGE];
            let place = magazines.homes[1].cast();
            // SAFETY: the pages are mapped, and there is a byte for each.
            let told = unsafe { libc::mincore(place, pages.len() * 4096, pages.as_mut_ptr()) };
            assert_eq!(told, 0);
            pages.iter().filter(|&page| page & 1 != 0).count()
        };
        assert!(magazines.grow(class(8), |_, _, _| ()));
        assert_eq!(resident(&magazines), 0, "a small home");
        while magazines.grow(class(8), |_, _, _| ()) {}
        assert!(magazines.grow(class(64), |_, _, _| ()));
        assert_eq!(resident(&magazines), most(class(8)) / PAGE);
        assert!(magazines.get(class(8)).push(ptr::without_provenance_mut(8)));
        magazines.close();
        magazines.give_pages_back();
        assert_ne!(resident(&magazines), 0, "an object is there");
        magazines.forget_oldest(class(8), 1);
        magazines.close();
        magazines.give_pages_back();
        assert_eq!(resident(&magazines), 0);
        magazines.check();
    }
}
