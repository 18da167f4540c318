//! Random numbers of fixed seeds, cheap beside an allocation.

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed, the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    #[inline(always)]
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is at most 2^32.
    #[inline(always)]
    pub fn below(&mut self, n: usize) -> usize {
        let high = usize::try_from(self.any() >> 32).expect("32 bits");
        (high * n) >> 32
    }

    /// A number of `low..high`.
    #[inline(always)]
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low)
    }

    /// A number of `low..high` where each doubling is half as likely as the one before:
    /// small objects are many, as they are in programs.
    #[inline(always)]
    pub fn power_law(&mut self, low: usize, high: usize) -> usize {
        let doublings = (high / low).ilog2();
        let base = low << (self.any() | (1 << (doublings - 1))).trailing_zeros().min(doublings - 1);
        base + self.below(base)
    }

    /// Shuffles.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

/// Keys by Zipf's law: the k-th is asked for in proportion to 1/k.
#[derive(Debug)]
pub struct Zipf(Vec<f64>);

impl Zipf {
    /// Of `n` keys.
    #[must_use]
    pub fn new(n: u32) -> Self {
        let mut sum = 0.0;
        let mut shares = Vec::with_capacity(n as usize);
        for k in 1..=n {
            sum += 1.0 / f64::from(k);
            shares.push(sum);
        }
        shares.iter_mut().for_each(|share| *share /= sum);
        Self(shares)
    }

    /// The next one's rank, from 0.
    pub fn next(&self, random: &mut Random) -> usize {
        let at = (random.any() >> 11) as f64 / (1_u64 << 53) as f64;
        self.0.partition_point(|share| *share < at).min(self.0.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_their_bounds_and_small_ones_are_many() {
        let mut random = Random::new(1);
        let mut small = 0;
        for _ in 0..10_000 {
            assert!((5..9).contains(&random.within(5, 9)));
            let size = random.power_law(16, 1024);
            assert!((16..1024).contains(&size), "{size}");
            small += usize::from(size < 32);
        }
        assert!((4_000..6_000).contains(&small), "{small}");
    }

    #[test]
    fn the_first_key_of_zipf_is_the_most_frequent() {
        let zipf = Zipf::new(1000);
        let mut random = Random::new(1);
        let mut count = [0; 1000];
        for _ in 0..100_000 {
            count[zipf.next(&mut random)] += 1;
        }
        assert!(count[0] > count[1] && count[1] > count[10] && count[10] > count[500]);
    }
}
