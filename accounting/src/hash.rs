//! The hash that finds groups by name: SipHash-1-3 with a key that nobody can guess.
//!
//! Names are often chosen by those whom the groups are there to limit. Without a key they could
//! choose names that all fall into one bucket, and make each look at it a walk over all of them.
//!
//! Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF"; std's `RandomState` has the
//! same rounds.

use core::ffi::c_void;

use crate::sync::{AtomicU64, Ordering};

/// A key. Written once, before anything is hashed.
#[derive(Debug)]
pub(crate) struct Key([AtomicU64; 2]);

impl Key {
    crate::const_new! {
        pub(crate) fn new() -> Self {
            Self([AtomicU64::new(0), AtomicU64::new(0)])
        }
    }

    /// Draws the key. Whoever hashes sees it by what orders the caller's `make` before it.
    ///
    /// Not in a model, each run of which must be like the one before.
    pub(crate) fn draw(&self) {
        if cfg!(loom) {
            return;
        }
        for (word, drawn) in self.0.iter().zip(random()) {
            word.store(drawn, Ordering::Relaxed);
        }
    }

    /// The hash of a child's name under its parent.
    pub(crate) fn hash(&self, parent: u32, name: &[u8]) -> u64 {
        let [k0, k1] = [0, 1].map(|i: usize| self.0[i].load(Ordering::Relaxed));
        let mut state = State::new(k0, k1);
        state.absorb(u64::from(parent));
        let mut words = name.chunks_exact(8);
        for word in &mut words {
            state.absorb(little_endian(word));
        }
        // The last word ends with the length, modulo 256.
        let length = (size_of::<u64>() + name.len()) as u64;
        state.absorb(little_endian(words.remainder()) | length << 56);
        state.finish()
    }
}

/// Up to eight bytes as a word.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

struct State([u64; 4]);

impl State {
    fn new(k0: u64, k1: u64) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }

    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        for _ in 0..3 {
            self.round();
        }
        self.0.iter().fold(0, |hash, word| hash ^ word)
    }
}

/// 16 bytes that an outsider does not know: of the system, without waiting for it; else those
/// that it gave the process at its start; else of clock and addresses, which at least differ.
fn random() -> [u64; 2] {
    let mut words = [0_u64; 2];
    let place: *mut c_void = words.as_mut_ptr().cast();
    // SAFETY: `words` has room for that many bytes.
    let got = unsafe { libc::getrandom(place, size_of_val(&words), libc::GRND_NONBLOCK) };
    if usize::try_from(got) == Ok(size_of_val(&words)) {
        return words;
    }
    // SAFETY: it takes a number and touches no memory of ours.
    let given = unsafe { libc::getauxval(libc::AT_RANDOM) };
    let given = core::ptr::with_exposed_provenance::<[u64; 2]>(usize::try_from(given).unwrap_or(0));
    if !given.is_null() {
        // SAFETY: `AT_RANDOM` is the address of 16 bytes that live as long as the process.
        return unsafe { given.read_unaligned() };
    }
    [crate::clock::now_us(), core::ptr::from_ref(&words).addr() as u64]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::hash::{DefaultHasher, Hasher};
    use std::vec::Vec;

    use super::*;

    #[test]
    fn with_a_key_of_zeros_it_is_the_hash_of_std() {
        let bytes: Vec<u8> = (0..255).collect();
        for len in 0..bytes.len() {
            let mut known = DefaultHasher::new();
            known.write_u64(7);
            known.write(&bytes[..len]);
            assert_eq!(Key::new().hash(7, &bytes[..len]), known.finish(), "{len} bytes");
        }
    }

    #[test]
    fn each_key_is_another() {
        let keys = [(); 2].map(|()| Key::new());
        keys.iter().for_each(Key::draw);
        assert_ne!(keys[0].hash(0, b"name"), keys[1].hash(0, b"name"));
        assert_ne!(random(), random());
    }
}
