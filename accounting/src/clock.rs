//! The clocks: a coarse one that deadlines and time windows use, a fine one for stalls, and what a thread has run for.

/// Milliseconds of monotonic time, wrapping; about 4 ms coarse, a few nanoseconds to read.
pub fn now_ms() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer; the call keeps nothing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    let ms = now.tv_sec.wrapping_mul(1000).wrapping_add(now.tv_nsec / 1_000_000);
    let [a, b, c, d, ..] = ms.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Microseconds of monotonic time; some 25 ns to read.
pub fn now_us() -> u64 {
    read_us(libc::CLOCK_MONOTONIC)
}

/// Microseconds that the calling thread has run for; a system call to read.
pub fn cpu_us() -> u64 {
    read_us(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read_us(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer; the call keeps nothing.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    let us = now.tv_sec.wrapping_mul(1_000_000).wrapping_add(now.tv_nsec / 1000);
    us.unsigned_abs()
}
