//! 64 channels of a row multiplied with queries, while those of the next row are made.

use std::arch::asm;
use std::arch::x86_64::*;

use super::words::{Words, dot};

/// 64 channels of a row, as their magnitudes are made of them.
#[derive(Clone, Copy)]
pub(super) struct PackedChannels<'a> {
    /// 64 codes, a byte each.
    pub(super) codes: __m512i,
    pub(super) mask: u64,
    pub(super) sign: u64,
    /// Words of the row: recovery, least, step.
    pub(super) scalars: [__m512i; 3],
    /// Where the words of the first and of the last 32 channels take their bytes from.
    pub(super) words: &'a [__m512i; 2],
}

/// The product of the first (0) or last (1) 32 channels with a head's query; nothing where there are fewer heads.
#[rustfmt::skip]
macro_rules! product {
    (1, 1, $half:tt) => { "" };
    (1, 2, $half:tt) => { "" };
    (1, 3, $half:tt) => { "" };
    (2, 2, $half:tt) => { "" };
    (2, 3, $half:tt) => { "" };
    ($heads:tt, 0, 0) => { "vpdpwssd {l0}, {s0}, [{q}]" };
    ($heads:tt, 1, 0) => { "vpdpwssd {l1}, {s0}, [{q} + 64]" };
    ($heads:tt, 2, 0) => { "vpdpwssd {l2}, {s0}, [{q} + 128]" };
    ($heads:tt, 3, 0) => { "vpdpwssd {l3}, {s0}, [{q} + 192]" };
    ($heads:tt, 0, 1) => { "vpdpwssd {l0}, {s1}, [{q} + {half}]" };
    ($heads:tt, 1, 1) => { "vpdpwssd {l1}, {s1}, [{q} + {half} + 64]" };
    ($heads:tt, 2, 1) => { "vpdpwssd {l2}, {s1}, [{q} + {half} + 128]" };
    ($heads:tt, 3, 1) => { "vpdpwssd {l3}, {s1}, [{q} + {half} + 192]" };
}

/// Adds the products of `magnitudes` with queries, `[2, H]` vectors from `queries` on, to `lanes`, and returns the
/// magnitudes that `next` is for.
///
/// A processor looks ahead only so far: instructions that wait for others take the place of those that could run, and
/// each half of this work waits for itself most of the time. Mixed as they are here, the two together take a tenth less
/// time than in the order that a compiler gives them.
///
/// # Safety
/// `2 * H` vectors can be read from `queries` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni")]
pub(super) unsafe fn multiply_and_make<const H: usize>(
    magnitudes: [__m512i; 2],
    queries: *const Words,
    lanes: &mut [[__m512i; 4]; 2],
    next: &PackedChannels,
) -> [__m512i; 2] {
    let &PackedChannels { codes, mask, sign, scalars: [recovery, least, step], words: &[into_first, into_last] } = next;
    let [mut l0, mut l1, mut l2, mut l3] = lanes[0];
    // The word too: what has no type is written as a register of another size.
    let (first, last, _word): (__m512i, __m512i, __m512i);
    // A magnitude: the expanded code twice in a word, times step, the high half; plus least or recovery; with sign.
    macro_rules! mixed {
        ($heads:tt) => {
            asm!(
                "vpexpandb {codes}{{{mask}}}{{z}}, {codes}",
                product!($heads, 0, 0),
                product!($heads, 1, 0),
                "vpblendmw {first}{{{mask}}}, {recovery}, {least}",
                product!($heads, 2, 0),
                product!($heads, 3, 0),
                "vpblendmw {last}{{{mask_last}}}, {recovery}, {least}",
                "vpermb {word}, {into_first}, {codes}",
                "vpermb {codes}, {into_last}, {codes}",
                product!($heads, 0, 1),
                "vpmulhuw {word}, {word}, {step}",
                product!($heads, 1, 1),
                "vpmulhuw {codes}, {codes}, {step}",
                product!($heads, 2, 1),
                "vpaddw {first}, {first}, {word}",
                product!($heads, 3, 1),
                "vpaddw {last}, {last}, {codes}",
                "vpsubw {first}{{{sign}}}, {zero}, {first}",
                "vpsubw {last}{{{sign_last}}}, {zero}, {last}",
                "/* {l1} {l2} {l3} */",
                codes = inout(zmm_reg) codes => _,
                word = out(zmm_reg) _word,
                first = out(zmm_reg) first,
                last = out(zmm_reg) last,
                l0 = inout(zmm_reg) l0,
                l1 = inout(zmm_reg) l1,
                l2 = inout(zmm_reg) l2,
                l3 = inout(zmm_reg) l3,
                s0 = in(zmm_reg) magnitudes[0],
                s1 = in(zmm_reg) magnitudes[1],
                recovery = in(zmm_reg) recovery,
                least = in(zmm_reg) least,
                step = in(zmm_reg) step,
                into_first = in(zmm_reg) into_first,
                into_last = in(zmm_reg) into_last,
                zero = in(zmm_reg) _mm512_setzero_si512(),
                mask = in(kreg) mask,
                mask_last = in(kreg) mask >> 32,
                sign = in(kreg) sign,
                sign_last = in(kreg) sign >> 32,
                q = in(reg) queries,
                half = const 64 * H,
                options(pure, readonly, nostack, preserves_flags),
            )
        };
    }
    // SAFETY: the instructions write only these registers and read `2 * H` vectors from `queries` on; the function
    // needs what they take.
    unsafe {
        match H {
            1 => mixed!(1),
            2 => mixed!(2),
            _ => mixed!(4),
        }
    }
    lanes[0] = [l0, l1, l2, l3];
    for h in 4..H {
        for (half, &magnitude) in magnitudes.iter().enumerate() {
            // SAFETY: by this function's contract.
            let query = unsafe { _mm512_load_si512(queries.add(half * H + h).cast()) };
            lanes[1][h - 4] = dot(lanes[1][h - 4], magnitude, query);
        }
    }
    [first, last]
}
