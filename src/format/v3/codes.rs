//! Codes of directions: what they stand for, in 127ths of the range of their plane, and which is nearest to a number.

/// Ranges of the planes of 8, 4 and 2 bits, in units of the scale of a row.
pub const RANGES: [f32; 3] = [4.5, 2.73, 1.51];

/// What is added to what a code stands for, so that it is a byte.
pub const OFFSET: u8 = 128;

/// Levels of 4 bits that are best for a normal variable (Lloyd 1982, Max 1960), plus [`OFFSET`].
pub const LEVELS_4: [u8; 16] = [1, 32, 53, 70, 84, 98, 110, 122, 134, 146, 158, 172, 186, 203, 224, 255];

/// The same of 2 bits.
pub const LEVELS_2: [u8; 4] = [1, 90, 166, 255];

/// Numbers half-way between levels.
const fn boundaries<const N: usize, const M: usize>(levels: [u8; N]) -> [f32; M] {
    let mut between = [0.0; M];
    let mut i = 0;
    while i < M {
        between[i] = (levels[i] as f32 + levels[i + 1] as f32) / 2.0 - OFFSET as f32;
        i += 1;
    }
    between
}

const BOUNDARIES_4: [f32; 15] = boundaries(LEVELS_4);
const BOUNDARIES_2: [f32; 3] = boundaries(LEVELS_2);

/// The code whose level is nearest to `x` 127ths, of two the lower one.
#[inline(always)]
fn nearest<const N: usize>(boundaries: &[f32; N], x: f32) -> f32 {
    let mut code = 0.0;
    for boundary in boundaries {
        code += if x > *boundary { 1.0 } else { 0.0 };
    }
    code
}

/// The code of 8 bits for `x` 127ths: the nearest integer, of two the even one, from -127 to 127, plus [`OFFSET`].
#[inline(always)]
pub fn code_8(x: f32) -> u8 {
    byte(x.clamp(-127.0, 127.0) + f32::from(OFFSET))
}

/// The integer nearest to `x`, from 0 to 255, of two the even one. Unlike a cast, vectors do it.
#[inline(always)]
fn byte(x: f32) -> u8 {
    // Added to a number, it leaves the nearest integer in the lowest bits.
    const INTEGER: f32 = 8_388_608.0;
    (x + INTEGER).to_bits() as u8
}

/// The code of 4 bits.
#[inline(always)]
pub fn code_4(x: f32) -> u8 {
    byte(nearest(&BOUNDARIES_4, x))
}

/// The code of 2 bits.
#[inline(always)]
pub fn code_2(x: f32) -> u8 {
    byte(nearest(&BOUNDARIES_2, x))
}

/// The level nearest to `x` 127ths in the plane number `plane`. Without a table, so that vectors do it.
#[inline(always)]
pub fn level(plane: usize, x: f32) -> f32 {
    match plane {
        0 => f32::from(code_8(x)) - f32::from(OFFSET),
        1 => stepped(&LEVELS_4, &BOUNDARIES_4, x),
        _ => stepped(&LEVELS_2, &BOUNDARIES_2, x),
    }
}

#[inline(always)]
fn stepped<const N: usize, const M: usize>(levels: &[u8; N], boundaries: &[f32; M], x: f32) -> f32 {
    let mut level = f32::from(levels[0]) - f32::from(OFFSET);
    for (i, boundary) in boundaries.iter().enumerate() {
        level += if x > *boundary { f32::from(levels[i + 1]) - f32::from(levels[i]) } else { 0.0 };
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_level_is_found() {
        for x in (-3000..3000).map(|x| x as f32 / 10.0) {
            let off = |level: u8| (f32::from(level) - f32::from(OFFSET) - x).abs();
            let (four, two, eight) = (code_4(x), code_2(x), code_8(x));
            assert!(LEVELS_4.iter().all(|&other| off(LEVELS_4[usize::from(four)]) <= off(other)), "{x}");
            assert!(LEVELS_2.iter().all(|&other| off(LEVELS_2[usize::from(two)]) <= off(other)), "{x}");
            assert!((1..=255).all(|other| off(eight) <= off(other)), "{x}: {eight}");
            for (plane, byte) in
                [eight, LEVELS_4[usize::from(four)], LEVELS_2[usize::from(two)]].into_iter().enumerate()
            {
                assert_eq!(level(plane, x), f32::from(byte) - f32::from(OFFSET), "{plane}: {x}");
            }
        }
    }

    /// Levels are symmetric, and each is the mean of the normal variable where it is nearest, but for their rounding.
    #[test]
    fn levels_are_those_of_a_normal_variable() {
        let density = |x: f64| (-x * x / 2.0).exp();
        for (levels, range) in [(&LEVELS_4[..], RANGES[1]), (&LEVELS_2[..], RANGES[2])] {
            let levels: Vec<f64> = levels.iter().map(|&l| (f64::from(l) - 128.0) / 127.0 * f64::from(range)).collect();
            for (i, level) in levels.iter().enumerate() {
                assert!((level + levels[levels.len() - 1 - i]).abs() < 1e-9);
                let low = if i == 0 { -9.0 } else { (levels[i - 1] + level) / 2.0 };
                let high = levels.get(i + 1).map_or(9.0, |next| (next + level) / 2.0);
                let points = (0..4000).map(|n| low + (high - low) * (f64::from(n) + 0.5) / 4000.0);
                let (mass, sum) = points.fold((0.0, 0.0), |(m, s), x| (m + density(x), s + x * density(x)));
                assert!((sum / mass - level).abs() < 0.02, "{level}: {}", sum / mass);
            }
        }
    }
}
