//! Companded codes of keys: magnitudes near the least one, which are the most, are told apart best.

/// What each of sixteen codes stands for, in 255ths of the range of a row: `rint(255 * (u / 15)^1.5)`.
pub(in crate::format) const CODEBOOK: [u8; 16] = [0, 4, 12, 23, 35, 49, 65, 81, 99, 119, 139, 160, 182, 206, 230, 255];

/// The code whose entry is nearest to `x` 255ths, of two the lower one.
#[inline(always)]
pub(in crate::format) fn nearest_code(x: f32) -> u8 {
    let mut code = 0;
    for pair in CODEBOOK.windows(2) {
        code += u8::from(x > (f32::from(pair[0]) + f32::from(pair[1])) / 2.0);
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_what_the_page_says_and_the_nearest_is_found() {
        for (u, entry) in CODEBOOK.into_iter().enumerate() {
            assert_eq!(f64::from(entry), (255.0 * (u as f64 / 15.0).powf(1.5)).round_ties_even());
        }
        for x in (-10..2600).map(|x| x as f32 / 10.0) {
            let off = |code: u8| (f32::from(CODEBOOK[usize::from(code)]) - x).abs();
            let code = nearest_code(x);
            assert!((0..16).all(|other| off(code) < off(other) || off(code) == off(other) && code <= other), "{x}");
        }
    }
}
