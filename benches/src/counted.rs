//! What a build that counts (`--cfg memcg_counting`) has counted.

/// Atomic read-modify-writes, locks taken and tries that found a lock taken, of the whole process; none in
/// another build, or of another allocator.
#[must_use]
pub fn so_far() -> Option<[u64; 3]> {
    #[cfg(all(feature = "ours", memcg_counting))]
    {
        let counts = memcg::counts();
        Some([counts.read_modify_writes, counts.locks, counts.contended])
    }
    #[cfg(not(all(feature = "ours", memcg_counting)))]
    None
}
