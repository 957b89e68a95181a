//! From products to weights, a column a query: sixteen queries are a vector.

use std::ops::Range;

use super::multiply::Side;
use crate::cpu::Attention;
use crate::cpu::vector::{LANES, Vector};
use crate::element::Element;

/// What some queries found so far; lanes beyond the last one mean nothing.
#[derive(Clone, Copy)]
pub(super) struct Columns<const N: usize> {
    /// Greatest scores; minus infinity where no key was seen.
    pub(super) max: Side<N>,
    /// Sums of weights.
    pub(super) sum: Side<N>,
}

impl<const N: usize> Columns<N> {
    /// Nothing seen yet.
    pub(super) const NONE: Self = Self { max: [[f32::NEG_INFINITY; LANES]; N], sum: [[0.0; LANES]; N] };

    /// Turns `products` of the keys at positions `keys` with `queries` (query head and new token) of sequence `b` into
    /// weights, in place, and adds them to what was found before. Returns what earlier weighted sums are to be multiplied
    /// by, or none where that is 1 for all.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn weigh<T: Element, V: Vector>(
        &mut self,
        call: &Attention<'_, T>,
        (b, queries): (usize, &[(usize, usize)]),
        keys: Range<usize>,
        products: &mut [Side<N>],
    ) -> Option<Side<N>> {
        // SAFETY: as this function.
        let greatest = unsafe {
            if call.plain_scores() {
                scale::<V, N>(call.score_scale(), products);
            }
            mask(call, (b, queries), keys, products);
            greatest::<V, N>(self.max, products)
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
        // SAFETY: as this function.
        unsafe { weights::<V, N>(shift, products, &mut self.sum) };
        higher.then_some(rescale)
    }
}

/// Multiplies products by the factor of scores, and limits them to finite numbers.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn scale<V: Vector, const N: usize>(factor: f32, products: &mut [Side<N>]) {
    // SAFETY: as this function.
    unsafe {
        let (factor, low, high) = (V::splat(factor), V::splat(f32::MIN), V::splat(f32::MAX));
        for products in products.as_flattened_mut() {
            V::store(V::min(V::max(V::mul(V::load(products), factor), low), high), products);
        }
    }
}

/// Puts minus infinity where a query does not see a key, and makes the others what the attributes ask for, unless they are
/// plain.
#[inline(always)]
fn mask<T: Element, const N: usize>(
    call: &Attention<'_, T>,
    (b, queries): (usize, &[(usize, usize)]),
    keys: Range<usize>,
    products: &mut [Side<N>],
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
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn greatest<V: Vector, const N: usize>(than: Side<N>, scores: &[Side<N>]) -> Side<N> {
    let mut to = than;
    // SAFETY: as this function.
    unsafe {
        let mut greatest = [V::splat(f32::NEG_INFINITY); N];
        for n in 0..N {
            greatest[n] = V::load(&than[n]);
        }
        for scores in scores {
            for n in 0..N {
                greatest[n] = V::max(greatest[n], V::load(&scores[n]));
            }
        }
        for n in 0..N {
            V::store(greatest[n], &mut to[n]);
        }
    }
    to
}

/// Turns scores into `e^(score + shift)`, in place, and adds them to `sum`.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn weights<V: Vector, const N: usize>(shift: Side<N>, scores: &mut [Side<N>], sum: &mut Side<N>) {
    // SAFETY: as this function.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for n in 0..N {
            sums[n] = V::load(&sum[n]);
        }
        for scores in scores {
            for n in 0..N {
                let p = V::exp(V::add(V::load(&scores[n]), V::load(&shift[n])));
                V::store(p, &mut scores[n]);
                sums[n] = V::add(sums[n], p);
            }
        }
        for n in 0..N {
            V::store(sums[n], &mut sum[n]);
        }
    }
}
