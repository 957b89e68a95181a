//! From products to weights.

use std::ops::Range;

use crate::cpu::attention::Attention;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::element::Element;

/// Below this, a float32 is less than 1/4 away from the number that it is rounded from.
const MOST_PLAIN: f32 = 4_194_304.0;

/// The greatest score of products of a query and the keys at positions `keys`, which are left as they are. `None`
/// unless scores are but scaled products, not huge, and the query sees all of these keys.
#[inline(always)]
fn greatest_plain<T: Element, V: Vector>(
    v: V,
    call: &Attention<'_, T>,
    (b, _, i): (usize, usize, usize),
    keys: &Range<usize>,
    products: &[[f32; LANES]],
) -> Option<f32> {
    let (seen, scale) = (call.seen_by(b, i), call.score_scale());
    let all = seen.start <= keys.start && keys.end <= seen.end && keys.len().is_multiple_of(LANES);
    if !all || !call.plain_scores() || scale <= 0.0 {
        return None;
    }
    let (mut greatest, mut zeros) = (v.splat(f32::NEG_INFINITY), v.splat(0.0));
    for products in products {
        let x = v.load(products);
        greatest = v.max(greatest, x);
        zeros = v.mul_add(x, v.splat(0.0), zeros);
    }
    let greatest = v.greatest(greatest) * scale;
    // The sum is NaN where a product is not finite; what is greatest then means nothing. A huge score may be rounded by
    // more than what e can be raised to.
    (greatest.abs() < MOST_PLAIN && v.sums([zeros]) == [0.0]).then_some(greatest)
}

/// Turns products of a query and the keys at positions `keys` into scores, in place: scaled, masked (minus infinity
/// where the query sees nothing), and what the attributes ask for. What follows them in the last block becomes minus
/// infinity too. Returns the greatest.
#[inline(always)]
fn finish<T: Element, V: Vector>(
    v: V,
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
    let (scale, low, high) = (v.splat(call.score_scale()), v.splat(f32::MIN), v.splat(f32::MAX));
    let mut greatest = v.splat(f32::NEG_INFINITY);
    for (block, scores) in products.iter_mut().enumerate() {
        let mut x = v.load(scores);
        if plain {
            x = v.min(v.max(v.mul(x, scale), low), high);
        }
        let from = block * LANES;
        if first > from || last < from + LANES {
            let bits = |to: usize| ((1u32 << to.saturating_sub(from).min(LANES)) - 1) as u16;
            x = v.select(bits(last) & !bits(first), x, v.splat(f32::NEG_INFINITY));
        }
        v.store(x, scores);
        greatest = v.max(greatest, x);
    }
    v.greatest(greatest)
}

/// Turns `scores`, which are to be multiplied by `factor`, into `e^(score - max)`, in place, and returns their sum.
#[inline(always)]
fn weights<V: Vector>(v: V, scores: &mut [[f32; LANES]], factor: f32, max: f32) -> f32 {
    let mut sum = v.splat(0.0);
    let (factor, shift) = (v.splat(factor), v.splat(-max));
    for scores in scores {
        let p = v.exp(v.mul_add(v.load(scores), factor, shift));
        sum = v.add(sum, p);
        v.store(p, scores);
    }
    v.sums([sum])[0]
}

/// Turns products of a query and the keys at positions `keys` into weights, in place, and adds them to what was found
/// before: greatest score `max` and `sum` of weights. Returns what earlier weighted sums are to be multiplied by.
#[inline(always)]
pub(super) fn to_weights<T: Element, V: Vector>(
    v: V,
    call: &Attention<'_, T>,
    query: (usize, usize, usize),
    keys: Range<usize>,
    products: &mut [[f32; LANES]],
    (max, sum): (&mut f32, &mut f32),
) -> f32 {
    let mut rescale = 1.0;
    let (greatest, factor) = match greatest_plain(v, call, query, &keys, products) {
        Some(greatest) => (greatest, call.score_scale()),
        None => (finish(v, call, query, keys, products), 1.0),
    };
    if greatest == f32::NEG_INFINITY {
        products.as_flattened_mut().fill(0.0);
        return rescale;
    }
    if greatest > *max {
        rescale = (*max - greatest).exp();
        *sum *= rescale;
        *max = greatest;
    }
    *sum += weights(v, products, factor, *max);
    rescale
}
