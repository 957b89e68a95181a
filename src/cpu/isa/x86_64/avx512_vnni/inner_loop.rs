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
    /// Where the words of the first and of the last 32 channels have their bytes from.
    pub(super) into_words: &'a [__m512i; 2],
}

/// Products of the first four heads at most, while the magnitudes that `$next` is for are made: expanded codes twice in
/// words, times step, the high halves; plus least or recovery; with sign. `$a` are products of the first 32 channels,
/// `$b` of the last, one a head; "" where there are fewer heads.
///
/// To be used where what the instructions take is enabled and `2 * $heads` vectors can be read from `$queries` on.
macro_rules! mixed {
    ($heads:expr, $magnitudes:ident, $queries:ident, $lanes:expr, $next:ident, [
        $a0:literal, $a1:literal, $a2:literal, $a3:literal, $b0:literal, $b1:literal, $b2:literal, $b3:literal $(,)?
    ]) => {{
        let PackedChannels { codes, mask, sign, scalars: [recovery, least, step], into_words } = *$next;
        let [mut l0, mut l1, mut l2, mut l3] = $lanes;
        let (first, last): (__m512i, __m512i);
        // Named, for what has no type is written as a register of another size.
        let _word: __m512i;
        asm!(
            "vpexpandb {codes}{{{mask}}}{{z}}, {codes}",
            $a0,
            $a1,
            "vpblendmw {first}{{{mask}}}, {recovery}, {least}",
            $a2,
            $a3,
            "vpblendmw {last}{{{mask_last}}}, {recovery}, {least}",
            "vpermb {word}, {into_first}, {codes}",
            "vpermb {codes}, {into_last}, {codes}",
            $b0,
            "vpmulhuw {word}, {word}, {step}",
            $b1,
            "vpmulhuw {codes}, {codes}, {step}",
            $b2,
            "vpaddw {first}, {first}, {word}",
            $b3,
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
            s0 = in(zmm_reg) $magnitudes[0],
            s1 = in(zmm_reg) $magnitudes[1],
            recovery = in(zmm_reg) recovery,
            least = in(zmm_reg) least,
            step = in(zmm_reg) step,
            into_first = in(zmm_reg) into_words[0],
            into_last = in(zmm_reg) into_words[1],
            zero = in(zmm_reg) _mm512_setzero_si512(),
            mask = in(kreg) mask,
            mask_last = in(kreg) mask >> 32,
            sign = in(kreg) sign,
            sign_last = in(kreg) sign >> 32,
            q = in(reg) $queries,
            half = const 64 * $heads,
            options(pure, readonly, nostack, preserves_flags),
        );
        ([l0, l1, l2, l3], [first, last])
    }};
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
    // SAFETY: the instructions write to their own registers only and read `2 * H` vectors from `queries` on; this
    // function enables what they take.
    let (sums, made) = unsafe {
        match H {
            1 => mixed!(
                H,
                magnitudes,
                queries,
                lanes[0],
                next,
                ["vpdpwssd {l0}, {s0}, [{q}]", "", "", "", "vpdpwssd {l0}, {s1}, [{q} + {half}]", "", "", "",]
            ),
            2 => mixed!(
                H,
                magnitudes,
                queries,
                lanes[0],
                next,
                [
                    "vpdpwssd {l0}, {s0}, [{q}]",
                    "vpdpwssd {l1}, {s0}, [{q} + 64]",
                    "",
                    "",
                    "vpdpwssd {l0}, {s1}, [{q} + {half}]",
                    "vpdpwssd {l1}, {s1}, [{q} + {half} + 64]",
                    "",
                    "",
                ]
            ),
            _ => mixed!(
                H,
                magnitudes,
                queries,
                lanes[0],
                next,
                [
                    "vpdpwssd {l0}, {s0}, [{q}]",
                    "vpdpwssd {l1}, {s0}, [{q} + 64]",
                    "vpdpwssd {l2}, {s0}, [{q} + 128]",
                    "vpdpwssd {l3}, {s0}, [{q} + 192]",
                    "vpdpwssd {l0}, {s1}, [{q} + {half}]",
                    "vpdpwssd {l1}, {s1}, [{q} + {half} + 64]",
                    "vpdpwssd {l2}, {s1}, [{q} + {half} + 128]",
                    "vpdpwssd {l3}, {s1}, [{q} + {half} + 192]",
                ]
            ),
        }
    };
    lanes[0] = sums;
    for h in 4..H {
        for (half, &magnitude) in magnitudes.iter().enumerate() {
            // SAFETY: by this function's contract.
            let query = unsafe { _mm512_load_si512(queries.add(half * H + h).cast()) };
            lanes[1][h - 4] = dot(lanes[1][h - 4], magnitude, query);
        }
    }
    made
}
