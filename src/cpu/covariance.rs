//! What calibration of a basis asks for: how the directions of keys, and of queries, depend on each other.

use std::sync::Mutex;

use super::pool::Pool;
use super::prune::Prune;
use crate::element::Element;

/// Vectors that are added at once.
const AT_ONCE: usize = 16;

/// Writes the sums of `k k^T` over the valid new tokens, and of `q q^T` over these and the query heads that share a KV
/// head, to `out`, `[B, Hk, 2, D, D]`. Both are rotated and in the basis of the model's own channels.
///
/// # Panics
/// If `out` has another length.
pub fn covariances<T: Element>(pool: &dyn Pool, call: &Prune<'_, T>, out: &mut [f32]) {
    let (kv_heads, group, d) = (call.geometry.kv_heads, call.geometry.group(), call.geometry.head_dim());
    assert_eq!(out.len(), call.geometry.batch * kv_heads * 2 * d * d);
    // Each is locked once, by the thread that works on it.
    let parts: Vec<_> = out.chunks_exact_mut(d * d).map(Mutex::new).collect();
    let tokens = call.tokens.without_basis();
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
        for i in 0..call.lengths.new[b] {
            match of_queries {
                true => (0..group).for_each(|g| add(&|x| tokens.query(b, h * group + g, i, x))),
                false => add(&|x| tokens.key(b, h, i, x)),
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
