//! Threads that do what they are told, one thing at a time, and objects as they see them.
//!
//! Nothing of the model is allocated where a group is current: threads are handed a closure and
//! hand back its answer, without an allocation of their own.

use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use memcg::{EnteredOwned, Group};

/// Scopes that a thread may be in at once.
pub(crate) const MAX_SCOPES: usize = 8;

type Job = Box<dyn FnOnce(&mut Vec<EnteredOwned>) + Send>;

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    busy: bool,
    ends: bool,
}

/// A thread, and the scopes that it is in.
pub(crate) struct Actor {
    desk: Arc<Desk>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Actor {
    pub(crate) fn new() -> Self {
        let desk = Arc::new(Desk::default());
        let own = desk.clone();
        let thread = thread::spawn(move || {
            let mut scopes = Vec::with_capacity(MAX_SCOPES);
            while let Some(job) = own.next() {
                job(&mut scopes);
                own.done();
            }
            while scopes.pop().is_some() {}
        });
        Self { desk, thread: Some(thread) }
    }

    /// Has the thread run `f`, and waits for the answer. A panic goes on here.
    pub(crate) fn run<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Vec<EnteredOwned>) -> R + Send + 'static,
    ) -> R {
        let answer = Arc::new(Mutex::new(None));
        let place = answer.clone();
        self.desk.post(Box::new(move |scopes| {
            let result = catch_unwind(AssertUnwindSafe(|| f(scopes)));
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }));
        let result = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.expect("the job was done").unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.desk.with(|state| state.ends = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let answer = f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        answer
    }

    fn wait_until<R>(&self, mut f: impl FnMut(&mut State) -> Option<R>) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = f(&mut state) {
                return answer;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn post(&self, job: Job) {
        self.with(|state| (state.job, state.busy) = (Some(job), true));
        self.wait_until(|state| (!state.busy).then_some(()));
    }

    fn next(&self) -> Option<Job> {
        self.wait_until(|state| match state.job.take() {
            Some(job) => Some(Some(job)),
            None => state.ends.then_some(None),
        })
    }

    fn done(&self) {
        self.with(|state| state.busy = false);
    }
}

/// For whom something is allocated.
#[derive(Clone, Debug)]
pub(crate) enum Payer {
    Here,
    Nobody,
    In(Group),
    Fallibly(Group),
}

impl Payer {
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            Payer::Here => f(),
            Payer::Nobody => memcg::unaccounted(f),
            Payer::In(group) => group.run(f),
            Payer::Fallibly(group) => group.run(|| memcg::fallible(f)),
        }
    }
}

/// An object: where it is, its layout, and the byte that fills it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    pub(crate) address: usize,
    pub(crate) layout: Layout,
    pub(crate) fill: u8,
}

impl Object {
    fn pointer(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address)
    }

    /// Allocates and fills an object.
    pub(crate) fn new(payer: Payer, layout: Layout, zeroed: bool, fill: u8) -> Option<Self> {
        let allocate = if zeroed { std::alloc::alloc_zeroed } else { std::alloc::alloc };
        // SAFETY: no script asks for 0 bytes.
        let pointer = payer.run(|| unsafe { allocate(layout) });
        if pointer.is_null() {
            return None;
        }
        let object = Self { address: pointer.expose_provenance(), layout, fill };
        assert_eq!(object.address % layout.align(), 0, "{layout:?} is aligned");
        if zeroed {
            assert!(object.is_filled(0, layout.size()), "{layout:?} is zeroed");
        }
        object.refill();
        Some(object)
    }

    fn refill(self) {
        // SAFETY: the object is live and has that many bytes.
        unsafe { std::ptr::write_bytes(self.pointer(), self.fill, self.layout.size()) };
    }

    fn is_filled(self, fill: u8, len: usize) -> bool {
        // SAFETY: the object is live, was filled, and nobody writes to it meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(self.pointer(), len) };
        // Each byte is its neighbour's equal, and the first is right.
        bytes[0] == fill && bytes[1..] == bytes[..len - 1]
    }

    /// Tests that the object holds what was written.
    pub(crate) fn verify(self) {
        assert!(self.is_filled(self.fill, self.layout.size()), "{self:?} holds what was written");
    }

    /// The object with another size, where it is or elsewhere; `None`: it is what it was.
    pub(crate) fn resize(self, payer: Payer, size: usize) -> Option<Self> {
        // SAFETY: the object is live and has this layout; no script asks for 0 bytes.
        let pointer =
            payer.run(|| unsafe { std::alloc::realloc(self.pointer(), self.layout, size) });
        if pointer.is_null() {
            self.verify();
            return None;
        }
        let layout = Layout::from_size_align(size, self.layout.align()).expect("small");
        let resized = Self { address: pointer.expose_provenance(), layout, ..self };
        let kept = size.min(self.layout.size());
        assert!(resized.is_filled(self.fill, kept), "{self:?} kept its bytes as {resized:?}");
        resized.refill();
        Some(resized)
    }

    /// Verifies the object and gives it back.
    pub(crate) fn free(self) {
        self.verify();
        // SAFETY: the object is live and has this layout; the model forgets it.
        unsafe { std::alloc::dealloc(self.pointer(), self.layout) };
    }

    /// Who pays for it.
    pub(crate) fn owner(self) -> Option<Group> {
        Group::of(self.pointer())
    }
}
