//! The properties of a model or rival that are shown beside its figures.

use serde::Serialize;
use spark_ort::eval::rivals::Rival;
use spark_ort::rewrite::Rows;

use super::candidate::{Candidate, Kind};

/// What is measured.
#[derive(Clone, Serialize)]
pub struct Described {
    pub name: String,
    pub kind: Kind,
    /// Mean share of pruned key channels, if it is rewritten.
    pub ratio: Option<f64>,
    /// Bits, if it is rewritten and all layers have the same.
    pub key_bits: Option<u8>,
    pub value_bits: Option<u8>,
    /// Bytes that each token adds to the cache.
    pub bytes_per_token: f64,
    /// The same as a share of the original's.
    pub share: f64,
    /// Bytes of separate dense rows, which do not grow. Dense rows in free rows of a shared buffer take none.
    pub recent_bytes: usize,
    /// Whether past and present may be one buffer.
    pub shares_buffer: bool,
}

impl Described {
    pub fn candidate(candidate: &Candidate) -> Self {
        let inspection = &candidate.inspection;
        let rows = inspection.rows_by_layer();
        let same = |bits: fn(&Rows) -> u8| {
            let first = bits(rows.first()?);
            rows.iter().all(|rows| bits(rows) == first).then_some(first)
        };
        let pruned = |rows: &&Rows| 1.0 - rows.kept_channels as f64 / rows.head_dim as f64;
        Self {
            name: candidate.name.clone(),
            kind: candidate.kind,
            ratio: (!rows.is_empty()).then(|| rows.iter().map(pruned).sum::<f64>() / rows.len() as f64),
            key_bits: same(|rows| rows.key_bits),
            value_bits: same(|rows| rows.value_bits),
            bytes_per_token: inspection.bytes_per_token as f64,
            share: inspection.bytes_per_token as f64 / inspection.original_bytes_per_token as f64,
            recent_bytes: inspection.recent_bytes,
            shares_buffer: inspection.interface.shares_buffer,
        }
    }

    pub fn rival(rival: &Rival, original: &Candidate) -> Self {
        let inspection = &original.inspection;
        let bytes_per_token = rival.bytes_per_token(&inspection.interface);
        Self {
            name: rival.to_string(),
            kind: Kind::Simulated,
            ratio: None,
            key_bits: None,
            value_bits: None,
            bytes_per_token,
            share: bytes_per_token / inspection.original_bytes_per_token as f64,
            recent_bytes: rival.dense_bytes(&inspection.interface),
            shares_buffer: inspection.interface.shares_buffer,
        }
    }
}
