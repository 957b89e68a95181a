//! Weighted sums of values, sixteen channels at a time.

use super::window::window;
use crate::cpu::decode::chunk::{ByKey, HeadLanes, no_products};
use crate::cpu::decode::prefetch::Prefetch;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::format::v1::layout::{Bits, MAX_HEAD_DIM, ValueLayout};
use crate::format::v2::rotation::rotate_back;

/// Values of keys, a block of channels at a time.
trait Source<V: Vector> {
    /// Whether there may be infinity or NaN.
    const UNCHECKED: bool = false;

    /// Block `n` of the value of `key`. To be `inline(always)`.
    fn block(&self, v: V, key: usize, n: usize) -> V::Lanes;
}

/// Rows, of `bytes` each, whose channels begin at `codes`.
#[derive(Clone, Copy)]
struct Rows<'a> {
    rows: &'a [u8],
    bytes: usize,
    codes: usize,
}

/// Channels are float16. Without `SPECIAL`, infinity and NaN stay what they are.
struct F16s<'a, const SPECIAL: bool>(Rows<'a>);
/// Channels are bytes.
struct Bytes<'a>(Rows<'a>);
/// Channels are nibbles: of each two blocks, the first has the even channels, the second the odd ones.
struct Nibbles<'a>(Rows<'a>);
/// Dense values in float32, and the channels of each.
struct Dense<'a>(&'a [f32], usize);

impl Rows<'_> {
    #[inline(always)]
    fn window<const N: usize>(&self, key: usize, n: usize) -> &[u8; N] {
        window(self.rows, key * self.bytes + self.codes + n * N)
    }
}

impl<V: Vector, const SPECIAL: bool> Source<V> for F16s<'_, SPECIAL> {
    const UNCHECKED: bool = !SPECIAL;

    #[inline(always)]
    fn block(&self, v: V, key: usize, n: usize) -> V::Lanes {
        v.load_f16::<SPECIAL>(self.0.window(key, n))
    }
}

impl<V: Vector> Source<V> for Bytes<'_> {
    #[inline(always)]
    fn block(&self, v: V, key: usize, n: usize) -> V::Lanes {
        v.load_u8(self.0.window(key, n))
    }
}

impl<V: Vector> Source<V> for Nibbles<'_> {
    #[inline(always)]
    fn block(&self, v: V, key: usize, n: usize) -> V::Lanes {
        v.load_nibbles(self.0.window(key, n / 2))[n % 2]
    }
}

impl<V: Vector> Source<V> for Dense<'_> {
    #[inline(always)]
    fn block(&self, v: V, key: usize, n: usize) -> V::Lanes {
        let &Dense(values, d) = self;
        v.load(values[key * d + n * LANES..][..LANES].first_chunk().expect("a block"))
    }
}

/// What the values of `keys` keys are multiplied by, and what is added to every channel.
struct Factors<'w, const H: usize> {
    keys: usize,
    weights: &'w ByKey<H>,
    more: &'w [f32; H],
    /// What asks for rows along with the first block; none for dense values.
    prefetch: Option<&'w Prefetch<'w>>,
}

/// Adds the values of `source` times their weights to `sums`, which begin at block `first`. Returns the number of sums
/// that were added to: all, unless the source's numbers are [`Source::UNCHECKED`] and the next sums would not be
/// finite.
#[inline(always)]
fn add<V: Vector, const H: usize>(
    v: V,
    source: &impl Source<V>,
    factors: &Factors<'_, H>,
    first: usize,
    sums: &mut [HeadLanes<H>],
) -> usize {
    // As many blocks at once as registers can hold the sums of: each weight is then read once for all of them.
    let mut at = 0;
    if H <= 4 {
        while let Some(sums) = sums[at..].first_chunk_mut::<4>() {
            if !add_blocks(v, source, factors, first + at, sums) {
                return at;
            }
            at += 4;
        }
    }
    while let Some(sums) = sums[at..].first_chunk_mut::<2>() {
        if !add_blocks(v, source, factors, first + at, sums) {
            return at;
        }
        at += 2;
    }
    if let Some(sums) = sums[at..].first_chunk_mut::<1>()
        && add_blocks(v, source, factors, first + at, sums)
    {
        at += 1;
    }
    at
}

/// Adds to `N` blocks. Returns false and adds nothing if the source's numbers are unchecked and the sums would not be
/// finite.
#[expect(clippy::needless_range_loop, reason = "several arrays have the same index")]
#[inline(always)]
fn add_blocks<V: Vector, const H: usize, const N: usize, S: Source<V>>(
    v: V,
    source: &S,
    factors: &Factors<'_, H>,
    first: usize,
    sums: &mut [HeadLanes<H>; N],
) -> bool {
    let &Factors { keys, weights, more, prefetch } = factors;
    let weights: [&[f32]; H] = weights.each_ref().map(|w| &w.as_flattened()[..keys]);
    let mut lanes = [[v.splat(0.0); H]; N];
    for n in 0..N {
        for h in 0..H {
            lanes[n][h] = v.add(v.load(&sums[n].0[h]), v.splat(more[h]));
        }
    }
    for key in 0..keys {
        if first == 0
            && let Some(prefetch) = prefetch
        {
            prefetch.at_value(v, key);
        }
        let mut values = [v.splat(0.0); N];
        for (n, value) in values.iter_mut().enumerate() {
            *value = source.block(v, key, first + n);
        }
        for h in 0..H {
            let weight = v.splat(weights[h][key]);
            for n in 0..N {
                lanes[n][h] = v.mul_add(values[n], weight, lanes[n][h]);
            }
        }
    }
    if S::UNCHECKED && !v.all_finite(lanes.as_flattened()) {
        return false;
    }
    for (lanes, sums) in lanes.iter().zip(sums) {
        for (&lanes, sum) in lanes.iter().zip(&mut sums.0) {
            v.store(lanes, sum);
        }
    }
    true
}

/// Adds the values of `keys` rows times their `weights` to `sums`, one entry a block of channels. With 4 bits, two
/// blocks hold the even and the odd channels of a group: [`finish_rows`] puts that right at the end.
#[inline(always)]
pub(in crate::cpu) fn add_rows<V: Vector, const H: usize>(
    v: V,
    layout: &ValueLayout,
    (rows, keys): (&[u8], usize),
    prefetch: &Prefetch,
    weights: &ByKey<H>,
    sums: &mut [HeadLanes<H>],
) {
    let all = Rows { rows, bytes: layout.row_bytes(), codes: layout.codes_at() };
    let prefetch = Some(prefetch);
    match layout.bits() {
        Bits::B16 => {
            let factors = Factors { keys, weights, more: &[0.0; H], prefetch };
            // Infinity and NaN, which are rare, show in the sums.
            let added = add(v, &F16s::<false>(all), &factors, 0, sums);
            add(v, &F16s::<true>(all), &factors, added, &mut sums[added..]);
        }
        Bits::B8 => {
            let (mut weighted, mut least) = ([no_products()], [[0.0; H]]);
            scaled(v, layout, rows, keys, weights, &mut weighted, &mut least);
            add(v, &Bytes(all), &Factors { keys, weights: &weighted[0], more: &least[0], prefetch }, 0, sums);
        }
        Bits::B4 => {
            let (mut weighted, mut least) = ([no_products(); MOST_GROUPS], [[0.0; H]; MOST_GROUPS]);
            // One for 32 channels each, or one for all.
            let groups = layout.groups();
            scaled(v, layout, rows, keys, weights, &mut weighted[..groups], &mut least[..groups]);
            for (pair, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let group = pair.min(groups - 1);
                let factors = Factors { keys, weights: &weighted[group], more: &least[group], prefetch };
                add(v, &Nibbles(all), &factors, 2 * pair, sums);
            }
        }
    }
}

/// Most pairs of scale and minimum of a row.
const MOST_GROUPS: usize = MAX_HEAD_DIM / (2 * LANES);

/// Scale and minimum of each group of a row.
#[inline(always)]
fn pairs<V: Vector>(v: V, layout: &ValueLayout, row: &[u8]) -> [[f32; 2]; MOST_GROUPS] {
    let mut pairs = [[0.0; 2]; MOST_GROUPS];
    // Bytes after the pairs are read too and ignored: they are codes, so a row always has enough of them.
    for (pairs, at) in pairs.as_chunks_mut::<4>().0.iter_mut().zip((0..layout.codes_at()).step_by(LANES)) {
        let halves = v.eight_f16(window(row, at));
        pairs.as_flattened_mut().copy_from_slice(&halves);
    }
    pairs
}

/// Fills `scaled` with weights times the scale of each group, and adds weights times its minimum to `least`.
#[inline(always)]
fn scaled<V: Vector, const H: usize>(
    v: V,
    layout: &ValueLayout,
    rows: &[u8],
    keys: usize,
    weights: &ByKey<H>,
    scaled: &mut [ByKey<H>],
    least: &mut [[f32; H]],
) {
    for (key, row) in rows.chunks_exact(layout.row_bytes()).enumerate().take(keys) {
        let pairs = pairs(v, layout, row);
        for (([scale, minimum], scaled), least) in pairs.into_iter().zip(&mut *scaled).zip(&mut *least) {
            for h in 0..H {
                let weight = weights[h].as_flattened()[key];
                scaled[h].as_flattened_mut()[key] = weight * scale;
                least[h] += weight * minimum;
            }
        }
    }
}

/// Puts the sums of [`add_rows`] in the order of the channels, where even and odd ones of a group are apart, and
/// rotates them back, where rows are rotated.
#[inline(always)]
pub(in crate::cpu) fn finish_rows<const H: usize>(layout: &ValueLayout, sums: &mut [HeadLanes<H>]) {
    if layout.bits() == Bits::B4 {
        for [first, second] in sums.as_chunks_mut::<2>().0 {
            for h in 0..H {
                let (even, odd) = (first.0[h], second.0[h]);
                let channel = |j: usize| [even, odd][j % 2][j / 2];
                first.0[h] = std::array::from_fn(channel);
                second.0[h] = std::array::from_fn(|j| channel(LANES + j));
            }
        }
    }
    if layout.is_rotated() {
        let mut channels = [[0.0; LANES]; MAX_HEAD_DIM / LANES];
        let channels = &mut channels[..sums.len()];
        for h in 0..H {
            channels.iter_mut().zip(&*sums).for_each(|(to, sums)| *to = sums.0[h]);
            rotate_back(channels.as_flattened_mut());
            sums.iter_mut().zip(&*channels).for_each(|(sums, from)| sums.0[h] = *from);
        }
    }
}

/// Adds dense `values`, `[keys, D]`, times their `weights` to `sums`.
#[inline(always)]
pub(in crate::cpu) fn add_dense<V: Vector, const H: usize>(
    v: V,
    values: &[f32],
    keys: usize,
    weights: &ByKey<H>,
    sums: &mut [HeadLanes<H>],
) {
    let source = Dense(values, sums.len() * LANES);
    add(v, &source, &Factors { keys, weights, more: &[0.0; H], prefetch: None }, 0, sums);
}

/// Two nibbles of each byte, low first.
#[inline(always)]
fn nibbles(bytes: &[u8; LANES]) -> [u8; 2 * LANES] {
    let mut nibbles = [0; 2 * LANES];
    for (pair, byte) in nibbles.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [byte & 15, byte >> 4];
    }
    nibbles
}

/// Decodes a row into `value`, `[D]`.
#[inline(always)]
pub(in crate::cpu) fn decode<V: Vector>(v: V, layout: &ValueLayout, row: &[u8], value: &mut [[f32; LANES]]) {
    let codes = layout.codes_at();
    match layout.bits() {
        Bits::B16 => {
            for (block, value) in value.iter_mut().enumerate() {
                v.store(v.load_f16::<true>(window(row, 2 * LANES * block)), value);
            }
        }
        Bits::B8 => {
            let [step, least] = pairs(v, layout, row)[0];
            let (step, least) = (v.splat(step), v.splat(least));
            for (block, value) in value.iter_mut().enumerate() {
                let code = v.load_u8(window(row, codes + LANES * block));
                v.store(v.mul_add(code, step, least), value);
            }
        }
        Bits::B4 => {
            let pairs = pairs(v, layout, row);
            for (group, [first, second]) in value.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let [step, least] = pairs[group.min(layout.groups() - 1)].map(|x| v.splat(x));
                let bytes = nibbles(window(row, codes + LANES * group));
                for (value, at) in [(first, 0), (second, LANES)] {
                    v.store(v.mul_add(v.load_u8(window(&bytes, at)), step, least), value);
                }
            }
        }
    }
    if layout.is_rotated() {
        rotate_back(value.as_flattened_mut());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nibbles_come_low_first() {
        let bytes: [u8; 16] = std::array::from_fn(|i| (37 * i) as u8);
        let nibbles = super::nibbles(&bytes);
        for (i, byte) in bytes.into_iter().enumerate() {
            assert_eq!([nibbles[2 * i], nibbles[2 * i + 1]], [byte & 15, byte >> 4]);
        }
    }
}
