//! Measures memory bandwidth.

use std::hint::black_box;
use std::time::Instant;

use super::machine;

/// A block of memory, much larger than the processor's caches.
pub struct Memory(Vec<u64>);

impl Memory {
    pub fn new() -> Self {
        let bytes = (4 * machine::largest_cache().unwrap_or(0)).max(256 << 20);
        // Not zeros, which the system may store as a single page.
        Self(vec![0x0123_4567_89ab_cdef; bytes / 8])
    }

    pub fn bytes(&self) -> usize {
        8 * self.0.len()
    }

    /// Reads all of it with `threads` threads, which evicts everything else from the caches; returns bytes per second.
    pub fn read(&self, threads: usize) -> f64 {
        let part = self.0.len().div_ceil(threads);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let mut parts = self.0.chunks(part);
            let own = parts.next().unwrap_or_default();
            parts.for_each(|part| {
                scope.spawn(|| black_box(sum(part)));
            });
            black_box(sum(own));
        });
        self.bytes() as f64 / start.elapsed().as_secs_f64()
    }
}

/// Reads four stretches at a time into eight sums each, so that neither additions nor the start of a stretch's next
/// page stall the reads.
fn sum(numbers: &[u64]) -> u64 {
    let (left, right) = numbers.split_at(numbers.len() / 2);
    let [(a, b), (c, d)] = [left, right].map(|half| half.split_at(half.len() / 2));
    let [a, b, c, d] = [a, b, c, d].map(|stretch| stretch.chunks_exact(8));
    let mut sums = [0u64; 8];
    for (((a, b), c), d) in a.zip(b).zip(c).zip(d) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = [a, b, c, d].iter().fold(*sum, |sum, stretch| sum.wrapping_add(stretch[i]));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_read() {
        assert_eq!(sum(&(0..64).collect::<Vec<_>>()), 64 * 63 / 2);
    }
}
