//! An attention layer of an exported model, independent of how it was exported.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How a model spells its attention. The name is defined in `source`, and kept in the metadata of a rewritten model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Source(Cow<'static, str>);

impl Source {
    /// The source with this name.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Operator names are printed as they are; a source without an operator has a lower-case word.
        let is_word = self.0.starts_with(|c: char| c.is_lowercase());
        write!(f, "{}{}", self.0, if is_word { " attention" } else { "" })
    }
}

/// The rotation of query and key by the attention node itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// cos_cache and sin_cache
    pub caches: [String; 2],
    /// position_ids
    pub positions: Option<String>,
    /// Pairs (2j, 2j+1) rather than (j, j+width/2).
    pub interleaved: bool,
    /// Channels of a head that are rotated, the first ones.
    pub width: usize,
}

/// RMS normalisation of each head of query and key, before they are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// `[D]` of query and key
    pub weights: [String; 2],
    /// Added to the mean square of query and key.
    pub epsilons: [f32; 2],
}

/// A term of attention_bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias {
    /// The tensor.
    pub tensor: String,
    /// For a boolean mask: the value added where it hides a key; `None`: the tensor itself is added.
    pub masked: Option<f32>,
    /// A boolean mask is true where it hides a key, not where it shows one.
    pub hides: bool,
    /// An added tensor whose type differs from the query's.
    pub cast: bool,
    /// It has five dimensions, `[B,1,1,L,columns]`.
    pub drop_axis: bool,
    /// Its shape is not `[B or 1, Hq or 1, L, columns]`, but broadcasts to it.
    pub expand: bool,
}

/// Tensors of the cache of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheTensors {
    /// Graph inputs: key, value.
    pub past: [String; 2],
    /// Graph outputs: key, value.
    pub present: [String; 2],
}

/// One attention layer: where it is and what it computes, in the terms of `SparkAttention`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// How it is spelt.
    pub source: Source,
    /// The node's name in messages.
    pub title: String,
    /// Prefix of the new nodes' names.
    pub name: String,
    /// Nodes to remove, by their position in the graph; nodes that only fed them are removed too. The first makes
    /// `output`.
    pub doomed: Vec<usize>,
    /// Query, or packed query, key and value.
    pub query: String,
    /// The dimension of the query tensor that counts tokens.
    pub token_axis: usize,
    /// New key and value, unless packed.
    pub key_value: Option<[String; 2]>,
    /// The cache.
    pub cache: CacheTensors,
    /// seqlens_k and total_sequence_length
    pub lengths: Option<[String; 2]>,
    /// Rotation by the attention node.
    pub rotary: Option<Rotary>,
    /// Masks, which are added up.
    pub bias: Vec<Bias>,
    /// Hq
    pub query_heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Factor of the scores; 0 means 1/sqrt(D)
    pub scale: f32,
    /// Limit of the scores; 0 means none
    pub softcap: f32,
    /// local_window_size
    pub window: i64,
    /// Whether a query sees only keys up to its own.
    pub causal: bool,
    /// Normalisation of query and key by the attention node.
    pub norm: Option<Norm>,
    /// The cache holds only a window of the last tokens.
    pub windowed_cache: bool,
    /// The output tensor of the layer.
    pub output: String,
    /// The shape that readers of the output expect, if it is not the query's (0: unchanged, -1: tokens).
    pub output_shape: Option<Vec<i64>>,
    /// Type of query, key and value, as ONNX numbers it.
    pub element: i32,
}

impl Layer {
    /// The rotation, if the operators do it themselves, which they do only for all channels.
    pub fn rotary_inside(&self) -> Option<&Rotary> {
        self.rotary.as_ref().filter(|rotary| rotary.width == self.head_dim)
    }

    /// The rotation, if it becomes a node in front of the operators.
    pub fn rotary_in_front(&self) -> Option<&Rotary> {
        self.rotary.as_ref().filter(|rotary| rotary.width != self.head_dim)
    }
}
