//! What measuring a layer needs, refused before anything is allocated where it cannot be had.

use anyhow::{Result, bail};
use ort::value::TensorElementType;
use spark_ort::call::MOST_CHANNELS_A_TOKEN;
use spark_ort::onnx::MOST_BYTES;

use super::cache::Cache;
use super::shape::Shape;
use crate::report::bytes;
use crate::room;

/// Refuses sizes that no layer has.
///
/// # Errors
/// Names the options.
pub fn check_shape(shape: &Shape, own: &[Cache]) -> Result<()> {
    let [batch, query, kv, head_dim] = [shape.batch, shape.heads.query, shape.heads.kv, shape.head_dim];
    let channels = (batch as u128).saturating_mul(query as u128).saturating_mul(head_dim as u128);
    if channels > MOST_CHANNELS_A_TOKEN as u128 {
        bail!(
            "--batch {batch}, --heads {query}/{kv} and --head-dim {head_dim} are {channels} channels a token; \
             {MOST_CHANNELS_A_TOKEN} are allowed"
        );
    }
    // Two matrices of float32.
    let basis = 2 * 4 * kv as u128 * (head_dim as u128).pow(2);
    if own.iter().any(|cache| cache.rows().is_some_and(|rows| rows.planes.is_some())) && basis >= MOST_BYTES.into() {
        let size = bytes(u64::try_from(basis).unwrap_or(u64::MAX));
        bail!("--settings: a basis for --heads {query}/{kv} takes {size}, and a model in memory has 2 GiB at most");
    }
    Ok(())
}

/// Refuses decoding `new` tokens at a `context` for which there is no memory.
///
/// # Errors
/// As of [`room::check`].
pub fn check_decoding(shape: &Shape, own: &[Cache], context: usize, new: usize) -> Result<()> {
    let held = |cache: &Cache| rows(shape, cache, context + cache.free_rows(shape.head_dim));
    let rows = own.iter().map(held).sum::<u128>() + baselines().iter().map(held).sum::<u128>();
    room::check(&named(shape, &format!("--contexts {context} and --new {new}")), tokens(shape, new) + rows)
}

/// The same of first prompts of `length` tokens.
///
/// # Errors
/// As of [`room::check`].
pub fn check_prefill(shape: &Shape, own: &[Cache], length: usize) -> Result<()> {
    // Whole layers and SparkPrune alone, for float32 and for float16.
    let own: u128 = own.iter().map(|cache| 4 * rows(shape, cache, length)).sum();
    let others: u128 = baselines().iter().map(|cache| rows(shape, cache, length)).sum();
    room::check(&named(shape, &format!("--prefill {length}")), tokens(shape, length) + own + others)
}

/// The same of appending at a `context`.
///
/// # Errors
/// As of [`room::check`].
pub fn check_append(shape: &Shape, own: &[Cache], context: usize) -> Result<()> {
    // A shared buffer and a past.
    let rows: u128 = own.iter().map(|cache| 2 * rows(shape, cache, context)).sum();
    room::check(&named(shape, &format!("--append at --contexts {context}")), tokens(shape, 1) + rows)
}

/// The baselines that every ONNX Runtime has.
fn baselines() -> &'static [Cache] {
    &Cache::GROUPED[..2]
}

fn named(shape: &Shape, what: &str) -> String {
    let Shape { heads, head_dim, batch } = shape;
    format!("{what} with --heads {}/{}, --head-dim {head_dim} and --batch {batch}", heads.query, heads.kv)
}

/// Bytes of the rows of `cache`.
fn rows(shape: &Shape, cache: &Cache, count: usize) -> u128 {
    count as u128 * shape.batch as u128 * shape.bytes_per_token(cache) as u128
}

/// Bytes of query, key, value and output of so many tokens in float32 and in float16.
fn tokens(shape: &Shape, count: usize) -> u128 {
    let elements = 2 * (shape.heads.query + shape.heads.kv) * shape.head_dim;
    let both = [TensorElementType::Float32, TensorElementType::Float16];
    let each: usize = both.iter().filter_map(|element| element.byte_size(elements)).sum();
    count as u128 * shape.batch as u128 * each as u128
}

#[cfg(test)]
mod tests {
    use super::super::cache::Heads;
    use super::*;

    const SMALL: Shape = Shape { heads: Heads { query: 4, kv: 2 }, head_dim: 64, batch: 3 };

    fn own(setting: &str) -> [Cache; 1] {
        [Cache::spark(setting.parse().unwrap(), SMALL.head_dim).unwrap()]
    }

    #[test]
    fn bytes_are_those_of_the_tensors() {
        assert_eq!(tokens(&SMALL, 5), 5 * 3 * 2 * (4 + 2) * 64 * (4 + 2));
        assert_eq!(rows(&SMALL, &own("0.5/8/8")[0], 7), 7 * 3 * 2 * (56 + 68));
    }

    #[test]
    fn what_nobody_has_is_refused_by_its_options() {
        let most = crate::counts::MOST;
        let own = own("0.5/8/8");
        check_shape(&SMALL, &own).unwrap();
        check_decoding(&SMALL, &own, 1000, 1).unwrap();
        let large = Shape { batch: 1 << 20, ..SMALL };
        let errors = [
            (check_decoding(&large, &own, most, 1), "--contexts 1073741824 and --new 1 with --heads 4/2"),
            (check_decoding(&large, &own, most, most - 1), "--new 1073741823"),
            (check_prefill(&large, &own, most), "--prefill 1073741824 with"),
            (check_append(&large, &own, most), "--head-dim 64 and --batch 1048576 needs"),
            (check_shape(&Shape { batch: most, ..SMALL }, &own), "--batch 1073741824, --heads 4/2"),
            (check_shape(&Shape { heads: Heads { query: usize::MAX, kv: 1 }, ..SMALL }, &own), "are allowed"),
        ];
        for (outcome, words) in errors {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_basis_of_too_many_heads_is_refused() {
        let many = Shape { heads: Heads { query: 1 << 16, kv: 1 << 16 }, batch: 1, ..SMALL };
        check_shape(&many, &own("0.5/8/8")).unwrap();
        let error = check_shape(&many, &own("basis32/8")).unwrap_err().to_string();
        assert!(error.contains("--heads 65536/65536 takes 2.00 GiB"), "{error}");
    }
}
