//! The properties of a model's cache that a program needs to run it, in addition to the session's inputs and outputs.

use serde::{Deserialize, Serialize};

/// Element type of a cache tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// ONNX FLOAT
    Float32,
    /// ONNX FLOAT16
    Float16,
    /// ONNX UINT8
    Uint8,
    /// ONNX INT8, used only by ONNX Runtime's own quantised caches
    Int8,
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Element::Float32 => 4,
            Element::Float16 => 2,
            Element::Uint8 | Element::Int8 => 1,
        }
    }
}

/// A cache input and its output, `[B, Hk, rows, width]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePair {
    /// Name of the graph input.
    pub past: String,
    /// Name of the graph output.
    pub present: String,
    /// Element type.
    pub element: Element,
    /// Dimension 3, in elements.
    pub width: usize,
}

impl CachePair {
    /// Bytes of one row: one token of one KV head.
    pub fn row_bytes(&self) -> usize {
        self.width * self.element.size()
    }
}

/// The cache of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLayer {
    /// Hk
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Keys.
    pub key: CachePair,
    /// Values.
    pub value: CachePair,
    /// The last keys, dense: present grows up to recent_window rows and is never shared with past.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_recent: Option<CachePair>,
    /// Number of keys kept dense in free rows of a buffer that past and present share.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tail_window: usize,
}

/// Whether the field can be omitted.
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl CacheLayer {
    /// Rows that a shared buffer needs in addition to those of its tokens, so that the tail always has room for all
    /// its keys.
    pub fn tail_rows(&self) -> usize {
        // One float16 key each; each of the two buffers may waste up to the bytes of one key.
        let keys = if self.tail_window > 0 { self.tail_window + 2 } else { 0 };
        (keys * 2 * self.head_dim).div_ceil(self.key.row_bytes() + self.value.row_bytes())
    }
}

/// The cache of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// In the order of the model's layers.
    pub layers: Vec<CacheLayer>,
    /// Whether past and present may be one buffer with spare rows, which requires seqlens_k as the model's lengths.
    pub shares_buffer: bool,
}

impl Interface {
    /// Every pair with its number of KV heads, layer by layer: keys, values, recent keys.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, &CachePair)> {
        self.layers.iter().flat_map(|layer| {
            let pairs = [Some(&layer.key), Some(&layer.value), layer.key_recent.as_ref()];
            pairs.into_iter().flatten().map(|pair| (layer.kv_heads, pair))
        })
    }

    /// Bytes by which each token grows the cache, without recent keys, whose number is fixed.
    pub fn bytes_per_token(&self) -> usize {
        let row_bytes = |layer: &CacheLayer| layer.kv_heads * (layer.key.row_bytes() + layer.value.row_bytes());
        self.layers.iter().map(row_bytes).sum()
    }
}
