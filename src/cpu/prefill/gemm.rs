//! Products of small matrices whose sums stay in registers. Their factors are read in place: unlike in a general GEMM,
//! nothing is packed first.

use crate::cpu::isa::vector::{LANES, Vector};

/// Vectors of queries or of channels, side by side: a row of a panel.
pub(super) type Panel<const N: usize> = [[f32; LANES]; N];

/// The sums over i of `rows[r][i] * vectors[i]`, for each r, to `to[r]`. Rows are one after the other.
#[inline(always)]
pub(super) fn multiply_rows<V: Vector, const R: usize, const N: usize>(
    v: V,
    rows: &[[f32; LANES]],
    vectors: &[Panel<N>],
    to: &mut [Panel<N>; R],
) {
    let width = vectors.len() / LANES;
    let mut sums = [[v.splat(0.0); N]; R];
    for (block, vectors) in vectors.as_chunks::<LANES>().0.iter().enumerate() {
        let rows: [_; R] = std::array::from_fn(|r| &rows[r * width + block]);
        for (i, vectors) in vectors.iter().enumerate() {
            for r in 0..R {
                let x = v.splat(rows[r][i]);
                for n in 0..N {
                    sums[r][n] = v.mul_add(x, v.load(&vectors[n]), sums[r][n]);
                }
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            v.store(sums[r][n], &mut to[r][n]);
        }
    }
}

/// Adds the sums over i of `columns[i][at + r] * matrix[i][n..n + N]`, for each r, to `to[r][n..n + N]`. Rows of
/// `matrix` and `to` are of `width` vectors.
#[inline(always)]
pub(super) fn add_columns<V: Vector, const R: usize, const N: usize, const M: usize>(
    v: V,
    (columns, at): (&[Panel<M>], usize),
    (matrix, n): (&[[f32; LANES]], usize),
    to: &mut [[f32; LANES]],
    width: usize,
) {
    let mut sums = [[v.splat(0.0); N]; R];
    for (sums, to) in sums.iter_mut().zip(to.chunks_exact(width)) {
        for (sum, to) in sums.iter_mut().zip(&to[n..]) {
            *sum = v.load(to);
        }
    }
    for (column, row) in columns.iter().zip(matrix.chunks_exact(width)) {
        let x: &[f32; R] = column.as_flattened()[at..].first_chunk().expect("as many columns");
        let vectors: &Panel<N> = row[n..].first_chunk().expect("as many vectors");
        for r in 0..R {
            let x = v.splat(x[r]);
            for n in 0..N {
                sums[r][n] = v.mul_add(x, v.load(&vectors[n]), sums[r][n]);
            }
        }
    }
    for (sums, to) in sums.iter().zip(to.chunks_exact_mut(width)) {
        for (sum, to) in sums.iter().zip(&mut to[n..]) {
            v.store(*sum, to);
        }
    }
}
