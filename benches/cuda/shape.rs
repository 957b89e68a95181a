//! What is measured: heads of a layer, and settings of rows.

use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use spark_ort::call::{AttentionSettings, Geometry, PruneSettings, QueryLayout, Rotary, Settings};
use spark_ort::format::{Bits, KeyLayout, Planes, RowFormat, ValueLayout};
use spark_ort::method::Recovery;
use spark_ort::rewrite::Basis;

use crate::basis::costs;

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Hq
    pub query_heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
}

impl Shape {
    /// Elements of one token's queries.
    pub fn query(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Elements of one token's keys, and of its values.
    pub fn key(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Query heads and KV heads, such as 32/8.
#[derive(Clone, Copy, Debug)]
pub struct Heads(pub usize, pub usize);

impl FromStr for Heads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (query, kv) = text.split_once('/').context("heads are written like 32/8")?;
        let heads = Self(query.parse()?, kv.parse()?);
        ensure!(heads.1 > 0 && heads.0 > 0 && heads.0.is_multiple_of(heads.1), "KV heads must divide query heads");
        Ok(heads)
    }
}

/// How keys are stored.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Pruned { ratio: f64, bits: Bits },
    InBasis { bytes: usize },
}

/// Ratio, key bits and value bits, such as 0.5/8/8, or bytes of a key in a basis and value bits, such as basis64/8, and
/// after a plus recent keys that free rows keep dense, such as 0.5/8/8+64.
#[derive(Clone, Debug)]
pub struct Setting {
    /// As it was written.
    pub name: String,
    keys: Keys,
    value_bits: Bits,
    tail_window: usize,
}

impl FromStr for Setting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rows, tail_window) = text.split_once('+').unwrap_or((text, "0"));
        let parts: Vec<_> = rows.split('/').collect();
        let bits = |text: &str| Bits::new(text.parse()?).with_context(|| format!("{text} is not 16, 8 or 4 bits"));
        let (keys, value_bits) = match parts[..] {
            [ratio, key_bits, value_bits] => {
                let ratio: f64 = ratio.parse()?;
                ensure!((0.0..1.0).contains(&ratio), "a ratio of {ratio} is not within 0 and 1");
                (Keys::Pruned { ratio, bits: bits(key_bits)? }, bits(value_bits)?)
            }
            [basis, value_bits] if basis.starts_with("basis") => {
                (Keys::InBasis { bytes: basis["basis".len()..].parse()? }, bits(value_bits)?)
            }
            _ => return Err(Error::msg("a setting is written like 0.5/8/8, 0.5/8/8+64 or basis64/8")),
        };
        Ok(Self { name: text.into(), keys, value_bits, tail_window: tail_window.parse()? })
    }
}

/// The planes of keys of `bytes` bytes, chosen for directions that cost about what those of SmolLM2 do.
fn planes(head_dim: usize, bytes: usize) -> Planes {
    Basis { key: vec![], query: vec![], saliency: vec![], costs: costs(head_dim) }.planes(bytes)
}

/// Both operators with one setting.
#[derive(Clone, Debug)]
pub struct Operators {
    pub shape: Shape,
    pub key: KeyLayout,
    pub value: ValueLayout,
    pub prune: PruneSettings,
    pub attention: AttentionSettings,
}

impl Operators {
    pub fn new(shape: Shape, setting: &Setting) -> Result<Self> {
        let Shape { query_heads, kv_heads, head_dim } = shape;
        let (row_format, key, key_bits, recovery) = match setting.keys {
            Keys::Pruned { ratio, bits } => {
                let kept = head_dim - (ratio * head_dim as f64).floor() as usize;
                (RowFormat::V1, KeyLayout::new(head_dim, kept, bits, 0)?, bits, Recovery::Mean)
            }
            Keys::InBasis { bytes } => {
                let key = KeyLayout::of_planes(head_dim, planes(head_dim, bytes), 0)?;
                (RowFormat::V3, key, Bits::B16, Recovery::None)
            }
        };
        let value = ValueLayout::of(row_format, head_dim, setting.value_bits, 0)?;
        let common = Settings {
            query_heads,
            kv_heads,
            kept_channels: key.kept(),
            key_bits,
            planes: key.planes().copied(),
            value_bits: setting.value_bits,
            key_row_bytes: key.row_bytes(),
            value_row_bytes: value.row_bytes(),
            recovery,
            recent_window: 0,
            row_format,
            tail_window: setting.tail_window,
            rotary: Some(Rotary::Halves),
        };
        let prune = PruneSettings { common: common.clone(), observation_window: 32, observation_scale: None };
        let attention = AttentionSettings { common, scale: None, softcap: None, window: None, causal: true };
        Ok(Self { shape, key, value, prune, attention })
    }

    /// Of `new` tokens of each of `batch` sequences, on a shared buffer of `capacity` rows.
    pub fn geometry(&self, batch: usize, new: usize, capacity: usize) -> Geometry {
        let Self { shape: Shape { query_heads, kv_heads, .. }, key, value, .. } = *self;
        Geometry { batch, new, past: capacity, query_heads, kv_heads, layout: QueryLayout::Tokens, key, value }
    }

    /// Rows of a shared buffer for `tokens` tokens, with as many free ones as the recent keys take.
    pub fn capacity(&self, tokens: usize) -> usize {
        let free = (self.prune.common.tail_window * 2 * self.shape.head_dim).div_ceil(self.value.row_bytes());
        tokens + free
    }

    /// Bytes of the rows of one token, of all KV heads.
    pub fn token_bytes(&self) -> usize {
        self.shape.kv_heads * (self.key.row_bytes() + self.value.row_bytes())
    }
}
