//! From products to weights.

use std::ops::Range;

use crate::cpu::Attention;
use crate::cpu::vector::{LANES, Vector};
use crate::element::Element;

/// Turns products of a query and the keys at positions `keys` into scores, in place: scaled, masked (minus infinity
/// where the query sees nothing), and what the attributes ask for. What follows them in the last block becomes minus
/// infinity too. Returns the greatest.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn finish<T: Element, V: Vector>(
    call: &Attention<'_, T>,
    (b, head, i): (usize, usize, usize),
    keys: Range<usize>,
    products: &mut [[f32; LANES]],
) -> f32 {
    let count = keys.len();
    let seen = call.seen_by(b, i);
    let flat = products.as_flattened_mut();
    flat[count..].fill(f32::NEG_INFINITY);
    let first = seen.start.clamp(keys.start, keys.end) - keys.start;
    let last = seen.end.clamp(keys.start + first, keys.end) - keys.start;
    if !call.plain_scores() {
        for (at, score) in flat[first..last].iter_mut().enumerate() {
            *score = call.score(*score, (b, head, i, keys.start + first + at)).unwrap_or(f32::NEG_INFINITY);
        }
    }
    let plain = call.plain_scores();
    // SAFETY: as this function.
    unsafe {
        let (scale, low, high) = (V::splat(call.score_scale()), V::splat(f32::MIN), V::splat(f32::MAX));
        let mut greatest = V::splat(f32::NEG_INFINITY);
        for (block, scores) in products.iter_mut().enumerate() {
            let mut x = V::load(scores);
            if plain {
                x = V::min(V::max(V::mul(x, scale), low), high);
            }
            let from = block * LANES;
            if first > from || last < from + LANES {
                let bits = |to: usize| ((1u32 << to.saturating_sub(from).min(LANES)) - 1) as u16;
                x = V::select(bits(last) & !bits(first), x, V::splat(f32::NEG_INFINITY));
            }
            V::store(x, scores);
            greatest = V::max(greatest, x);
        }
        V::greatest(greatest)
    }
}

/// Turns `scores` into `e^(score - max)`, in place, and returns their sum.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn weights<V: Vector>(scores: &mut [[f32; LANES]], max: f32) -> f32 {
    // SAFETY: as this function.
    unsafe {
        let mut sum = V::splat(0.0);
        let shift = V::splat(-max);
        for scores in scores {
            let p = V::exp(V::add(V::load(scores), shift));
            sum = V::add(sum, p);
            V::store(p, scores);
        }
        V::sums([sum])[0]
    }
}

/// Turns products of a query and the keys at positions `keys` into weights, in place, and adds them to what was found
/// before: greatest score `max` and `sum` of weights. Returns what earlier weighted sums are to be multiplied by.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn to_weights<T: Element, V: Vector>(
    call: &Attention<'_, T>,
    query: (usize, usize, usize),
    keys: Range<usize>,
    products: &mut [[f32; LANES]],
    (max, sum): (&mut f32, &mut f32),
) -> f32 {
    let mut rescale = 1.0;
    // SAFETY: as this function.
    unsafe {
        let greatest = finish::<T, V>(call, query, keys, products);
        if greatest == f32::NEG_INFINITY {
            products.as_flattened_mut().fill(0.0);
            return rescale;
        }
        if greatest > *max {
            rescale = (*max - greatest).exp();
            *sum *= rescale;
            *max = greatest;
        }
        *sum += weights::<V>(products, *max);
    }
    rescale
}
