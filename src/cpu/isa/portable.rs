//! Arrays, which the compiler turns into whatever vectors the target has.

use half::f16;

use super::traits::{Isa, Work};
use super::vector::{LANES, Vector};
use crate::cpu::decode::kernels::NoKernel;
use crate::element::Element;

/// Sixteen float32 in an array.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Portable(());

type Lanes = [f32; LANES];

/// Sixteen lanes, each from its index. A loop, since closures are not always inlined.
macro_rules! lanes {
    ($i:ident => $lane:expr) => {{
        let mut lanes = [0.0; LANES];
        let mut $i = 0;
        while $i < LANES {
            lanes[$i] = $lane;
            $i += 1;
        }
        lanes
    }};
}

/// e^x as 2^n * e^r, |r| <= ln(2)/2, e^r by its Taylor polynomial (error below 2 units in the last place).
#[inline(always)]
fn exp(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    // ln(2) in two parts, so that n * ln(2) is exact where it cancels.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The first `numbers` in the lanes where `mask` has a bit, 0 elsewhere.
#[inline(always)]
fn expand(numbers: Lanes, mask: u16) -> Lanes {
    let mut at = 0;
    lanes!(i => {
        // Without a branch: lanes that are not kept are multiplied by 0.
        let kept = usize::from(mask >> i & 1);
        let number = numbers[at % LANES] * kept as f32;
        at += kept;
        number
    })
}

// SAFETY: the methods use no instructions but those of the target.
unsafe impl Vector for Portable {
    type Lanes = Lanes;
    const REGISTERS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &Lanes) -> Lanes {
        *x
    }
    #[inline(always)]
    fn store(self, x: Lanes, to: &mut Lanes) {
        *to = x;
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        lanes!(i => a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn select(self, mask: u16, yes: Lanes, no: Lanes) -> Lanes {
        lanes!(i => if mask >> i & 1 == 1 { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn negate(self, mask: u16, x: Lanes) -> Lanes {
        lanes!(i => f32::from_bits(x[i].to_bits() ^ u32::from(mask >> i & 1) << 31))
    }
    #[inline(always)]
    fn greatest(self, x: Lanes) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn sums<const N: usize>(self, x: [Lanes; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        for n in 0..N {
            // Four sums side by side, as wide as the narrowest vectors.
            let mut four = [0.0; 4];
            for i in 0..LANES {
                four[i % 4] += x[n][i];
            }
            sums[n] = (four[0] + four[1]) + (four[2] + four[3]);
        }
        sums
    }
    #[inline(always)]
    fn exp(self, x: Lanes) -> Lanes {
        lanes!(i => exp(x[i]))
    }
    #[inline(always)]
    fn load_u8(self, bytes: &[u8; LANES]) -> Lanes {
        lanes!(i => f32::from(bytes[i]))
    }
    #[inline(always)]
    fn load_nibbles(self, bytes: &[u8; LANES]) -> [Lanes; 2] {
        [lanes!(i => f32::from(bytes[i] & 15)), lanes!(i => f32::from(bytes[i] >> 4))]
    }
    #[inline(always)]
    fn load_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES]) -> Lanes {
        lanes!(i => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).finite())
    }
    #[inline(always)]
    fn expand_u8(self, bytes: &[u8; LANES], mask: u16) -> Lanes {
        expand(lanes!(i => f32::from(bytes[i])), mask)
    }
    #[inline(always)]
    fn expand_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES], mask: u16) -> Lanes {
        expand(self.load_f16::<SPECIAL>(bytes), mask)
    }
    #[inline(always)]
    fn expand_nibbles(self, bytes: &[u8; LANES], skipped: bool, mask: u16) -> Lanes {
        let nibbles = u128::from_le_bytes(*bytes) >> (4 * u32::from(skipped));
        expand(lanes!(i => (nibbles >> (4 * i) & 15) as f32), mask)
    }
    #[inline(always)]
    fn expand_by_codebook(self, codebook: &[u8; 16], bytes: &[u8; LANES], skipped: bool, mask: u16) -> Lanes {
        let nibbles = u128::from_le_bytes(*bytes) >> (4 * u32::from(skipped));
        expand(lanes!(i => f32::from(codebook[(nibbles >> (4 * i) & 15) as usize])), mask)
    }
    #[inline(always)]
    fn splat_f16(self, bytes: [u8; 2]) -> Lanes {
        [f16::from_le_bytes(bytes).finite(); LANES]
    }
    #[inline(always)]
    fn eight_f16(self, bytes: &[u8; LANES]) -> [f32; LANES / 2] {
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).finite())
    }
}

// SAFETY: no instructions but those of the target are used.
unsafe impl Isa for Portable {
    type Vector = Self;
    type KeyScratch = ();
    type Keys<'a, const H: usize> = NoKernel<Self>;
    type Values<const H: usize> = NoKernel<Self>;

    fn try_new() -> Option<Self> {
        Some(Self(()))
    }
    #[inline(always)]
    fn vector(self) -> Self {
        self
    }
    /// Apart from its caller: the compiler takes minutes for arrays of several works in one function.
    #[inline(never)]
    fn run<W: Work>(self, work: W) -> W::Output {
        work.with(self)
    }
}
