//! Element types of the tensors that the operators compute on.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Largest finite float16. Keys and values live in float16 rows, so this bounds every number the kernels work with.
pub const F16_MAX: f32 = 65504.0;

/// An element of query, key, value and output tensors: float32 or float16.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// The exact value in float32.
    fn to_f32(self) -> f32;
    /// The nearest value to `x`; a finite `x` gives a finite result.
    fn from_f32(x: f32) -> Self;

    /// The value in float32 with NaN read as 0 and the float16 range as limits, so that later sums stay finite.
    #[inline]
    fn finite(self) -> f32 {
        finite(self.to_f32())
    }

    /// Writes the values of `from` to `to`, each read as by [`Element::finite`].
    fn read(from: &[Self], to: &mut [f32]);

    /// Writes the numbers `from` to `to`, each as by [`Element::from_f32`].
    fn write(from: &[f32], to: &mut [Self]);
}

/// NaN as 0, everything else limited to the float16 range.
#[inline(always)]
pub fn finite(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(-F16_MAX, F16_MAX) }
}

/// The nearest finite float16; NaN gives 0.
pub fn finite_f16(x: f32) -> f16 {
    f16::from_f32(finite(x))
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    // Inlined always, as what reads with it: only so does it become instructions of the vectors in use.
    #[inline(always)]
    fn read(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = finite(*x));
    }
    fn write(from: &[f32], to: &mut [Self]) {
        to[..from.len()].copy_from_slice(from);
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(x: f32) -> Self {
        // Only what is beyond the range changes: rounding 65519.9 would still give 65504.
        if x.is_finite() { finite_f16(x) } else { f16::from_f32(x) }
    }
    #[inline(always)]
    fn read(from: &[Self], to: &mut [f32]) {
        let to = &mut to[..from.len()];
        from.convert_to_f32_slice(to);
        to.iter_mut().for_each(|x| *x = finite(*x));
    }
    fn write(from: &[f32], to: &mut [Self]) {
        to[..from.len()].convert_from_f32_slice(from);
        // Infinity comes of a finite number that is out of range, or of itself.
        for (to, x) in to.iter_mut().zip(from).filter(|(to, _)| to.is_infinite()) {
            *to = Element::from_f32(*x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_numbers_become_finite() {
        assert_eq!(f32::NAN.finite(), 0.0);
        assert_eq!(f32::NEG_INFINITY.finite(), -F16_MAX);
        assert_eq!(f16::INFINITY.finite(), F16_MAX);
        assert_eq!(1e9f32.finite(), F16_MAX);
        assert_eq!(f16::from_f32(1.5).finite(), 1.5);
        assert_eq!(<f16 as Element>::from_f32(1e9), f16::MAX);
        let numbers = [1.5, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.1, 1e-7, 1e9];
        let (mut single, mut half) = ([9.0; 8], [9.0; 8]);
        Element::read(&numbers, &mut single);
        Element::read(&numbers.map(f16::from_f32), &mut half);
        for (i, x) in numbers.into_iter().enumerate() {
            assert_eq!((single[i], half[i]), (x.finite(), f16::from_f32(x).finite()));
        }
        assert_eq!((single[7], half[7]), (9.0, 9.0));
        let mut halves = [f16::ONE; 8];
        Element::write(&numbers, &mut halves);
        for (x, half) in numbers.into_iter().zip(halves) {
            let expected: f16 = Element::from_f32(x);
            assert!(half == expected || half.is_nan() && expected.is_nan());
        }
        assert_eq!(halves[7], f16::ONE);
    }
}
