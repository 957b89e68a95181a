//! Vectors of sixteen float32: one algorithm over a small abstraction, thin types for each instruction set beneath.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{Avx512, expand_all_words, finite_halves};
pub(super) use portable::Portable;

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// The sixteen nibbles, but for a `skipped` low one, each in a byte, of the first half and of the second.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn nibbles_to_bytes(bytes: &[u8; LANES], skipped: bool) -> [u64; 2] {
    use std::arch::x86_64::_pdep_u64;
    let nibbles = (u128::from_le_bytes(*bytes) >> (4 * u32::from(skipped))) as u64;
    // SAFETY: the callers need BMI2.
    unsafe { [_pdep_u64(nibbles, 0x0f0f_0f0f_0f0f_0f0f), _pdep_u64(nibbles >> 32, 0x0f0f_0f0f_0f0f_0f0f)] }
}

/// Sixteen lanes of float32 of some instruction set.
///
/// Methods are `inline(always)`, so that what is written with them becomes instructions of the set within
/// [`Vector::run`], and only there. Closures are not inlined always: with vectors in them they are slow.
///
/// # Safety
/// All methods but `is_available` need a processor that has the instructions, for which [`Vector::is_available`] says
/// true.
pub(super) trait Vector: Copy + Send + Sync + 'static {
    /// Sixteen lanes.
    type Lanes: Copy;
    /// Whether [`Vector::is_available`] promises what it takes to read quantised rows in whole numbers.
    const WHOLE: bool = false;
    /// Whether it promises what it takes to read float16 rows with the registers of AVX-512.
    const WIDE: bool = false;
    /// Registers that a vector takes.
    const REGISTERS: usize;

    /// Whether this processor has the instructions.
    fn is_available() -> bool;

    /// Does `work`, compiled for the instruction set as far as it is `inline(always)`.
    unsafe fn run<W: Work>(work: W) -> W::Output;

    unsafe fn splat(x: f32) -> Self::Lanes;
    unsafe fn load(x: &[f32; LANES]) -> Self::Lanes;
    unsafe fn store(x: Self::Lanes, to: &mut [f32; LANES]);
    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    unsafe fn mul(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, rounded once or twice.
    unsafe fn mul_add(a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// The greater lanes; no lane may be NaN.
    unsafe fn max(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The lesser lanes; no lane may be NaN.
    unsafe fn min(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// Lanes of `yes` where `mask` has a bit, of `no` elsewhere.
    unsafe fn select(mask: u16, yes: Self::Lanes, no: Self::Lanes) -> Self::Lanes;
    /// The other sign where `mask` has a bit.
    unsafe fn negate(mask: u16, x: Self::Lanes) -> Self::Lanes;
    /// The greatest lane; none may be NaN.
    unsafe fn greatest(x: Self::Lanes) -> f32;
    /// The sum of the lanes of each.
    unsafe fn sums<const N: usize>(x: [Self::Lanes; N]) -> [f32; N];
    /// e to the power of lanes that are at most 88 and not NaN; 0 from -87 down.
    unsafe fn exp(x: Self::Lanes) -> Self::Lanes;

    /// Bytes as numbers.
    unsafe fn from_u8(bytes: &[u8; LANES]) -> Self::Lanes;
    /// Nibbles as numbers, the low ones and the high ones of each byte.
    unsafe fn from_nibbles(bytes: &[u8; LANES]) -> [Self::Lanes; 2];
    /// float16 as they are stored; NaN reads as 0, infinity as the end of the range. Without `SPECIAL`, both may stay what they
    /// are.
    unsafe fn from_f16<const SPECIAL: bool>(bytes: &[u8; 2 * LANES]) -> Self::Lanes;
    /// The first bytes as numbers, in the lanes where `mask` has a bit; 0 elsewhere.
    unsafe fn expand_u8(bytes: &[u8; LANES], mask: u16) -> Self::Lanes;
    /// The first float16 in the lanes where `mask` has a bit, read as by `from_f16`; 0 elsewhere.
    unsafe fn expand_f16<const SPECIAL: bool>(bytes: &[u8; 2 * LANES], mask: u16) -> Self::Lanes;
    /// As `expand_f16` in two vectors, one after the other, but with the lanes of `others` elsewhere.
    #[inline(always)]
    unsafe fn expand_halves<const SPECIAL: bool>(
        bytes: &[u8; 4 * LANES],
        mask: u32,
        others: [Self::Lanes; 2],
    ) -> [Self::Lanes; 2] {
        let (low, high) = (mask as u16, (mask >> 16) as u16);
        let used = 2 * low.count_ones() as usize;
        let second = bytes[used..].first_chunk().expect("at most half of them are used");
        // SAFETY: by the trait's contract.
        unsafe {
            [
                Self::select(
                    low,
                    Self::expand_f16::<SPECIAL>(bytes.first_chunk().expect("half of them"), low),
                    others[0],
                ),
                Self::select(high, Self::expand_f16::<SPECIAL>(second, high), others[1]),
            ]
        }
    }
    /// The first nibbles, low before high, but for a `skipped` low one, as numbers in the lanes where `mask` has a bit; 0
    /// elsewhere.
    unsafe fn expand_nibbles(bytes: &[u8; LANES], skipped: bool, mask: u16) -> Self::Lanes;
    /// A float16, read as by `from_f16` with `SPECIAL`, in all lanes.
    unsafe fn splat_f16(bytes: [u8; 2]) -> Self::Lanes;
    /// Eight float16, read as by `from_f16` with `SPECIAL`.
    unsafe fn halves(bytes: &[u8; LANES]) -> [f32; LANES / 2];
}

/// Whether no lane of any of `x` is infinite or NaN.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn finite<V: Vector>(x: &[V::Lanes]) -> bool {
    // SAFETY: as this function.
    unsafe {
        let mut zeros = V::splat(0.0);
        for &x in x {
            zeros = V::mul_add(x, V::splat(0.0), zeros);
        }
        V::sums([zeros]) == [0.0]
    }
}

/// Something to do with vectors.
pub(super) trait Work {
    /// What comes of it.
    type Output;

    /// Does it. To be `inline(always)`.
    ///
    /// # Safety
    /// The processor has the instructions of `V`.
    unsafe fn with<V: Vector>(self) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;

    /// Every operation of `V` against plain arithmetic.
    fn agrees<V: Vector>(x: [f32; 16], y: [f32; 16], bytes: [u8; 32], mask: u16) {
        if !V::is_available() {
            return;
        }
        // Sums of up to sixteen numbers of up to 200, in whatever order.
        let close = |a: f32, b: f32| assert!(a == b || (a - b).abs() <= 2e-4, "{a} is not {b}");
        let has = |i: usize| mask >> i & 1 == 1;
        // SAFETY: the instructions are there.
        unsafe {
            {
                let get = |v| {
                    let mut out = [0.0; 16];
                    V::store(v, &mut out);
                    out
                };
                let (a, b) = (V::load(&x), V::load(&y));
                let first: &[u8; 16] = bytes.first_chunk().unwrap();
                let halves = |i: usize| {
                    let x = f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32();
                    if x.is_nan() { 0.0 } else { x.clamp(-65504.0, 65504.0) }
                };
                let rank = |i: usize| (mask & ((1u32 << i) - 1) as u16).count_ones() as usize;
                let [low, high] = V::from_nibbles(first).map(get);
                let (sums, exp) = (V::sums([a, b, V::splat(1.5), V::add(a, b)]), get(V::exp(a)));
                for i in 0..16 {
                    assert_eq!(get(V::add(a, b))[i], x[i] + y[i]);
                    assert_eq!(get(V::mul(a, b))[i], x[i] * y[i]);
                    close(get(V::mul_add(a, b, V::splat(1.0)))[i], x[i] * y[i] + 1.0);
                    assert_eq!(get(V::max(a, b))[i], x[i].max(y[i]));
                    assert_eq!(get(V::min(a, b))[i], x[i].min(y[i]));
                    assert_eq!(get(V::select(mask, a, b))[i], if has(i) { x[i] } else { y[i] });
                    assert_eq!(get(V::negate(mask, a))[i], if has(i) { -x[i] } else { x[i] });
                    let e = if x[i] < -87.0 { 0.0 } else { x[i].exp() };
                    assert!((exp[i] - e).abs() <= 3e-7 * e, "exp({}) = {}, not {e}", x[i], exp[i]);
                    assert_eq!(get(V::from_u8(first))[i], f32::from(bytes[i]));
                    assert_eq!((low[i], high[i]), (f32::from(bytes[i] & 15), f32::from(bytes[i] >> 4)));
                    assert_eq!(get(V::from_f16::<true>(&bytes))[i], halves(i));
                    let expanded = if has(i) { f32::from(bytes[rank(i)]) } else { 0.0 };
                    assert_eq!(get(V::expand_u8(first, mask))[i], expanded);
                    let expanded = if has(i) { halves(rank(i)) } else { 0.0 };
                    assert_eq!(get(V::expand_f16::<true>(&bytes, mask))[i], expanded);
                    let special = |i: usize| bytes[2 * i + 1] & 0x7c == 0x7c;
                    if !special(i) {
                        assert_eq!(get(V::from_f16::<false>(&bytes))[i], halves(i));
                    }
                    if !special(rank(i)) {
                        assert_eq!(get(V::expand_f16::<false>(&bytes, mask))[i], expanded);
                    }
                    let hidden = V::from_f16::<false>(&bytes);
                    assert_eq!(finite::<V>(&[b, V::select(1 << i, hidden, b)]), get(hidden)[i].is_finite());
                    assert_eq!(get(V::splat_f16([bytes[2 * i], bytes[2 * i + 1]])), [halves(i); 16]);
                    for skipped in [false, true] {
                        let at = rank(i) + usize::from(skipped);
                        let expanded = if has(i) { f32::from(bytes[at / 2] >> (4 * (at % 2)) & 15) } else { 0.0 };
                        assert_eq!(get(V::expand_nibbles(first, skipped, mask))[i], expanded);
                    }
                    assert_eq!(V::halves(first)[i / 2], halves(i / 2));
                }
                close(sums[0], x.iter().sum());
                close(sums[1], y.iter().sum());
                close(sums[2], 24.0);
                close(V::sums([a])[0], sums[0]);
                assert_eq!(V::greatest(a), x.into_iter().fold(f32::NEG_INFINITY, f32::max));
            }
        }
    }

    proptest! {
        #[test]
        fn operations_are_what_they_say(
            x in prop::array::uniform16(-60f32..60.0),
            y in prop::array::uniform16(-3f32..3.0),
            bytes in prop::array::uniform32(any::<u8>()),
            mask: u16,
        ) {
            agrees::<Portable>(x, y, bytes, mask);
            #[cfg(target_arch = "x86_64")]
            {
                agrees::<Avx2>(x, y, bytes, mask);
                agrees::<Avx512<false>>(x, y, bytes, mask);
            }
        }
    }

    #[test]
    fn exp_at_its_ends() {
        let x = [
            0.0,
            -0.0,
            -86.9,
            -87.1,
            -100.0,
            -1e9,
            f32::MIN,
            f32::NEG_INFINITY,
            1.0,
            -1e-9,
            87.0,
            -0.5,
            0.5,
            -1.0,
            -2.0,
            -3.0,
        ];
        agrees::<Portable>(x, [1.0; 16], [0xff; 32], 0xffff);
        #[cfg(target_arch = "x86_64")]
        {
            agrees::<Avx2>(x, [1.0; 16], [0xff; 32], 0xffff);
            agrees::<Avx512<false>>(x, [1.0; 16], [0x7c; 32], 0);
        }
    }
}
