//! An attention layer of an exported model, whatever it was exported as.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How a model spells its attention: a name that the source has in `source`, and that the metadata of a
/// rewritten model keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Source(Cow<'static, str>);

impl Source {
    /// The source of this name.
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
        // The name of an operator as it is; a way to spell attention without one is a word.
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

/// What becomes attention_bias, or a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias {
    /// The tensor.
    pub tensor: String,
    /// For a boolean mask: what is added where it hides a key; `None`: the tensor is what is added.
    pub masked: Option<f32>,
    /// A boolean mask is true where it hides a key, not where it shows one.
    pub hides: bool,
    /// For an added tensor: it has another type than the query.
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
    /// The node, as people know it.
    pub title: String,
    /// What the new nodes' names begin with.
    pub name: String,
    /// Nodes that go away, by their place in the graph; with them goes all that only fed them. The first makes
    /// `output`.
    pub doomed: Vec<usize>,
    /// Query, or packed query, key and value.
    pub query: String,
    /// Which dimension of the query tensor counts tokens.
    pub token_axis: usize,
    /// New key and value, unless packed.
    pub key_value: Option<[String; 2]>,
    /// The cache.
    pub cache: CacheTensors,
    /// seqlens_k and total_sequence_length
    pub lengths: Option<[String; 2]>,
    /// Rotation inside.
    pub rotary: Option<Rotary>,
    /// Masks, which are added up.
    pub bias: Vec<Bias>,
    /// Hq
    pub query_heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Factor of the scores, 0: 1/sqrt(D)
    pub scale: f32,
    /// Limit of the scores, 0: none
    pub softcap: f32,
    /// local_window_size
    pub window: i64,
    /// Whether a query sees only keys up to its own.
    pub causal: bool,
    /// Normalisation of query and key inside.
    pub norm: Option<Norm>,
    /// The cache holds a window of tokens only, the last ones.
    pub windowed_cache: bool,
    /// The tensor that carries the result.
    pub output: String,
    /// The shape that readers of the result expect, where it is not the query's (0: as it is, -1: tokens).
    pub output_shape: Option<Vec<i64>>,
    /// Type of query, key and value: ONNX's number.
    pub element: i32,
}

impl Layer {
    /// The rotation, if the operators do it themselves: that of all channels.
    pub fn rotary_inside(&self) -> Option<&Rotary> {
        self.rotary.as_ref().filter(|rotary| rotary.width == self.head_dim)
    }

    /// The rotation, if it stands in front of the operators.
    pub fn rotary_in_front(&self) -> Option<&Rotary> {
        self.rotary.as_ref().filter(|rotary| rotary.width != self.head_dim)
    }
}
