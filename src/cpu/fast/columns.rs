//! From products to weights, a column a query: sixteen queries are a vector.

use std::ops::Range;

use super::Block;
use crate::cpu::Attention;
use crate::cpu::vector::{LANES, Vector, Work};
use crate::element::Element;

/// What the queries of a block found so far, sixteen at a time; the last ones may be fewer.
pub(super) struct Columns {
    /// Greatest scores; minus infinity where no key was seen.
    pub(super) max: Vec<[f32; LANES]>,
    /// Sums of weights.
    pub(super) sum: Vec<[f32; LANES]>,
    /// What earlier weighted sums are to be multiplied by.
    rescale: Vec<[f32; LANES]>,
}

impl Columns {
    /// For `queries`, which have seen nothing yet.
    pub(super) fn new(queries: usize) -> Self {
        let all = |x| vec![[x; LANES]; queries.div_ceil(LANES)];
        Self { max: all(f32::NEG_INFINITY), sum: all(0.0), rescale: all(1.0) }
    }

    /// Turns `products` of the keys at `positions` with the `queries` of `block`, `[keys, queries]`, into weights, in
    /// place, and adds them to what was found before. Products of no query become weights of zero. The first of the
    /// `queries` begins a vector. Returns what their earlier weighted sums are to be multiplied by.
    pub(super) fn weigh<T: Element, V: Vector>(
        &mut self,
        call: &Attention<'_, T>,
        block: &Block,
        queries: Range<usize>,
        positions: Range<usize>,
        products: &mut [[f32; LANES]],
    ) -> &[[f32; LANES]] {
        let first = queries.start / LANES;
        let (sequence, queries) = (block.sequence, &block.items[queries]);
        let (max, sum, rescale) = (&mut self.max[first..], &mut self.sum[first..], &mut self.rescale[first..]);
        // SAFETY: a path is only taken on processors that have its instructions.
        unsafe { V::run(Weigh { call, sequence, queries, positions, products, max, sum, rescale }) }
        &self.rescale[first..]
    }
}

struct Weigh<'s, 'c, T> {
    call: &'s Attention<'c, T>,
    sequence: usize,
    queries: &'s [(usize, usize)],
    positions: Range<usize>,
    products: &'s mut [[f32; LANES]],
    max: &'s mut [[f32; LANES]],
    sum: &'s mut [[f32; LANES]],
    rescale: &'s mut [[f32; LANES]],
}

impl<T: Element> Work for Weigh<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn with<V: Vector>(self) {
        let Self { call, sequence, queries, positions, products, max, sum, rescale } = self;
        let width = max.len();
        // SAFETY: by the trait's contract.
        unsafe {
            if call.plain_scores() {
                scale::<V>(call.score_scale(), products);
            }
            for (n, queries) in queries.chunks(LANES).enumerate() {
                finish(call, sequence, queries, positions.clone(), products, (n, width));
            }
            // A row at a time: columns are too far apart in memory.
            let mut greatest = max.to_vec();
            for row in products.chunks_exact(width) {
                for (greatest, scores) in greatest.iter_mut().zip(row) {
                    V::store(V::max(V::load(greatest), V::load(scores)), greatest);
                }
            }
            for ((max, greatest), (sum, rescale)) in max.iter_mut().zip(&greatest).zip(sum.iter_mut().zip(rescale)) {
                for lane in 0..LANES {
                    rescale[lane] = 1.0;
                    if greatest[lane] > max[lane] {
                        rescale[lane] = (max[lane] - greatest[lane]).exp();
                        sum[lane] *= rescale[lane];
                        max[lane] = greatest[lane];
                    }
                }
            }
            // A query that has seen nothing: its scores, minus infinity, are to become zero.
            let shift: Vec<_> =
                max.iter().map(|max| max.map(|m| if m == f32::NEG_INFINITY { 0.0 } else { -m })).collect();
            for row in products.chunks_exact_mut(width) {
                for ((scores, shift), sum) in row.iter_mut().zip(&shift).zip(sum.iter_mut()) {
                    let p = V::exp(V::add(V::load(scores), V::load(shift)));
                    V::store(p, scores);
                    V::store(V::add(V::load(sum), p), sum);
                }
            }
        }
    }
}

/// Multiplies products by the factor of scores, and limits them to finite numbers.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn scale<V: Vector>(factor: f32, products: &mut [[f32; LANES]]) {
    // SAFETY: as this function.
    unsafe {
        let (factor, low, high) = (V::splat(factor), V::splat(f32::MIN), V::splat(f32::MAX));
        for products in products {
            V::store(V::min(V::max(V::mul(V::load(products), factor), low), high), products);
        }
    }
}

/// Makes column `n` of vectors, products of `queries` with the keys at `positions`, what else the attributes ask for, and
/// minus infinity where a query sees nothing or there is none.
#[inline(always)]
fn finish<T: Element>(
    call: &Attention<'_, T>,
    b: usize,
    queries: &[(usize, usize)],
    positions: Range<usize>,
    products: &mut [[f32; LANES]],
    (n, width): (usize, usize),
) {
    let mut first = [usize::MAX; LANES];
    let mut end = [0; LANES];
    for (lane, &(_, i)) in queries.iter().enumerate() {
        let seen = call.seen_by(b, i);
        (first[lane], end[lane]) = (seen.start, seen.end);
    }
    let all = first.iter().all(|&f| f <= positions.start) && end.iter().all(|&e| e >= positions.end);
    if all && call.plain_scores() {
        return;
    }
    let column = products.iter_mut().skip(n).step_by(width);
    for (t, scores) in positions.zip(column) {
        for lane in 0..LANES {
            if t < first[lane] || t >= end[lane] {
                scores[lane] = f32::NEG_INFINITY;
            } else if !call.plain_scores() {
                let (head, i) = queries[lane];
                scores[lane] = call.score(scores[lane], (b, head, i, t)).unwrap_or(f32::NEG_INFINITY);
            }
        }
    }
}
