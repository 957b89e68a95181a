//! Sixteen float32 at a time: the operations that kernels are written with, over any instruction set.

/// Lanes of a vector.
pub(in crate::cpu) const LANES: usize = 16;

/// Sixteen lanes of float32 of some instruction set. A value of the type is a token: it exists only where the processor
/// has the instructions, so that methods are safe to call.
///
/// Methods are `inline(always)`: what is written with them becomes instructions of the set within
/// [`Isa::run`](super::traits::Isa::run), and only there. Closures are not always inlined: with vectors in them they
/// are slow.
///
/// # Safety
/// No safe code makes a value of the type on a processor without the instructions that its methods use.
pub(in crate::cpu) unsafe trait Vector: Copy + Send + Sync + 'static {
    /// Sixteen lanes.
    type Lanes: Copy;
    /// Registers that a vector takes.
    const REGISTERS: usize;

    fn splat(self, x: f32) -> Self::Lanes;
    fn load(self, x: &[f32; LANES]) -> Self::Lanes;
    fn store(self, x: Self::Lanes, to: &mut [f32; LANES]);
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, rounded once or twice.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// The greater lanes; no lane may be NaN.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The lesser lanes; no lane may be NaN.
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// Lanes of `yes` where `mask` has a bit, of `no` elsewhere.
    fn select(self, mask: u16, yes: Self::Lanes, no: Self::Lanes) -> Self::Lanes;
    /// The other sign where `mask` has a bit.
    fn negate(self, mask: u16, x: Self::Lanes) -> Self::Lanes;
    /// The greatest lane; none may be NaN.
    fn greatest(self, x: Self::Lanes) -> f32;
    /// The sum of the lanes of each.
    fn sums<const N: usize>(self, x: [Self::Lanes; N]) -> [f32; N];
    /// e to the power of lanes that are at most 88 and not NaN; 0 from -87 down.
    fn exp(self, x: Self::Lanes) -> Self::Lanes;

    /// Bytes as numbers.
    fn load_u8(self, bytes: &[u8; LANES]) -> Self::Lanes;
    /// Nibbles as numbers, the low ones and the high ones of each byte.
    fn load_nibbles(self, bytes: &[u8; LANES]) -> [Self::Lanes; 2];
    /// float16 as they are stored; NaN reads as 0, infinity as the end of the range. Without `SPECIAL`, both may stay
    /// what they are.
    fn load_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES]) -> Self::Lanes;
    /// The first bytes as numbers, in the lanes where `mask` has a bit; 0 elsewhere.
    fn expand_u8(self, bytes: &[u8; LANES], mask: u16) -> Self::Lanes;
    /// The first float16 in the lanes where `mask` has a bit, read as by `load_f16`; 0 elsewhere.
    fn expand_f16<const SPECIAL: bool>(self, bytes: &[u8; 2 * LANES], mask: u16) -> Self::Lanes;
    /// As `expand_f16` in two vectors, one after the other, but with the lanes of `others` elsewhere.
    #[inline(always)]
    fn expand_f16_pair<const SPECIAL: bool>(
        self,
        bytes: &[u8; 4 * LANES],
        mask: u32,
        others: [Self::Lanes; 2],
    ) -> [Self::Lanes; 2] {
        let (low, high) = (mask as u16, (mask >> 16) as u16);
        let used = 2 * low.count_ones() as usize;
        let second = bytes[used..].first_chunk().expect("at most half of them are used");
        let first = bytes.first_chunk().expect("half of them");
        [
            self.select(low, self.expand_f16::<SPECIAL>(first, low), others[0]),
            self.select(high, self.expand_f16::<SPECIAL>(second, high), others[1]),
        ]
    }
    /// The first nibbles, low before high, but for a `skipped` low one, as numbers in the lanes where `mask` has a bit;
    /// 0 elsewhere.
    fn expand_nibbles(self, bytes: &[u8; LANES], skipped: bool, mask: u16) -> Self::Lanes;
    /// The same, but that each nibble stands for its entry of `codebook`.
    fn expand_by_codebook(self, codebook: &[u8; 16], bytes: &[u8; LANES], skipped: bool, mask: u16) -> Self::Lanes;
    /// A float16, read as by `load_f16` with `SPECIAL`, in all lanes.
    fn splat_f16(self, bytes: [u8; 2]) -> Self::Lanes;
    /// Eight float16, read as by `load_f16` with `SPECIAL`.
    fn eight_f16(self, bytes: &[u8; LANES]) -> [f32; LANES / 2];

    /// Asks memory for the cache line at `address`, which need not be readable, into the nearest cache; if `FAR`, only
    /// into the one after it.
    #[inline(always)]
    fn prefetch<const FAR: bool>(self, _address: *const u8) {}

    /// Whether no lane of any of `x` is infinite or NaN.
    #[inline(always)]
    fn all_finite(self, x: &[Self::Lanes]) -> bool {
        let mut zeros = self.splat(0.0);
        for &x in x {
            zeros = self.mul_add(x, self.splat(0.0), zeros);
        }
        self.sums([zeros]) == [0.0]
    }
}
