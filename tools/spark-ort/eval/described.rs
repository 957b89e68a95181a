//! The properties of a model or rival that are shown beside its figures.

use serde::Serialize;
use spark_ort::eval::rivals::Rival;

use super::candidate::{Candidate, Kind};

/// What is measured.
#[derive(Clone, Serialize)]
pub struct Described {
    pub name: String,
    pub kind: Kind,
    /// Share of pruned key channels and bits, if it is rewritten.
    pub ratio: Option<f64>,
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
        let rows = inspection.rows.as_ref();
        Self {
            name: candidate.name.clone(),
            kind: candidate.kind,
            ratio: rows.map(|rows| 1.0 - rows.kept_channels as f64 / rows.head_dim as f64),
            key_bits: rows.map(|rows| rows.key_bits),
            value_bits: rows.map(|rows| rows.value_bits),
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
