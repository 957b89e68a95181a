//! AVX-VNNI against arithmetic and against AVX2, bit for bit. Processors that lack it emulate its instruction.

use std::arch::asm;
use std::arch::x86_64::*;

use ndarray::Array4;
use proptest::prelude::*;

use super::dot::{Madd, Vnni, Words, add_product, add_products};
use super::emulation;
use super::vector::Avx2;
use crate::call::{AttentionSettings, Geometry, Lengths, QueryLayout, Settings};
use crate::cpu::isa::traits::Work;
use crate::cpu::{Attention, Basis, Serial, Tokens, attend, encode_key};
use crate::format::{Bits, KeyLayout, Planes, RowFormat, ValueLayout};
use crate::method::Recovery;

/// Numbers of 64 bits.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut at = seed;
    move || {
        at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (at ^ at >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
}

/// Sums and words from anywhere in their range, every other one from its ends.
fn operands(seed: u64) -> ([[i32; 8]; 8], [[i16; 16]; 9]) {
    let mut next = random(seed);
    let mut sum = || {
        let x = next();
        [x as i32, i32::MIN, x as i32, i32::MAX][(x >> 62) as usize]
    };
    let sums = std::array::from_fn(|_| std::array::from_fn(|_| sum()));
    let mut word = || {
        let x = next();
        [x as i16, i16::MIN, x as i16, i16::MAX][(x >> 62) as usize]
    };
    (sums, std::array::from_fn(|_| std::array::from_fn(|_| word())))
}

/// The sum as its definition says, in whole numbers that do not wrap until all is added.
fn expected(sum: [i32; 8], a: [i16; 16], b: [i16; 16]) -> [i32; 8] {
    let product = |n: usize| i64::from(a[n]) * i64::from(b[n]);
    std::array::from_fn(|n| (i64::from(sum[n]) + product(2 * n) + product(2 * n + 1)) as i32)
}

/// A vector as an array, or an array as a vector.
fn bits<A: Copy, B: Copy>(x: A) -> B {
    const { assert!(size_of::<A>() == 32 && size_of::<B>() == 32) };
    // SAFETY: both are 32 bytes, and those of numbers are any.
    unsafe { (&raw const x).cast::<B>().read_unaligned() }
}

#[target_feature(enable = "avx2")]
fn of_one(vnni: Vnni, sum: [i32; 8], a: [i16; 16], b: [i16; 16]) -> [[i32; 8]; 2] {
    let (sum, a, b): (__m256i, __m256i, __m256i) = (bits(sum), bits(a), bits(b));
    [bits(add_product(Madd, sum, a, b)), bits(add_product(vnni, sum, a, b))]
}

#[target_feature(enable = "avx2")]
fn of_some<const H: usize>(vnni: Vnni, sums: &[[i32; 8]], a: [i16; 16], b: &[[i16; 16]]) -> [[[i32; 8]; H]; 2] {
    let queries: [Words; H] = std::array::from_fn(|h| Words(b[h]));
    let (words, start): (__m256i, [__m256i; H]) = (bits(a), std::array::from_fn(|h| bits(sums[h])));
    let (mut madd, mut one) = (start, start);
    add_products(Madd, &mut madd, words, &queries);
    add_products(vnni, &mut one, words, &queries);
    [madd, one].map(|sums| std::array::from_fn(|h| bits(sums[h])))
}

fn some_are_arithmetic<const H: usize>(vnni: Vnni, sums: &[[i32; 8]], a: [i16; 16], b: &[[i16; 16]]) {
    let wanted: [_; H] = std::array::from_fn(|h| expected(sums[h], a, b[h]));
    // SAFETY: the tests below ask for AVX2.
    assert_eq!(unsafe { of_some(vnni, sums, a, b) }, [wanted; 2]);
}

/// The instruction with registers by name, and the same with the last operand in memory at each displacement.
macro_rules! by_name {
    ($sum:tt $a:tt $b:tt, $base:tt, $($displacement:literal)*) => {
        |sum: [i32; 8], a: [i16; 16], b: [i16; 16]| {
            let with = |name: &str, got: __m256i| {
                let got: [i32; 8] = bits(got);
                assert_eq!(got, expected(sum, a, b), "{} {} {name}", $sum, $a);
            };
            let (start, first, second): (__m256i, __m256i, __m256i) = (bits(sum), bits(a), bits(b));
            let mut got = start;
            // SAFETY: the instruction touches only these registers, or reads the vector that `second` is.
            unsafe {
                asm!(
                    concat!("{{vex}} vpdpwssd ", $sum, ", ", $a, ", ", $b),
                    inout($sum) got, in($a) first, in($b) second, options(nomem, nostack, preserves_flags),
                );
                with($b, got);
                $(
                    let mut got = start;
                    let base = (&raw const second).cast::<u8>().wrapping_offset(-($displacement));
                    asm!(
                        concat!("{{vex}} vpdpwssd ", $sum, ", ", $a, ", [", $base, " + ", $displacement, "]"),
                        inout($sum) got, in($a) first, in($base) base, options(readonly, nostack, preserves_flags),
                    );
                    with(concat!($base, " + ", $displacement), got);
                )*
            }
        }
    };
}

#[target_feature(enable = "avx2")]
fn all_by_name(sum: [i32; 8], a: [i16; 16], b: [i16; 16]) {
    by_name!("ymm0" "ymm1" "ymm2", "rax", 0 32)(sum, a, b);
    by_name!("ymm3" "ymm9" "ymm15", "rdi", -128 128)(sum, a, b);
    by_name!("ymm8" "ymm7" "ymm6", "r13", 0 96)(sum, a, b);
    by_name!("ymm14" "ymm10" "ymm5", "r12", 0 -32 4096)(sum, a, b);
}

/// After `vzeroupper` the upper halves are not in use: they read as zero, whatever a signal's frame has there.
#[target_feature(enable = "avx2")]
fn of_unused_halves(sum: [i32; 8], a: [i16; 16], b: [i16; 16]) -> [i32; 8] {
    let (mut sum, a, b): (__m256i, __m256i, __m256i) = (bits(sum), bits(a), bits(b));
    // SAFETY: the instructions touch only these registers and the upper halves of all others.
    unsafe {
        asm!(
            "vzeroupper",
            "{{vex}} vpdpwssd ymm0, ymm1, ymm2",
            inout("ymm0") sum, in("ymm1") a, in("ymm2") b,
            out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _,
            out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack, preserves_flags),
        )
    };
    bits(sum)
}

proptest! {
    #[test]
    fn the_instruction_is_its_arithmetic(seed: u64) {
        if Avx2::detect().is_none() {
            return Ok(());
        }
        let (vnni, (sums, [a, b @ ..])) = (Vnni::emulated(), operands(seed));
        let wanted = expected(sums[0], a, b[0]);
        // SAFETY: the processor has AVX2.
        unsafe {
            prop_assert_eq!(of_one(vnni, sums[0], a, b[0]), [wanted; 2]);
            all_by_name(sums[0], a, b[0]);
            let lower = std::array::from_fn(|n| if n < 4 { wanted[n] } else { 0 });
            prop_assert_eq!(of_unused_halves(sums[0], a, b[0]), lower);
        }
        some_are_arithmetic::<1>(vnni, &sums, a, &b);
        some_are_arithmetic::<2>(vnni, &sums, a, &b);
        some_are_arithmetic::<4>(vnni, &sums, a, &b);
        some_are_arithmetic::<8>(vnni, &sums, a, &b);
    }
}

/// The only sum of two products that int32 cannot hold wraps, and so do sums at the ends of the range.
#[test]
fn sums_wrap() {
    if Avx2::detect().is_none() {
        return;
    }
    let least = [i16::MIN; 16];
    for (sum, wanted) in [(0, i32::MIN), (-1, i32::MAX), (i32::MAX, -1), (i32::MIN, 0)] {
        // SAFETY: the processor has AVX2.
        assert_eq!(unsafe { of_one(Vnni::emulated(), [sum; 8], least, least) }, [[wanted; 8]; 2]);
    }
}

/// Numbers from -1 to 1.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut next = random(seed);
    move || (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// A call that decodes one token over a cache.
struct Case {
    layouts: (KeyLayout, ValueLayout),
    group: usize,
    keys: usize,
    seed: u64,
    /// Whether rows are bytes that nobody wrote, with more channels marked than kept, and odd scalars.
    foreign: bool,
}

impl Case {
    /// Rows of keys and values.
    fn rows(&self, next: &mut impl FnMut() -> f32) -> [Vec<u8>; 2] {
        let (key, value) = &self.layouts;
        let d = key.head_dim();
        let mut rows = [key.row_bytes(), value.row_bytes()].map(|bytes| vec![0; self.keys * bytes]);
        if self.foreign {
            rows.iter_mut().flatten().for_each(|byte| *byte = (128.0 * (next() + 1.0)) as u8);
            return rows;
        }
        let [keys, values] = &mut rows;
        let mut numbers = || (0..d).map(|_| next()).collect::<Vec<_>>();
        for row in keys.chunks_exact_mut(key.row_bytes()) {
            encode_key(key, Recovery::Mean, &numbers(), &vec![1.0; d], &vec![1.0; d], row);
        }
        values.chunks_exact_mut(value.row_bytes()).for_each(|row| value.encode(&numbers(), row));
        rows
    }

    /// The outputs with each of `isas`.
    fn outputs<const N: usize>(&self, isas: [Avx2; N]) -> [Vec<u32>; N] {
        let next = &mut numbers(self.seed);
        let ((key, value), group) = (self.layouts, self.group);
        let (d, planes) = (key.head_dim(), key.planes().copied());
        let rows = self.rows(next);
        let [query, new_key, new_value] =
            [group, 1, 1].map(|heads| Array4::from_shape_simple_fn([1, heads, 1, d], &mut *next));
        let basis: Option<Vec<f32>> = planes.map(|_| (0..d * d).map(|_| next()).collect());
        let basis = basis.as_ref().map(|basis| Basis { key: basis, query: Some(basis) });
        let common = Settings {
            query_heads: group,
            kv_heads: 1,
            kept_channels: key.kept(),
            row_format: RowFormat::V1,
            key_bits: key.bits(),
            planes,
            value_bits: value.bits(),
            key_row_bytes: key.row_bytes(),
            value_row_bytes: value.row_bytes(),
            recovery: if planes.is_some() { Recovery::None } else { Recovery::Mean },
            recent_window: 0,
            tail_window: 0,
            rotary: None,
        };
        let call = Attention {
            geometry: &Geometry {
                batch: 1,
                new: 1,
                past: self.keys,
                query_heads: group,
                kv_heads: 1,
                layout: QueryLayout::Heads,
                key,
                value,
            },
            lengths: &Lengths { total: self.keys + 1, past: vec![self.keys], new: vec![1] },
            settings: &AttentionSettings { common, scale: None, softcap: None, window: None, causal: true },
            tokens: Tokens { query: query.view(), key: new_key.view(), value: new_value.view(), rotation: None, basis },
            past_key: &[&rows[0]],
            past_value: &[&rows[1]],
            recent: None,
            tail: None,
            scale: &vec![1.0; d],
            bias: None,
        };
        isas.map(|isa| {
            let mut out = Array4::from_elem(query.dim(), f32::NAN);
            attend::work(&Serial, &call, out.view_mut()).with(isa);
            out.iter().map(|x| x.to_bits()).collect()
        })
    }

    /// AVX-VNNI gives what AVX2 gives, by as many of its instructions as rows of 256 bits call for at least.
    fn check(&self, least: usize) {
        let Some(avx2) = Avx2::detect() else { return };
        let (vnni, before) = (avx2.with_vnni(Vnni::emulated()), emulation::done());
        let [by_avx2, by_vnni] = self.outputs([avx2, vnni]);
        assert!(by_avx2 == by_vnni, "not the same bits");
        let done = emulation::done() - before;
        assert!(Vnni::detect().is_some() || done >= least, "{done} instructions, not {least}");
    }
}

/// What is tried of each kernel.
fn call() -> impl Strategy<Value = (u64, usize, usize, usize)> {
    let head_dim = prop::sample::select(vec![32, 48, 64, 80, 96, 128, 160, 192, 256]);
    let group = prop::sample::select(vec![1, 2, 3, 4, 5, 8, 11]);
    (any::<u64>(), head_dim, group, 1usize..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn keys_are_those_of_avx2(
        (seed, d, group, keys) in call(), kept in 1usize..=32, bits in prop::sample::select(vec![Bits::B8, Bits::B4]),
        format in prop::sample::select(vec![RowFormat::V1, RowFormat::V2]), foreign: bool,
    ) {
        let kept = (kept * d / 32).max(1);
        let key = KeyLayout::of(format, d, kept, bits, 0).unwrap();
        let value = ValueLayout::of(RowFormat::V1, d, Bits::B16, 0).unwrap();
        let case = Case { layouts: (key, value), group, keys, seed, foreign };
        // Each query meets each block of channels of each key, unless numbers are odd.
        case.check(if foreign { 0 } else { group * keys * d / 16 });
    }

    #[test]
    fn keys_in_planes_are_those_of_avx2(
        (seed, d, group, keys) in call(), eight in 0usize..=16, four in 0usize..=8, two in 1usize..=8,
    ) {
        let planes = Planes { eight: eight * d / 32, four: four * d / 32, two: two * d / 32 };
        let key = KeyLayout::of_planes(d, planes, 0).unwrap();
        let value = ValueLayout::of(RowFormat::V1, d, Bits::B16, 0).unwrap();
        let case = Case { layouts: (key, value), group, keys, seed, foreign: false };
        case.check(group * keys * planes.kept().div_ceil(16));
    }

    #[test]
    fn values_are_those_of_avx2(
        (seed, d, group, keys) in call(), bits in prop::sample::select(vec![Bits::B8, Bits::B4]),
        format in prop::sample::select(vec![RowFormat::V1, RowFormat::V2]), foreign: bool,
    ) {
        prop_assume!(bits != Bits::B4 || d % 32 == 0);
        let key = KeyLayout::of(RowFormat::V1, d, d / 2, Bits::B16, 0).unwrap();
        let value = ValueLayout::of(format, d, bits, 0).unwrap();
        let case = Case { layouts: (key, value), group, keys, seed, foreign };
        // Each query meets eight channels of two keys at a time.
        case.check(group * keys.div_ceil(2) * d / 8);
    }
}
