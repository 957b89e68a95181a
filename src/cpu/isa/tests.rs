//! Every operation of every instruction set against plain arithmetic; the choice of a set.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use half::f16;
use proptest::prelude::*;

use super::InstructionSet;
use super::traits::{Isa, Work};
use super::vector::Vector;

/// What the operations of one set are tried with.
#[derive(Clone, Copy)]
struct Operands {
    x: [f32; 16],
    y: [f32; 16],
    bytes: [u8; 32],
    mask: u16,
}

impl Work for Operands {
    type Output = ();

    fn with<I: Isa>(self, isa: I) {
        agrees(isa.vector(), self);
    }
}

/// Tries every set that this processor has.
fn all_agree(operands: Operands) {
    InstructionSet::ALL.into_iter().filter(|set| set.is_available()).for_each(|set| set.with(operands));
}

/// Every operation of `V` against plain arithmetic.
fn agrees<V: Vector>(v: V, Operands { x, y, bytes, mask }: Operands) {
    // Sums of up to sixteen numbers of up to 200, in whatever order.
    let close = |a: f32, b: f32| assert!(a == b || (a - b).abs() <= 2e-4, "{a} is not {b}");
    let has = |i: usize| mask >> i & 1 == 1;
    {
        {
            let get = |x| {
                let mut out = [0.0; 16];
                v.store(x, &mut out);
                out
            };
            let (a, b) = (v.load(&x), v.load(&y));
            let first: &[u8; 16] = bytes.first_chunk().unwrap();
            let halves = |i: usize| {
                let x = f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32();
                if x.is_nan() { 0.0 } else { x.clamp(-65504.0, 65504.0) }
            };
            let rank = |i: usize| (mask & ((1u32 << i) - 1) as u16).count_ones() as usize;
            let [low, high] = v.load_nibbles(first).map(get);
            let (sums, exp) = (v.sums([a, b, v.splat(1.5), v.add(a, b)]), get(v.exp(a)));
            for i in 0..16 {
                assert_eq!(get(v.add(a, b))[i], x[i] + y[i]);
                assert_eq!(get(v.mul(a, b))[i], x[i] * y[i]);
                close(get(v.mul_add(a, b, v.splat(1.0)))[i], x[i] * y[i] + 1.0);
                assert_eq!(get(v.max(a, b))[i], x[i].max(y[i]));
                assert_eq!(get(v.min(a, b))[i], x[i].min(y[i]));
                assert_eq!(get(v.select(mask, a, b))[i], if has(i) { x[i] } else { y[i] });
                assert_eq!(get(v.negate(mask, a))[i], if has(i) { -x[i] } else { x[i] });
                let e = if x[i] < -87.0 { 0.0 } else { x[i].exp() };
                let rounded = if V::REGISTERS == 1 { 1e-7 * x[i].abs().min(88.0) } else { 0.0 };
                assert!((exp[i] - e).abs() <= (3e-7 + rounded) * e, "exp({}) = {}, not {e}", x[i], exp[i]);
                assert_eq!(get(v.load_u8(first))[i], f32::from(bytes[i]));
                assert_eq!((low[i], high[i]), (f32::from(bytes[i] & 15), f32::from(bytes[i] >> 4)));
                assert_eq!(get(v.load_f16::<true>(&bytes))[i], halves(i));
                let expanded = if has(i) { f32::from(bytes[rank(i)]) } else { 0.0 };
                assert_eq!(get(v.expand_u8(first, mask))[i], expanded);
                let expanded = if has(i) { halves(rank(i)) } else { 0.0 };
                assert_eq!(get(v.expand_f16::<true>(&bytes, mask))[i], expanded);
                let special = |i: usize| bytes[2 * i + 1] & 0x7c == 0x7c;
                if !special(i) {
                    assert_eq!(get(v.load_f16::<false>(&bytes))[i], halves(i));
                }
                if !special(rank(i)) {
                    assert_eq!(get(v.expand_f16::<false>(&bytes, mask))[i], expanded);
                }
                let hidden = v.load_f16::<false>(&bytes);
                assert_eq!(v.all_finite(&[b, v.select(1 << i, hidden, b)]), get(hidden)[i].is_finite());
                assert_eq!(get(v.splat_f16([bytes[2 * i], bytes[2 * i + 1]])), [halves(i); 16]);
                for skipped in [false, true] {
                    let at = rank(i) + usize::from(skipped);
                    let expanded = if has(i) { f32::from(bytes[at / 2] >> (4 * (at % 2)) & 15) } else { 0.0 };
                    assert_eq!(get(v.expand_nibbles(first, skipped, mask))[i], expanded);
                    let book = std::array::from_fn(|n| 255 - 16 * n as u8);
                    let entry = if has(i) { 255.0 - 16.0 * expanded } else { 0.0 };
                    assert_eq!(get(v.expand_by_codebook(&book, first, skipped, mask))[i], entry);
                }
                assert_eq!(v.eight_f16(first)[i / 2], halves(i / 2));
            }
            close(sums[0], x.iter().sum());
            close(sums[1], y.iter().sum());
            close(sums[2], 24.0);
            close(v.sums([a])[0], sums[0]);
            assert_eq!(v.greatest(a), x.into_iter().fold(f32::NEG_INFINITY, f32::max));
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
        all_agree(Operands { x, y, bytes, mask });
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
    all_agree(Operands { x, y: [1.0; 16], bytes: [0xff; 32], mask: 0xffff });
    all_agree(Operands { x, y: [1.0; 16], bytes: [0x7c; 32], mask: 0 });
}

#[test]
fn the_variable_chooses() {
    let choose = |name: &str| InstructionSet::choose(Some(OsStr::new(name)));
    assert_eq!(choose("scalar"), Ok(InstructionSet::Scalar));
    assert_eq!(choose("portable"), Ok(InstructionSet::Portable));
    assert_ne!(InstructionSet::choose(None), Ok(InstructionSet::Scalar));
    let error = choose("sse9").unwrap_err();
    assert!(error.contains("SPARK_ORT_CPU=sse9: it is no") && error.contains("scalar, portable"), "{error}");
    for set in InstructionSet::ALL.into_iter().filter(|set| !set.is_available()) {
        assert!(choose(set.name()).unwrap_err().contains("this processor lacks it"));
    }
    // Bytes that are no UTF-8 name nothing, and are not as good as no name.
    let error = InstructionSet::choose(Some(OsStr::from_bytes(b"avx2\xff"))).unwrap_err();
    assert!(error.contains("SPARK_ORT_CPU=avx2\u{fffd}: it is no"), "{error}");
}
