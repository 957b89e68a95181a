//! Products of small matrices whose sums stay in registers, and whose factors are read where they lie: nothing is copied
//! first, as by products of matrices of any size.

use crate::cpu::vector::{LANES, Vector};

/// Vectors of queries or of channels, side by side.
pub(super) type Side<const N: usize> = [[f32; LANES]; N];

/// The sums over i of `rows[r][i] * vectors[i]`, for each r, to `to[r]`. Rows are one after the other.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn rows<V: Vector, const R: usize, const N: usize>(
    rows: &[[f32; LANES]],
    vectors: &[Side<N>],
    to: &mut [Side<N>; R],
) {
    let width = vectors.len() / LANES;
    // SAFETY: as this function.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        for (block, vectors) in vectors.as_chunks::<LANES>().0.iter().enumerate() {
            let rows: [_; R] = std::array::from_fn(|r| &rows[r * width + block]);
            for (i, vectors) in vectors.iter().enumerate() {
                for r in 0..R {
                    let x = V::splat(rows[r][i]);
                    for n in 0..N {
                        sums[r][n] = V::mul_add(x, V::load(&vectors[n]), sums[r][n]);
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                V::store(sums[r][n], &mut to[r][n]);
            }
        }
    }
}

/// Adds the sums over i of `columns[i][at + r] * matrix[i][n..n + N]`, for each r, to `to[r][n..n + N]`. Rows of `matrix`
/// and `to` are of `width` vectors.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn add_columns<V: Vector, const R: usize, const N: usize, const M: usize>(
    (columns, at): (&[Side<M>], usize),
    (matrix, n): (&[[f32; LANES]], usize),
    to: &mut [[f32; LANES]],
    width: usize,
) {
    // SAFETY: as this function.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        for (sums, to) in sums.iter_mut().zip(to.chunks_exact(width)) {
            for (sum, to) in sums.iter_mut().zip(&to[n..]) {
                *sum = V::load(to);
            }
        }
        for (column, row) in columns.iter().zip(matrix.chunks_exact(width)) {
            let x: &[f32; R] = column.as_flattened()[at..].first_chunk().expect("as many columns");
            let vectors: &Side<N> = row[n..].first_chunk().expect("as many vectors");
            for r in 0..R {
                let x = V::splat(x[r]);
                for n in 0..N {
                    sums[r][n] = V::mul_add(x, V::load(&vectors[n]), sums[r][n]);
                }
            }
        }
        for (sums, to) in sums.iter().zip(to.chunks_exact_mut(width)) {
            for (sum, to) in sums.iter().zip(&mut to[n..]) {
                V::store(*sum, to);
            }
        }
    }
}
