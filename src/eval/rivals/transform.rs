//! The lossy transform of a row.

use nalgebra::{DMatrix, SymmetricEigen};

use super::name::{Method, Rival, dropped, group};
use super::quantise::{bit_reversed, hadamard, prune, quantise};
use super::statistics::{PromptStatistics, add_square, held};
use crate::format::Planes;
use crate::rewrite::{Basis, Covariance};
use crate::runtime::{Error, Sequence};

/// The transform of the rows of one tensor and KV head.
pub enum Transform {
    /// They stay unchanged.
    Keep,
    /// These channels become zero.
    Zero(Vec<usize>),
    /// Of each row, this many of the smallest become zero, and the others are quantised with 8 bits.
    Prune(usize),
    /// They are quantised.
    Quantise {
        bits: u32,
        rotation: Rotation,
        /// Share of the range that is covered.
        clip: f32,
    },
    /// They are stored in the directions of a basis, as keys of row format 3 are.
    Basis(Basis, Planes),
}

/// An orthonormal change of basis.
pub enum Rotation {
    None,
    Hadamard,
    /// Rows are multiplied by it: y = x R.
    Matrix(DMatrix<f32>),
}

/// Shares of the range that are tried.
const CLIPS: [f32; 6] = [1.0, 0.95, 0.9, 0.8, 0.7, 0.6];

impl Transform {
    /// The transform for the keys, or the `values`, of a layer, once the prompt is read.
    pub fn new(
        rival: &Rival,
        sequence: &Sequence,
        layer: usize,
        values: bool,
        head: usize,
        statistics: &PromptStatistics,
        width: usize,
    ) -> Result<Self, Error> {
        let keys = || held(sequence, 2 * layer, head);
        let quantised = |bits, rotation| Self::Quantise { bits, rotation, clip: 1.0 };
        Ok(match rival.method {
            _ if !rival.compresses(values) => Self::Keep,
            Method::ThinK { ratio } => Self::Zero(least_channels(&keys()?, statistics, head, ratio, width)),
            Method::SnapKv { .. } | Method::OnnxRuntime { .. } => Self::Keep,
            Method::Prune { ratio } => Self::Prune(dropped(ratio, width)),
            Method::PerToken { bits } => quantised(bits, Rotation::None),
            Method::Hadamard { bits } => quantised(bits, Rotation::Hadamard),
            Method::Oscar { bits } => {
                let rows = held(sequence, 2 * layer + usize::from(values), head)?;
                let covariance = match values {
                    false => statistics.covariance[head].clone(),
                    true => results(&keys()?, &rows, statistics, head, width),
                };
                let mut transform = quantised(bits, Rotation::Matrix(spectral(&covariance, width)));
                transform.choose_clip(&rows, width);
                transform
            }
            Method::Basis { bytes } => {
                let rows = held(sequence, 2 * layer + usize::from(values), head)?;
                let asked = if values { &statistics.projection } else { &statistics.covariance };
                Self::in_basis(&rows, &asked[head], bytes, width)
            }
        })
    }

    /// The basis in which errors of `rows` count alike, where q q^T of what multiplies them has the sum `asked`.
    fn in_basis(rows: &[f32], asked: &[f64], bytes: usize, width: usize) -> Self {
        let mut sums = vec![0.0; width * width];
        rows.chunks(width).for_each(|row| add_square(&mut sums, row));
        sums.extend(asked);
        let basis = Basis::new(&Covariance { sums, tokens: rows.len() / width }, width);
        let planes = basis.planes(bytes);
        Self::Basis(basis, planes)
    }

    /// Replaces rows by their lossy versions.
    pub fn apply(&self, rows: &mut [f32], width: usize) {
        match self {
            Self::Keep => {}
            Self::Zero(channels) => {
                rows.chunks_mut(width).for_each(|row| channels.iter().for_each(|&channel| row[channel] = 0.0));
            }
            Self::Prune(count) => rows.chunks_mut(width).for_each(|row| prune(row, *count)),
            Self::Quantise { bits, rotation, clip } => {
                rotation.turn(rows, width);
                rows.chunks_mut(width).for_each(|row| quantise(row, *bits, group(*bits, width), *clip));
                rotation.turn_back(rows, width);
            }
            Self::Basis(basis, planes) => {
                let mut stored = vec![0; planes.bytes()];
                for row in rows.chunks_mut(width) {
                    basis.change(0, row);
                    planes.encode(row, &basis.saliency, &mut stored);
                    planes.decode(&stored, row);
                    basis.restore(0, row);
                }
            }
        }
    }

    /// Selects the clip with the least squared error on these rows.
    fn choose_clip(&mut self, rows: &[f32], width: usize) {
        let sample: Vec<f32> = rows.chunks(width).step_by(8).flatten().copied().collect();
        let error = |transform: &Self| -> f32 {
            let mut stored = sample.clone();
            transform.apply(&mut stored, width);
            stored.iter().zip(&sample).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let mut best = (f32::INFINITY, 1.0);
        for tried in CLIPS {
            if let Self::Quantise { clip, .. } = self {
                *clip = tried;
            }
            let error = error(self);
            if error < best.0 {
                best = (error, tried);
            }
        }
        if let Self::Quantise { clip, .. } = self {
            *clip = best.1;
        }
    }
}

impl Rotation {
    fn turn(&self, rows: &mut [f32], width: usize) {
        match self {
            Self::None => {}
            Self::Hadamard => rows.chunks_mut(width).for_each(hadamard),
            Self::Matrix(matrix) => multiply(rows, matrix, width),
        }
    }

    fn turn_back(&self, rows: &mut [f32], width: usize) {
        match self {
            Self::Matrix(matrix) => multiply(rows, &matrix.transpose(), width),
            other => other.turn(rows, width),
        }
    }
}

/// Computes rows * R in place.
fn multiply(rows: &mut [f32], matrix: &DMatrix<f32>, width: usize) {
    // Rows of C are columns of nalgebra's matrices.
    let turned = matrix.transpose() * DMatrix::from_column_slice(width, rows.len() / width, rows);
    rows.copy_from_slice(turned.as_slice());
}

/// ThinK: the channels with the least |q| |k| over the last queries and all keys.
fn least_channels(keys: &[f32], statistics: &PromptStatistics, head: usize, ratio: f64, width: usize) -> Vec<usize> {
    let mut scores = statistics.energy(head, width);
    let mut energy = vec![0.0f32; width];
    keys.chunks(width).for_each(|key| energy.iter_mut().zip(key).for_each(|(e, k)| *e += k * k));
    scores.iter_mut().zip(&energy).for_each(|(score, energy)| *score *= energy);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order.truncate(dropped(ratio, width));
    order
}

/// Sum of o o^T over the attention results of the last queries: V^T S^T S V.
fn results(keys: &[f32], values: &[f32], statistics: &PromptStatistics, head: usize, width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width * width];
    for weights in statistics.weights(head, keys, width) {
        let mut result = vec![0.0f32; width];
        for (weight, value) in weights.iter().zip(values.chunks(width)) {
            result.iter_mut().zip(value).for_each(|(r, v)| *r += weight * v);
        }
        add_square(&mut sum, &result);
    }
    sum
}

/// OSCAR's rotation: the eigenvectors of a covariance, then Hadamard, then bit-reversed order.
fn spectral(covariance: &[f64], width: usize) -> DMatrix<f32> {
    let eigen = SymmetricEigen::new(DMatrix::from_row_slice(width, width, covariance));
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let places = bit_reversed(width);
    let mut matrix = DMatrix::zeros(width, width);
    for channel in 0..width {
        let mut row: Vec<f32> = order.iter().map(|&i| eigen.eigenvectors[(channel, i)] as f32).collect();
        hadamard(&mut row);
        places.iter().enumerate().for_each(|(from, &to)| matrix[(channel, to)] = row[from]);
    }
    matrix
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Rows along one direction, far from any axis.
    fn along_one(width: usize) -> Vec<f32> {
        (0..width * width).map(|i| ((i / width) as f32).sin() * ((i % width) as f32 * 0.7).cos()).collect()
    }

    fn error(transform: &Transform, rows: &[f32], width: usize) -> f32 {
        let mut stored = rows.to_vec();
        transform.apply(&mut stored, width);
        stored.iter().zip(rows).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    #[test]
    fn a_basis_has_bits_for_what_varies_or_counts() {
        let width = 32;
        let identity = |first: f64| -> Vec<f64> {
            (0..width * width).map(|n| if n == 0 { first } else { f64::from(n % (width + 1) == 0) }).collect()
        };
        let rows = along_one(width);
        let plain = Transform::Quantise { bits: 2, rotation: Rotation::None, clip: 1.0 };
        let own = Transform::in_basis(&rows, &identity(1.0), 12, width);
        assert!(error(&own, &rows, width) < error(&plain, &rows, width) / 100.0);
        // Independent channels, of which the first counts a thousand times as much.
        let mut random = StdRng::seed_from_u64(1);
        let rows: Vec<f32> = (0..512 * width).map(|_| random.random::<f32>() - 0.5).collect();
        let of_first = |first: f64| {
            let mut stored = rows.clone();
            Transform::in_basis(&rows, &identity(first), 12, width).apply(&mut stored, width);
            stored.chunks(width).zip(rows.chunks(width)).map(|(a, b)| (a[0] - b[0]).powi(2)).sum::<f32>()
        };
        assert!(of_first(1e6) < of_first(1.0) / 4.0, "{} {}", of_first(1e6), of_first(1.0));
    }

    #[test]
    fn a_rotation_is_undone_and_helps_where_channels_depend() {
        let width = 32;
        let rows = along_one(width);
        let mut covariance = vec![0.0; width * width];
        rows.chunks(width).for_each(|row| add_square(&mut covariance, row));
        let rotation = Rotation::Matrix(spectral(&covariance, width));
        let mut turned = rows.clone();
        rotation.turn(&mut turned, width);
        rotation.turn_back(&mut turned, width);
        assert!(rows.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-4));
        let error = |rotation| error(&Transform::Quantise { bits: 3, rotation, clip: 1.0 }, &rows, width);
        let (turned, plain) = (error(rotation), error(Rotation::None));
        assert!(turned < plain / 2.0, "{turned} {plain}");
    }
}
