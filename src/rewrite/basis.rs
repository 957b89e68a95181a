//! A calibrated basis of a layer's keys: in its directions errors of all scores count alike, the first ones vary most,
//! and bits go to where they save most.

use nalgebra::{DMatrix, SymmetricEigen};

use crate::format::Planes;

/// Least eigenvalue of the queries' covariance, as a share of the greatest: what no query ever asks for would otherwise
/// be worth nothing, and then infinitely much.
const LEAST_QUERY: f64 = 1e-6;

/// The same of the keys'. Its square root is how small a direction may be beside the first: float16 still holds what
/// becomes of the others' numbers in it.
const LEAST_KEY: f64 = 1e-8;

/// Mean squared error of a normal variable of variance 1 with 0, 2, 4 and 8 bits of row format 3.
const ERRORS: [f64; 4] = [1.0, 0.1175, 0.0096, 0.0001];

/// How the channels of a layer's keys, and of its queries, depend on each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Covariance {
    /// Sums of `k k^T` and of `q q^T`, `[Hk, 2, D, D]`.
    pub sums: Vec<f64>,
    /// Number of tokens.
    pub tokens: usize,
}

/// The basis of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    /// Keys, as rows, are multiplied by it: `[Hk, D, D]`.
    pub key: Vec<f32>,
    /// Queries are, so that products stay what they are: `[Hk, D, D]`.
    pub query: Vec<f32>,
    /// How large queries are in it, with geometric mean 1: `[Hk, D]`.
    pub saliency: Vec<f32>,
    /// Sum over KV heads of what an error as large as the direction itself costs, `[D]`, descending.
    pub costs: Vec<f64>,
}

/// Tokens a channel that a basis is found from, at least.
const TOKENS_A_CHANNEL: usize = 8;

impl Basis {
    /// Fewest tokens that a basis of heads of `head_dim` channels is found from.
    pub fn fewest_tokens(head_dim: usize) -> usize {
        TOKENS_A_CHANNEL * head_dim
    }

    /// The basis of a layer whose heads have `head_dim` channels.
    pub fn new(covariance: &Covariance, head_dim: usize) -> Self {
        let d = head_dim;
        let mut basis = Self { key: vec![], query: vec![], saliency: vec![], costs: vec![0.0; d] };
        for head in covariance.sums.chunks_exact(2 * d * d) {
            let [keys, queries] = [&head[..d * d], &head[d * d..]].map(|sum| mean(sum, d, covariance.tokens));
            let (key, query, sizes) = directions(&keys, &queries);
            // nalgebra's columns are our rows.
            basis.key.extend(key.transpose().iter().map(|x| *x as f32));
            basis.query.extend(query.transpose().iter().map(|x| *x as f32));
            basis.costs.iter_mut().zip(&sizes).for_each(|(cost, size)| *cost += size * size);
            let log_mean = sizes.iter().map(|size| size.ln()).sum::<f64>() / d as f64;
            basis.saliency.extend(sizes.iter().map(|size| (size / log_mean.exp()) as f32));
        }
        basis
    }

    /// The planes of rows of at most `bytes` bytes that cost least.
    pub fn planes(&self, bytes: usize) -> Planes {
        planes(&self.costs, bytes)
    }

    /// Replaces `key` of KV head `head` by its directions.
    pub fn change(&self, head: usize, key: &mut [f32]) {
        let (d, from) = (key.len(), key.to_vec());
        let rows = self.key[head * d * d..(head + 1) * d * d].chunks_exact(d);
        key.fill(0.0);
        for (row, x) in rows.zip(from) {
            key.iter_mut().zip(row).for_each(|(sum, m)| *sum += x * m);
        }
    }

    /// Replaces directions by the key of KV head `head` that they are of.
    pub fn restore(&self, head: usize, key: &mut [f32]) {
        let (d, from) = (key.len(), key.to_vec());
        // The inverse of the keys' matrix is that of the queries, transposed.
        let rows = self.query[head * d * d..(head + 1) * d * d].chunks_exact(d);
        key.iter_mut().zip(rows).for_each(|(x, row)| *x = row.iter().zip(&from).map(|(m, x)| m * x).sum());
    }
}

/// The planes of rows of at most `bytes` bytes, for directions that cost so much, descending: bit by bit, each to the
/// direction where it saves most.
pub fn planes(costs: &[f64], bytes: usize) -> Planes {
    // Directions of at least 2, 4 and 8 bits.
    let mut counts = [0; 3];
    let planes = |[two, four, eight]: [usize; 3]| Planes { eight, four: four - eight, two: two - four };
    loop {
        let room = [costs.len(), counts[0], counts[1]];
        let raised = |(level, by): (usize, usize)| {
            let mut more = counts;
            more[level] += by;
            more
        };
        let fits = |&step: &(usize, usize)| {
            let more = raised(step);
            more[step.0] <= room[step.0] && planes(more).bytes() <= bytes
        };
        // Planes are whole bytes, so that several directions may fit where one does not.
        let steps = (0..3).filter_map(|level| (1..=4).map(|by| (level, by)).find(fits));
        let gain = |&(level, _): &(usize, usize)| {
            let bits = if level == 2 { 4.0 } else { 2.0 };
            costs[counts[level]] * (ERRORS[level] - ERRORS[level + 1]) / bits
        };
        match steps.max_by(|a, b| gain(a).total_cmp(&gain(b))) {
            Some(step) => counts = raised(step),
            None => return planes(counts),
        }
    }
}

/// The mean of `tokens` matrices with this `sum`, made symmetric.
fn mean(sum: &[f64], d: usize, tokens: usize) -> DMatrix<f64> {
    let matrix = DMatrix::from_row_slice(d, d, sum) / tokens.max(1) as f64;
    (&matrix + matrix.transpose()) / 2.0
}

/// The matrices that keys and queries of a head, as rows, are multiplied by, and the size of each direction.
fn directions(keys: &DMatrix<f64>, queries: &DMatrix<f64>) -> (DMatrix<f64>, DMatrix<f64>, Vec<f64>) {
    let d = keys.nrows();
    let weights = SymmetricEigen::new(queries.clone());
    let most = weights.eigenvalues.max();
    if !(most > 0.0 && most.is_finite()) {
        return (DMatrix::identity(d, d), DMatrix::identity(d, d), vec![1.0; d]);
    }
    let power = |exponent: f64| {
        let powers = weights.eigenvalues.map(|w| w.max(most * LEAST_QUERY).powf(exponent));
        &weights.eigenvectors * DMatrix::from_diagonal(&powers) * weights.eigenvectors.transpose()
    };
    let (root, inverse) = (power(0.5), power(-0.5));
    let found = SymmetricEigen::new(&root * keys * &root);
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&a, &b| found.eigenvalues[b].total_cmp(&found.eigenvalues[a]));
    let most = found.eigenvalues[order[0]];
    let least = if most > 0.0 && most.is_finite() { most * LEAST_KEY } else { 1.0 };
    let sizes: Vec<f64> = order.iter().map(|&i| found.eigenvalues[i].max(least).sqrt()).collect();
    let sorted = DMatrix::from_columns(&order.iter().map(|&i| found.eigenvectors.column(i)).collect::<Vec<_>>());
    let scaled = |factor: fn(f64) -> f64| {
        let mut matrix = sorted.clone();
        matrix.column_iter_mut().zip(&sizes).for_each(|(mut column, size)| column *= factor(*size));
        matrix
    };
    (root * scaled(f64::recip), inverse * scaled(|size| size), sizes)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const D: usize = 32;

    /// Vectors that depend on each other, `[count, D]`.
    fn vectors(seed: u64, count: usize) -> Vec<f64> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut draw = || random.random::<f64>() + random.random::<f64>() - 1.0;
        let mix: Vec<f64> = (0..D * D).map(|n| draw() * 0.8f64.powi((n / D) as i32)).collect();
        (0..count)
            .flat_map(|_| {
                let x: Vec<f64> = (0..D).map(|_| draw()).collect();
                let mix = &mix;
                (0..D).map(move |j| (0..D).map(|i| x[i] * mix[i * D + j]).sum::<f64>()).collect::<Vec<_>>()
            })
            .collect()
    }

    fn squares(vectors: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; D * D];
        for x in vectors.chunks_exact(D) {
            (0..D * D).for_each(|n| sum[n] += x[n / D] * x[n % D]);
        }
        sum
    }

    fn times(x: &[f64], matrix: &[f32]) -> Vec<f64> {
        (0..D).map(|j| (0..D).map(|i| x[i] * f64::from(matrix[i * D + j])).sum()).collect()
    }

    #[test]
    fn products_stay_and_directions_are_alike() {
        let tokens = 400;
        let (keys, queries) = (vectors(1, tokens), vectors(2, tokens));
        let basis = Basis::new(&Covariance { sums: [squares(&keys), squares(&queries)].concat(), tokens }, D);
        let turned: Vec<Vec<f64>> = keys.chunks_exact(D).map(|k| times(k, &basis.key)).collect();
        let asked: Vec<Vec<f64>> = queries.chunks_exact(D).map(|q| times(q, &basis.query)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (n, (k, q)) in turned.iter().zip(&asked).enumerate() {
            let exact = dot(&keys[n * D..(n + 1) * D], &queries[n * D..(n + 1) * D]);
            assert!((dot(k, q) - exact).abs() <= 1e-4 * (1.0 + exact.abs()), "{} instead of {exact}", dot(k, q));
        }
        assert!(basis.costs.is_sorted_by(|a, b| a >= b));
        // The first directions, whose eigenvalues are not limited: keys of variance 1 that do not depend on each other,
        // and queries as large as the direction costs.
        for (i, j) in (0..8).flat_map(|i| (0..8).map(move |j| (i, j))) {
            let mean = |x: &[Vec<f64>]| x.iter().map(|x| x[i] * x[j]).sum::<f64>() / tokens as f64;
            assert!((mean(&turned) - f64::from(u8::from(i == j))).abs() < 1e-3, "{i} {j}");
            let expected = if i == j { basis.costs[i] } else { 0.0 };
            assert!((mean(&asked) - expected).abs() < 1e-3 * basis.costs[0], "{i} {j}");
        }
        let key: Vec<f32> = keys[..D].iter().map(|x| *x as f32).collect();
        let mut again = key.clone();
        basis.change(0, &mut again);
        assert!(again.iter().zip(&turned[0]).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3));
        basis.restore(0, &mut again);
        assert!(again.iter().zip(&key).all(|(a, b)| (a - b).abs() < 1e-3), "{again:?} instead of {key:?}");
        let product: f64 = basis.saliency.iter().map(|n| f64::from(*n).ln()).sum();
        assert!(product.abs() < 1e-3);
    }

    #[test]
    fn silent_heads_have_a_basis() {
        let basis = Basis::new(&Covariance { sums: vec![0.0; 4 * D * D], tokens: 0 }, D);
        for numbers in [&basis.key, &basis.query, &basis.saliency] {
            assert!(numbers.iter().all(|x| x.is_finite()));
        }
        assert!(basis.saliency.iter().all(|n| *n > 0.0));
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let steep: Vec<f64> = (0..D).map(|j| 0.5f64.powi(j as i32)).collect();
        let flat = vec![1.0; D];
        for bytes in 4..=2 + D {
            for planes in [planes(&steep, bytes), planes(&flat, bytes)] {
                assert!(planes.bytes() <= bytes && planes.kept() >= 1 && planes.kept() <= D);
            }
        }
        // 14 bytes are 96 bits: for equal directions 2 each, and 4 for half of them.
        assert_eq!(planes(&flat, 14), Planes { eight: 0, four: 16, two: 16 });
        assert_eq!(planes(&flat, 1000), Planes { eight: D, four: 0, two: 0 });
        let planes = planes(&steep, 14);
        assert!(planes.eight > 2 && planes.kept() < 20, "{planes:?}");
    }
}
