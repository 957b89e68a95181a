//! What calibration of a basis asks for: how the directions of keys, and of queries, depend on each other.

use std::sync::Mutex;

use super::attended::key_weights;
use super::pool::Pool;
use super::prune::Prune;
use super::tokens::{Rotation, Tokens};
use crate::element::Element;

/// Positions below this one are in one octave.
const FIRST_OCTAVE: f64 = 64.0;

/// A position for new token `i`, one of `rows`: any of the octaves is as probable as any other. What is calibrated on a
/// short text is so fit for long contexts, whose channels rotation mixes otherwise, and yet for short ones.
fn position(i: usize, rows: usize) -> usize {
    // The golden section: any number of consecutive shares is spread evenly.
    let share = (i as f64 * 0.618_033_988_749_895).fract();
    let least = FIRST_OCTAVE.min(rows as f64);
    ((least * (rows as f64 / least).powf(share)) as usize).clamp(1, rows.max(1)) - 1
}

/// Vectors that are added at once.
const AT_ONCE: usize = 16;

/// Writes the sums of `k k^T` over the valid new tokens, weighed by the attention that later queries pay to them, and
/// of `q q^T` over these and the query heads that share a KV head, to `out`, `[B, Hk, 2, D, D]`, in the model's own
/// channels. Where they are rotated, it is at positions that are spread over all octaves of the rotation's, but for the
/// first token of a sequence, which stays the first.
///
/// # Panics
/// If `out` has another length.
pub fn covariances<T: Element>(pool: &dyn Pool, call: &Prune<'_, T>, out: &mut [f32]) {
    let (kv_heads, group, d) = (call.geometry.kv_heads, call.geometry.group(), call.geometry.head_dim());
    assert_eq!(out.len(), call.geometry.batch * kv_heads * 2 * d * d);
    // Each is locked once, by the thread that works on it.
    let parts: Vec<_> = out.chunks_exact_mut(d * d).map(Mutex::new).collect();
    let mut positions = Vec::new();
    if let Some(rotation) = &call.tokens.rotation {
        let (new, rows) = (call.geometry.new, rotation.cos.nrows());
        let is_first = |n: usize| n.is_multiple_of(new) && call.lengths.past[n / new] == 0;
        let spread = |(n, own): (usize, &usize)| if is_first(n) { *own } else { position(n % new, rows) };
        positions = rotation.positions.iter().enumerate().map(spread).collect();
    }
    let Tokens { query, key, value, rotation, .. } = &call.tokens;
    let rotation = rotation.as_ref().map(|rotation| Rotation {
        style: rotation.style,
        cos: rotation.cos.view(),
        sin: rotation.sin.view(),
        positions: &positions,
    });
    let tokens = Tokens { query: query.view(), key: key.view(), value: value.view(), rotation, basis: None };
    pool.par_for(parts.len(), &|n| {
        let sum = &mut **parts[n].lock().unwrap();
        let (head, of_queries) = (n / 2, n % 2 == 1);
        let (b, h) = (head / kv_heads, head % kv_heads);
        sum.fill(0.0);
        let mut vectors = vec![0.0; AT_ONCE * d];
        let mut used = 0;
        let mut add = |read: &dyn Fn(&mut [f32])| {
            read(&mut vectors[used * d..(used + 1) * d]);
            used += 1;
            if used == AT_ONCE {
                add_squares(sum, &vectors, d);
                used = 0;
            }
        };
        if of_queries {
            for i in 0..call.lengths.new[b] {
                (0..group).for_each(|g| add(&|x| tokens.query(b, h * group + g, i, x)));
            }
        } else {
            for (i, weight) in key_weights(call, b, h).into_iter().enumerate() {
                let root = weight.sqrt();
                add(&|x| {
                    tokens.key(b, h, i, x);
                    x.iter_mut().for_each(|x| *x *= root);
                });
            }
        }
        add_squares(sum, &vectors[..used * d], d);
    });
}

/// Adds `x x^T` of each of `vectors`, of `d` channels, to `sum`.
fn add_squares(sum: &mut [f32], vectors: &[f32], d: usize) {
    for (j, sum) in sum.chunks_exact_mut(d).enumerate() {
        for x in vectors.chunks_exact(d) {
            let factor = x[j];
            sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_spread_over_octaves() {
        let rows = 4096;
        let mut octaves = [0; 7];
        for i in 0..700 {
            let position = position(i, rows);
            assert!(position < rows);
            octaves[((position + 1).ilog2() as usize).saturating_sub(6)] += 1;
        }
        // 64 to 4096 are six of them.
        assert!(octaves[..6].iter().all(|&count| (100..=134).contains(&count)), "{octaves:?}");
        assert_eq!([position(5, 1), position(5, 0)], [0, 0]);
        assert!((0..100).all(|i| position(i, 40) < 40));
    }

    #[test]
    fn squares_are_added() {
        let (x, y) = ([1.0, 2.0, -3.0], [0.5, 0.0, 4.0]);
        let mut sum = [1.0; 9];
        add_squares(&mut sum, &[x, y].concat(), 3);
        for (n, sum) in sum.into_iter().enumerate() {
            assert_eq!(sum, 1.0 + x[n / 3] * x[n % 3] + y[n / 3] * y[n % 3]);
        }
    }
}
