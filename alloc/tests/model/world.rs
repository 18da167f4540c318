//! The allocator beside the [books](crate::books): each step is done in both, and compared.

use std::alloc::Layout;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use memcg::{Cache, Events, Group, Limit, OnLimit};

use crate::actor::{Actor, MAX_SCOPES, Object, Payer};
use crate::books::{Before, Books, Counts, Line, Verdict, charged};
use crate::script::{Op, Verb};

/// Threads that live on. Who is beyond them is a fresh thread.
const ACTORS: usize = 3;
/// Objects at once.
const MAX_OBJECTS: usize = 300;
/// Groups at once.
const MAX_GROUPS: usize = 20;
/// Keys of the cache.
const KEYS: usize = 100;

/// What an allocation may wait for the caches.
const PATIENT: Duration = Duration::from_secs(60);

/// A cached value of about 1 KiB, which tells its key.
type Value = [u64; 120];

/// Groups, objects, threads and a cache, and what should be so of them.
pub(crate) struct World {
    /// Makes top-level names this run's own.
    run: u64,
    strict: bool,
    books: Books,
    /// Handles of each group, but for scopes.
    handles: Vec<Vec<Group>>,
    objects: Vec<Object>,
    actors: Vec<Actor>,
    /// Of each actor: the groups of the scopes that it is in.
    scopes: Vec<Vec<usize>>,
    cache: Arc<Cache<u64, Value>>,
    evictions: u64,
    /// Threads that drains could not stop.
    given_up: u64,
    fill: u8,
}

fn bytes(limit: u64) -> Limit {
    if limit == u64::MAX { Limit::Max } else { Limit::Bytes(limit) }
}

fn counts(events: &Events) -> Counts {
    Counts { max: events.max, oom: events.oom, forced: events.forced }
}

/// What one entry takes.
fn entry_size(run: u64) -> u64 {
    let probe = Group::root().create(&format!("entry {run}")).expect("fresh");
    let cache = Cache::<u64, Value>::direct("probe");
    probe.run(|| cache.insert(0, [0; 120])).expect("no limit");
    memcg::drain();
    let size = probe.usage();
    drop(cache);
    size
}

impl World {
    pub(crate) fn new(strict: bool) -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let books = Books { entry: entry_size(run), ..Books::default() };
        let mut world = Self {
            run,
            strict,
            books,
            handles: Vec::new(),
            objects: Vec::with_capacity(MAX_OBJECTS),
            actors: (0..ACTORS).map(|_| Actor::new()).collect(),
            scopes: vec![Vec::new(); ACTORS],
            cache: Arc::new(Cache::direct("model")),
            evictions: 0,
            given_up: memcg::self_stat().given_up,
            fill: 1,
        };
        // The first group stays.
        world.create(None, u64::MAX);
        world
    }

    /// Has thread `who` run `f`; a fresh one if it is not an actor.
    fn on<R: Send + 'static>(&self, who: usize, f: impl FnOnce() -> R + Send + 'static) -> R {
        match self.actors.get(who) {
            Some(actor) => actor.run(move |_| f()),
            None => thread::spawn(f).join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
        }
    }

    fn pick(&self, n: usize) -> usize {
        let online: Vec<usize> = self.books.online().collect();
        online[n % online.len()]
    }

    /// A handle, also of a group that only scopes or children keep.
    fn group(&self, i: usize) -> Group {
        match self.handles[i].first() {
            Some(group) => group.clone(),
            None => Group::lookup(&self.books.groups[i].path).expect("it is online"),
        }
    }

    /// Who pays on thread `who`.
    fn current(&self, who: usize) -> Option<usize> {
        self.scopes.get(who).and_then(|scopes| scopes.last().copied())
    }

    // ---- steps --------------------------------------------------------------------------

    pub(crate) fn step(&mut self, op: Op) {
        let group = self.pick(op.group);
        match op.verb {
            Verb::Alloc | Verb::AllocZeroed => {
                let payer = Payer::In(self.group(group));
                self.alloc(op, payer, Some(group), op.verb == Verb::AllocZeroed);
            }
            Verb::AllocHere => self.alloc(op, Payer::Here, self.current(op.who), false),
            Verb::AllocNobody => self.alloc(op, Payer::Nobody, None, false),
            Verb::AllocFallible => {
                self.alloc(op, Payer::Fallibly(self.group(group)), Some(group), false);
            }
            Verb::Free => self.free(op),
            Verb::Realloc => self.realloc(op, Payer::In(self.group(group)), Some(group)),
            Verb::ReallocHere => self.realloc(op, Payer::Here, self.current(op.who)),
            Verb::Create if self.books.online().count() < MAX_GROUPS => {
                let nr = self.books.online().count();
                let parent = op.group % (nr + 1);
                let parent = (parent < nr).then(|| self.pick(parent));
                let max = if op.object.is_multiple_of(3) { u64::MAX } else { 8 * op.bytes as u64 };
                self.create(parent, max);
            }
            Verb::CreateTaken => {
                let taken = self.group(group);
                let parent = taken.parent().expect("not the root");
                let error = parent.create(&taken.name()).expect_err("the name is taken");
                assert!(error.is_exists());
            }
            Verb::Clone => {
                let handle = self.group(group);
                self.handles[group].push(handle);
                self.books.groups[group].handles += 1;
            }
            Verb::Drop => self.drop_handle(op, group),
            Verb::Enter => self.enter(op.who % ACTORS, group),
            Verb::Leave => self.leave(op.who % ACTORS),
            Verb::SetMax => self.set_max(group, op),
            Verb::SetPolicy => {
                let (policy, allowance) = match op.object % 4 {
                    0 => (OnLimit::Overcommit, u64::MAX),
                    1 => (OnLimit::OvercommitBy(op.bytes as u64), op.bytes as u64),
                    _ => (OnLimit::Fail, 0),
                };
                self.group(group).set_on_limit(policy);
                self.books.groups[group].allowance = allowance;
            }
            Verb::Reclaim => self.reclaim(group, op),
            Verb::ShrinkTo => self.shrink_to(group, op),
            Verb::ForceEmpty => {
                let target = self.group(group);
                self.on(op.who, move || target.force_empty().expect("never an error"));
                self.sync(|books, of| books.is_below(of, group));
                assert_eq!(self.books.cached()[group], 0, "nothing is left that can go");
            }
            Verb::Drain => {
                self.on(op.who, memcg::drain);
                self.compare_exactly();
            }
            Verb::Purge => self.on(op.who, memcg::purge),
            Verb::Check => {
                self.on(op.who, memcg::check);
                self.check_names();
                self.objects.iter().for_each(|object| object.verify());
            }
            Verb::Put => self.put(op, group),
            Verb::Get => {
                let key = (op.object % KEYS) as u64;
                let found = self.cached(op.who, key);
                assert_eq!(found.is_some(), self.books.entries.contains_key(&key), "{key}");
            }
            Verb::Remove => {
                let (cache, key) = (self.cache.clone(), (op.object % KEYS) as u64);
                let removed = self.on(op.who, move || cache.remove(&key));
                assert_eq!(removed.is_some(), self.books.entries.remove(&key).is_some());
                assert!(removed.is_none_or(|value| value == [key; 120]));
            }
            Verb::Renew => self.renew(op.who % ACTORS),
            Verb::Create => {}
        }
        self.compare(op);
    }

    fn create(&mut self, parent: Option<usize>, max: u64) {
        let i = self.books.groups.len();
        let name = if parent.is_none() { format!("model {} {i}", self.run) } else { i.to_string() };
        let above = parent.map_or_else(Group::root, |parent| self.group(parent));
        let group = above.builder(&name).max(bytes(max)).build().expect("a fresh name");
        // No step is about time, and a loaded machine takes its own.
        group.set_deadline(PATIENT, PATIENT);
        // A child copies the policy.
        let allowance = parent.map_or(0, |parent| self.books.groups[parent].allowance);
        let above = parent.map_or("", |parent| &self.books.groups[parent].path);
        let path = format!("{above}/{name}");
        assert_eq!(group.path(), path);
        let (online, handles, ceiling, events) = (true, 1, 0, Counts::default());
        self.books.groups.push(Line {
            parent,
            path,
            online,
            handles,
            max,
            allowance,
            ceiling,
            events,
        });
        self.handles.push(vec![group]);
    }

    fn drop_handle(&mut self, op: Op, group: usize) {
        if group != 0
            && let Some(handle) = self.handles[group].pop()
        {
            self.on(op.who, move || drop(handle));
            self.books.put(group);
        }
    }

    fn enter(&mut self, who: usize, group: usize) {
        if self.scopes[who].len() < MAX_SCOPES {
            let handle = self.group(group);
            self.actors[who].run(move |scopes| {
                let expected = handle.clone();
                scopes.push(handle.enter_owned());
                assert_eq!(Group::current(), expected);
            });
            self.scopes[who].push(group);
            self.books.groups[group].handles += 1;
        }
    }

    fn leave(&mut self, who: usize) {
        if let Some(group) = self.scopes[who].pop() {
            self.actors[who].run(|scopes| drop(scopes.pop()));
            self.books.put(group);
        }
    }

    fn renew(&mut self, who: usize) {
        while !self.scopes[who].is_empty() {
            self.leave(who);
        }
        self.actors[who] = Actor::new();
    }

    // ---- objects ------------------------------------------------------------------------

    fn alloc(&mut self, op: Op, payer: Payer, of: Option<usize>, zeroed: bool) {
        if self.objects.len() == MAX_OBJECTS {
            return;
        }
        let layout = Layout::from_size_align(op.bytes, 1 << op.align).expect("small");
        let need = charged(layout);
        let fallible = matches!(payer, Payer::Fallibly(_));
        self.fill = self.fill.wrapping_add(1);
        let fill = self.fill;
        let before = self.before(of, need, fallible);
        let object = self.on(op.who, move || Object::new(payer, layout, zeroed, fill));
        self.after(&before, object.is_some());
        if let Some(object) = object {
            self.objects.push(object);
            self.books.objects.push((of, need));
        }
        self.note_forced(&before, object.is_some());
    }

    fn free(&mut self, op: Op) {
        if self.objects.is_empty() {
            return;
        }
        let i = op.object % self.objects.len();
        let object = self.objects.swap_remove(i);
        self.books.objects.swap_remove(i);
        self.on(op.who, move || object.free());
    }

    fn realloc(&mut self, op: Op, payer: Payer, of: Option<usize>) {
        if self.objects.is_empty() {
            return;
        }
        let i = op.object % self.objects.len();
        let (old, (owner, bytes)) = (self.objects[i], self.books.objects[i]);
        let size = op.bytes;
        let need = charged(Layout::from_size_align(size, old.layout.align()).expect("small"));
        let before = self.before(of, need, false);
        let resized = self.on(op.who, move || old.resize(payer, size));
        match resized {
            Some(new) if new.address == old.address => {
                // In place the old payer keeps it.
                let grows = need.saturating_sub(bytes);
                let fits = self.books.verdict(owner, grows, true);
                assert!(grows == 0 || fits == Verdict::Granted, "{fits:?}");
                self.sync(|_, _| true);
                // jemalloc leaves a large object of a wide alignment as it is where a small one
                // would do: it takes what it took.
                let stays = old.layout.align() > 4096 && size <= 14 << 10;
                self.books.objects[i] = (owner, if stays { bytes } else { need });
                self.adopt_events();
            }
            Some(_) => {
                self.after(&before, true);
                self.books.objects.push((of, need));
                self.note_forced(&before, true);
                self.books.objects.pop();
                self.books.objects[i] = (of, need);
            }
            None => {
                // Nobody's large object moves, to be paid for.
                assert!(owner.is_none() || need != bytes, "what stays as it is is not refused");
                self.after(&before, false);
            }
        }
        if let Some(new) = resized {
            self.objects[i] = new;
        }
    }

    /// What is known of a charge before it is made.
    fn before(&self, of: Option<usize>, need: u64, fallible: bool) -> Before {
        let verdict = self.books.verdict(of, need, fallible);
        let over = self.books.over_max(of, need);
        let allowance = of.map_or(0, |of| self.books.groups[of].allowance);
        let usage = self.books.chain(of).map(|i| (i, self.group(i).usage())).collect();
        Before { of, need, verdict, over, usage, allowance: if fallible { 0 } else { allowance } }
    }

    /// Compares what became of a charge.
    fn after(&mut self, before: &Before, granted: bool) {
        let &Before { of, verdict, over, .. } = before;
        if granted && verdict != Verdict::Granted && !self.strict {
            // Only as an object that the thread had freed, and that was paid for while a limit
            // was passed by force: no usage grew for it.
            let pinned = self.books.pinned();
            let paid = |&(i, usage): &(usize, u64)| pinned[i] + before.need <= usage;
            assert!(before.usage.iter().all(paid), "{before:?}: {:?}", self.books);
            return;
        }
        let given_up = memcg::self_stat().given_up;
        if !granted && verdict == Verdict::Granted && given_up > self.given_up {
            // A thread that the system did not run could not be stopped: that is counted, too.
            self.given_up = given_up;
            self.sync(|_, _| true);
            return self.adopt_events();
        }
        assert_eq!(granted, verdict == Verdict::Granted, "{before:?}: {:?}", self.books);
        if self.strict && over.is_none() {
            self.sync(|_, _| false);
        } else {
            let chain: Vec<usize> = self.books.chain(of).collect();
            self.sync(|books, of| chain.iter().any(|&top| books.is_below(of, top)));
        }
        if let Some(over) = over.filter(|_| self.strict) {
            // Nothing was cached by threads: the first that was met is known.
            self.books.count(over, |events| &mut events.max);
        }
        match verdict {
            Verdict::Refused(refuser) => self.books.count(refuser, |events| &mut events.oom),
            Verdict::TooFar => {
                // Which of them it was is up to what could be evicted.
                let top = self.books.chain(of).last().expect("it has a payer");
                let found = counts(&self.group(top).events()).oom;
                assert_eq!(found, self.books.groups[top].events.oom + 1);
                self.adopt_events();
            }
            Verdict::Granted => {}
        }
    }

    /// Once the object is in the books: a charge that left a group over its limit was forced.
    fn note_forced(&mut self, before: &Before, granted: bool) {
        if before.allowance == 0 || !granted {
            return;
        }
        if let Some(over) = self.books.over_max(before.of, 0).filter(|_| self.strict) {
            self.books.count(over, |events| &mut events.forced);
        }
        for i in self.books.chain(before.of).collect::<Vec<_>>() {
            let usage = self.group(i).usage();
            let line = &mut self.books.groups[i];
            line.ceiling = line.ceiling.max(usage);
        }
        if !self.strict {
            // What threads cached counted, too, and what is reused was not charged.
            self.adopt_events();
        }
    }

    /// Takes the events as they are, which may only have grown.
    fn adopt_events(&mut self) {
        for i in self.books.online().collect::<Vec<_>>() {
            let found = counts(&self.group(i).events());
            let line = &mut self.books.groups[i];
            let known = line.events;
            assert!(
                found.max >= known.max && found.oom >= known.oom && found.forced >= known.forced,
                "{found:?} {known:?}"
            );
            line.events = found;
        }
    }

    // ---- limits and reclaim -----------------------------------------------------------------

    fn set_max(&mut self, group: usize, op: Op) {
        let max = if op.object.is_multiple_of(8) { u64::MAX } else { 8 * op.bytes as u64 };
        let (target, pinned) = (self.group(group), self.books.pinned()[group]);
        let line = &mut self.books.groups[group];
        line.max = max;
        line.ceiling = line.ceiling.max(target.usage());
        let fits = self.books.usage()[group] <= max;
        let answer = self.on(op.who, move || target.set_max(bytes(max)).err());
        self.sync(|books, of| !fits && books.is_below(of, group));
        let usage = self.books.usage()[group];
        match answer {
            None => assert!(usage <= max),
            Some(error) => {
                assert!(error.is_busy() && pinned > max, "{error:?}");
                assert_eq!((error.usage(), error.max()), (usage, max));
                assert_eq!(usage, pinned, "all that could go went");
            }
        }
    }

    fn reclaim(&mut self, group: usize, op: Op) {
        let (target, wanted) = (self.group(group), op.bytes as u64);
        let before = self.books.cached()[group];
        let answer = self.on(op.who, move || {
            target.reclaim(wanted).map_err(|error| (error.is_again(), error.reclaimed()))
        });
        self.sync(|books, of| books.is_below(of, group));
        let left = self.books.cached()[group];
        let reclaimed = answer.unwrap_or_else(|(is_again, reclaimed)| {
            assert!(is_again && left == 0, "{left} of {before} are left");
            reclaimed
        });
        assert_eq!(answer.is_ok(), reclaimed >= wanted);
        assert!(reclaimed >= before - left);
        if self.strict {
            assert_eq!(reclaimed, before - left, "entries, and nothing else");
        }
    }

    fn shrink_to(&mut self, group: usize, op: Op) {
        let (target, wanted) = (self.group(group), op.bytes as u64);
        let (usage, pinned) = (self.books.usage()[group], self.books.pinned()[group]);
        let answer = self.on(op.who, move || target.shrink_to(wanted).err());
        self.sync(|books, of| usage > wanted && books.is_below(of, group));
        assert_eq!(answer.is_none(), pinned <= wanted);
        if let Some(error) = answer {
            assert!(error.is_busy());
            assert_eq!(error.usage(), pinned, "all that could go went");
        }
    }

    // ---- the cache --------------------------------------------------------------------------

    fn cached(&self, who: usize, key: u64) -> Option<Value> {
        let cache = self.cache.clone();
        let found = self.on(who, move || cache.get(&key));
        assert!(found.is_none_or(|value| value == [key; 120]));
        found
    }

    fn put(&mut self, op: Op, group: usize) {
        let (cache, key) = (self.cache.clone(), (op.object % KEYS) as u64);
        let target = self.group(group);
        let before = self.before(Some(group), self.books.entry, true);
        let answer = self.on(op.who, move || {
            let answer = target.run(|| cache.insert(key, [key; 120]));
            answer.map(drop).map_err(|over| over.group())
        });
        if answer.is_ok() {
            // It may have been evicted for itself; `sync` does not look at it.
            self.books.entries.remove(&key);
        }
        self.after(&before, answer.is_ok());
        match answer {
            Ok(()) => drop(self.books.entries.insert(key, Some(group))),
            Err(refused) => {
                let Verdict::Refused(refuser) = before.verdict else { panic!("{before:?}") };
                assert_eq!(refused, Some(self.group(refuser)));
            }
        }
    }

    /// Strikes out what was evicted, which must be where there was pressure.
    fn sync(&mut self, pressed: impl Fn(&Books, usize) -> bool) {
        let evictions = self.cache.stat().evictions;
        if evictions == self.evictions {
            return;
        }
        self.evictions = evictions;
        for key in self.books.entries.keys().copied().collect::<Vec<_>>() {
            if self.cache.get(&key).is_none() {
                let owner = self.books.entries.remove(&key).flatten();
                let owner = owner.expect("nobody's entries are not evicted");
                assert!(pressed(&self.books, owner), "{:?}", self.books.groups[owner]);
            }
        }
    }

    // ---- comparisons ------------------------------------------------------------------------

    fn compare(&mut self, op: Op) {
        assert_eq!(self.cache.len(), self.books.entries.len(), "entries");
        if self.strict {
            memcg::drain();
            self.compare_exactly();
        }
        let usage = self.books.usage();
        for i in self.books.online() {
            let (line, group) = (&self.books.groups[i], self.group(i));
            let found = group.usage();
            assert!(found >= usage[i], "{}: {found}, and {} live", line.path, usage[i]);
            assert!(found <= line.max.max(line.ceiling), "{line:?}: {found}");
            assert_eq!(bytes(line.max), group.max());
            let mut events = counts(&group.events());
            if !self.strict {
                assert!(events.max >= line.events.max);
                events.max = line.events.max;
            }
            assert_eq!(events, line.events, "{}", line.path);
        }
        // The last object, and any one.
        let n = self.objects.len();
        for i in [n.checked_sub(1), op.object.checked_rem(n)].into_iter().flatten() {
            self.objects[i].verify();
            let owner = self.books.objects[i].0.map(|i| self.group(i));
            assert_eq!(self.objects[i].owner(), owner, "{:?}", self.objects[i]);
        }
    }

    /// After a drain usage is what lives.
    fn compare_exactly(&mut self) {
        let usage = self.books.usage();
        for i in self.books.online().collect::<Vec<_>>() {
            let group = self.group(i);
            assert_eq!(group.usage(), usage[i], "{}", self.books.groups[i].path);
            self.books.groups[i].ceiling = usage[i];
            let own = self.books.entries.values().filter(|&&of| of == Some(i)).count();
            assert_eq!(self.cache.len_in(&group), own, "{}", self.books.groups[i].path);
        }
    }

    fn check_names(&self) {
        for i in self.books.online() {
            let children = |name: fn(&Group) -> String| {
                let mut names: Vec<String> = self.group(i).children().iter().map(name).collect();
                names.sort();
                names
            };
            let below = self.books.online().filter(|&j| self.books.groups[j].parent == Some(i));
            let mut paths: Vec<String> = below.map(|j| self.books.groups[j].path.clone()).collect();
            paths.sort();
            assert_eq!(children(Group::path), paths);
        }
        for line in self.books.groups.iter().filter(|line| !line.online) {
            assert_eq!(Group::lookup(&line.path), None, "{}", line.path);
        }
    }

    /// Ends everything; nothing may be left then.
    pub(crate) fn finish(mut self) {
        for (i, object) in std::mem::take(&mut self.objects).into_iter().enumerate() {
            self.on(i % ACTORS, move || object.free());
        }
        self.books.objects.clear();
        self.cache.clear();
        self.books.entries.clear();
        memcg::drain();
        self.compare_exactly();
        for who in 0..ACTORS {
            self.renew(who);
        }
        let top = self.group(0);
        self.handles.drain(1..).for_each(drop);
        let stat = top.stat();
        assert_eq!((stat.usage, stat.nr_descendants, stat.nr_contexts), (0, 0, 0), "{stat:?}");
        drop(top);
        drop(self);
        memcg::check();
    }
}
