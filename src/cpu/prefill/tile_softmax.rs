//! From products to weights, a column a query: sixteen queries are a vector.

use std::ops::Range;

use super::gemm::Panel;
use crate::cpu::attention::Attention;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::element::Element;

/// What some queries found so far; lanes beyond the last one mean nothing.
#[derive(Clone, Copy)]
pub(super) struct TileSoftmax<const N: usize> {
    /// Greatest scores; minus infinity where no key was seen.
    pub(super) max: Panel<N>,
    /// Sums of weights.
    pub(super) sum: Panel<N>,
}

impl<const N: usize> TileSoftmax<N> {
    /// Nothing seen yet.
    pub(super) const EMPTY: Self = Self { max: [[f32::NEG_INFINITY; LANES]; N], sum: [[0.0; LANES]; N] };

    /// Turns `products` of the keys at positions `keys` with `queries` (query head and new token) of sequence `b` into
    /// weights, in place, and adds them to what was found before. Returns what earlier weighted sums are to be
    /// multiplied by, or none where that is 1 for all.
    #[inline(always)]
    pub(super) fn weigh<T: Element, V: Vector>(
        &mut self,
        v: V,
        call: &Attention<'_, T>,
        (b, queries): (usize, &[(usize, usize)]),
        keys: Range<usize>,
        products: &mut [Panel<N>],
    ) -> Option<Panel<N>> {
        let greatest = {
            if call.plain_scores() {
                scale(v, call.score_scale(), products);
            }
            mask(call, (b, queries), keys, products);
            greatest(v, self.max, products)
        };
        let mut rescale = [[1.0; LANES]; N];
        let higher = greatest != self.max;
        if higher {
            let states = self.max.as_flattened_mut().iter_mut().zip(self.sum.as_flattened_mut());
            let states = states.zip(greatest.as_flattened()).zip(rescale.as_flattened_mut());
            for (((max, sum), &greatest), rescale) in states {
                if greatest > *max {
                    *rescale = (*max - greatest).exp();
                    *sum *= *rescale;
                    *max = greatest;
                }
            }
        }
        // A query that has seen nothing: its scores, minus infinity, are to become zero.
        let shift = self.max.map(|max| max.map(|max| if max == f32::NEG_INFINITY { 0.0 } else { -max }));
        weights(v, shift, products, &mut self.sum);
        higher.then_some(rescale)
    }
}

/// Multiplies products by the factor of scores, and limits them to finite numbers.
#[inline(always)]
fn scale<V: Vector, const N: usize>(v: V, factor: f32, products: &mut [Panel<N>]) {
    let (factor, low, high) = (v.splat(factor), v.splat(f32::MIN), v.splat(f32::MAX));
    for products in products.as_flattened_mut() {
        v.store(v.min(v.max(v.mul(v.load(products), factor), low), high), products);
    }
}

/// Puts minus infinity where a query does not see a key, and makes the others what the attributes ask for, unless they
/// are plain.
#[inline(always)]
fn mask<T: Element, const N: usize>(
    call: &Attention<'_, T>,
    (b, queries): (usize, &[(usize, usize)]),
    keys: Range<usize>,
    products: &mut [Panel<N>],
) {
    let plain = call.plain_scores();
    let mut seen = [[(0, usize::MAX); LANES]; N];
    for (seen, &(_, i)) in seen.as_flattened_mut().iter_mut().zip(queries) {
        let range = call.seen_by(b, i);
        *seen = (range.start, range.end);
    }
    let seen = seen.as_flattened();
    let by_all = seen.iter().fold(0..usize::MAX, |all, s| all.start.max(s.0)..all.end.min(s.1));
    for (t, products) in keys.zip(products) {
        if plain && by_all.contains(&t) {
            continue;
        }
        for ((product, seen), &(head, i)) in products.as_flattened_mut().iter_mut().zip(seen).zip(queries) {
            if t < seen.0 || t >= seen.1 {
                *product = f32::NEG_INFINITY;
            } else if !plain {
                *product = call.score(*product, (b, head, i, t)).unwrap_or(f32::NEG_INFINITY);
            }
        }
    }
}

/// The greatest of `than` and the scores.
#[inline(always)]
fn greatest<V: Vector, const N: usize>(v: V, than: Panel<N>, scores: &[Panel<N>]) -> Panel<N> {
    let mut to = than;
    let mut greatest = [v.splat(f32::NEG_INFINITY); N];
    for n in 0..N {
        greatest[n] = v.load(&than[n]);
    }
    for scores in scores {
        for n in 0..N {
            greatest[n] = v.max(greatest[n], v.load(&scores[n]));
        }
    }
    for n in 0..N {
        v.store(greatest[n], &mut to[n]);
    }
    to
}

/// Turns scores into `e^(score + shift)`, in place, and adds them to `sum`.
#[inline(always)]
fn weights<V: Vector, const N: usize>(v: V, shift: Panel<N>, scores: &mut [Panel<N>], sum: &mut Panel<N>) {
    let mut sums = [v.splat(0.0); N];
    for n in 0..N {
        sums[n] = v.load(&sum[n]);
    }
    for scores in scores {
        for n in 0..N {
            let p = v.exp(v.add(v.load(&scores[n]), v.load(&shift[n])));
            v.store(p, &mut scores[n]);
            sums[n] = v.add(sums[n], p);
        }
    }
    for n in 0..N {
        v.store(sums[n], &mut sum[n]);
    }
}
