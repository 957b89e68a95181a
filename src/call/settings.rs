//! Attributes of the operators, validated as far as they can be without shapes.

use super::CallError;
use crate::format::{Bits, LayoutError};
use crate::method::Recovery;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// an int
    Int(i64),
    /// a float
    Float(f32),
    /// a string
    String(String),
    /// of a type that no attribute of the operators has
    Other,
}

/// Where attributes come from.
pub trait Attributes {
    /// The attribute `name`, `None` if the node has no such attribute.
    fn get(&self, name: &'static str) -> Option<Attribute>;
}

fn wrong_type(name: &'static str, expected: &str, found: &Attribute) -> CallError {
    CallError::attribute(name, format!("{found:?} is not {expected}"))
}

/// Which channels the rotation pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// j and j + D/2
    Halves,
    /// 2j and 2j + 1
    Interleaved,
}

/// Attributes that both operators share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Hq
    pub query_heads: usize,
    /// Hk, a divisor of Hq
    pub kv_heads: usize,
    /// T_k, at least 1
    pub kept_channels: usize,
    /// Bits of a kept key channel.
    pub key_bits: Bits,
    /// Bits of a value channel.
    pub value_bits: Bits,
    /// Bytes of a key row, 0: as needed.
    pub key_row_bytes: usize,
    /// Bytes of a value row, 0: as needed.
    pub value_row_bytes: usize,
    /// What pruned channels read as.
    pub recovery: Recovery,
    /// Keys kept dense beside the rows, when wired.
    pub recent_window: usize,
    /// Keys kept dense in the tail of a shared buffer; 0: none.
    pub tail_window: usize,
    /// Rotation to apply to query and key.
    pub rotary: Option<Rotary>,
}

/// Attributes of `SparkPrune`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneSettings {
    /// The shared ones.
    pub common: Settings,
    /// W, queries that saliency looks at, at least 1.
    pub observation_window: usize,
}

/// Attributes of `SparkAttention`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSettings {
    /// The shared ones.
    pub common: Settings,
    /// Factor of the scores; `None` means 1/sqrt(D).
    pub scale: Option<f32>,
    /// Limit of the scores, positive.
    pub softcap: Option<f32>,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Whether a query sees only keys up to its own.
    pub causal: bool,
}

/// The integer attribute `name`, `default` if absent.
fn any_int(source: &impl Attributes, name: &'static str, default: Option<i64>) -> Result<i64, CallError> {
    match source.get(name) {
        Some(Attribute::Int(value)) => Ok(value),
        Some(other) => Err(wrong_type(name, "an int", &other)),
        None => default.ok_or_else(|| CallError::attribute(name, "is required")),
    }
}

/// The integer attribute `name` if `valid`, `default` if absent.
fn int(
    source: &impl Attributes,
    name: &'static str,
    default: Option<i64>,
    expected: &str,
    valid: impl Fn(i64) -> bool,
) -> Result<usize, CallError> {
    let value = any_int(source, name, default)?;
    match usize::try_from(value) {
        // Far below what could overflow a product of sizes.
        Ok(size) if value <= i32::MAX.into() && valid(value) => Ok(size),
        _ => Err(CallError::attribute(name, format!("{value} is not {expected}"))),
    }
}

fn flag(source: &impl Attributes, name: &'static str, default: i64) -> Result<bool, CallError> {
    int(source, name, Some(default), "0 or 1", |v| v <= 1).map(|v| v == 1)
}

fn bits(source: &impl Attributes, name: &'static str) -> Result<Bits, CallError> {
    let value = any_int(source, name, Some(16))?;
    Bits::new(value).ok_or_else(|| CallError::attribute(name, format!("{value} is not 16, 8 or 4")))
}

fn row_bytes(source: &impl Attributes, name: &'static str) -> Result<usize, CallError> {
    int(source, name, Some(0), "0 or a positive multiple of 4", |v| v % 4 == 0)
}

impl Settings {
    /// Reads and checks the shared attributes.
    ///
    /// # Errors
    /// Names the attribute that is missing, of another type or out of range.
    pub fn read(source: &impl Attributes) -> Result<Self, CallError> {
        let query_heads = int(source, "num_heads", None, "a positive number of heads", |v| v > 0)?;
        let kv_heads = int(source, "kv_num_heads", None, "a positive number of heads", |v| v > 0)?;
        if !query_heads.is_multiple_of(kv_heads) {
            let problem = format!("{query_heads} query heads cannot be shared evenly by kv_num_heads = {kv_heads}");
            return Err(CallError::attribute("num_heads", problem));
        }
        let recovery = match source.get("recovery") {
            None => Recovery::Mean,
            Some(Attribute::String(s)) if s == "mean" => Recovery::Mean,
            Some(Attribute::String(s)) if s == "none" => Recovery::None,
            Some(other) => return Err(wrong_type("recovery", "\"mean\" or \"none\"", &other)),
        };
        let interleaved = flag(source, "rotary_interleaved", 0)?;
        let style = if interleaved { Rotary::Interleaved } else { Rotary::Halves };
        Ok(Self {
            query_heads,
            kv_heads,
            kept_channels: int(source, "kept_channels", None, "a positive number of channels", |v| v > 0)?,
            key_bits: bits(source, "key_bits")?,
            value_bits: bits(source, "value_bits")?,
            key_row_bytes: row_bytes(source, "key_row_bytes")?,
            value_row_bytes: row_bytes(source, "value_row_bytes")?,
            recovery,
            recent_window: int(source, "recent_window", Some(0), "a number of keys", |_| true)?,
            tail_window: int(source, "tail_window", Some(0), "a number of keys", |_| true)?,
            rotary: flag(source, "do_rotary", 0)?.then_some(style),
        })
    }
}

/// `error` as an error about the attribute it speaks of; `row_bytes` names the attribute with the row size at hand.
pub(super) fn layout_error(error: LayoutError, row_bytes: &'static str) -> CallError {
    match error {
        LayoutError::HeadDim(_) => super::Input::Query.error(error.to_string()),
        LayoutError::KeptChannels { .. } => CallError::attribute("kept_channels", error.to_string()),
        LayoutError::ValueGroup(_) => CallError::attribute("value_bits", error.to_string()),
        LayoutError::RowBytes { .. } => CallError::attribute(row_bytes, error.to_string()),
    }
}

impl PruneSettings {
    /// Reads and checks the attributes of `SparkPrune`.
    ///
    /// # Errors
    /// Names the attribute that is missing, of another type or out of range.
    pub fn read(source: &impl Attributes) -> Result<Self, CallError> {
        Ok(Self {
            common: Settings::read(source)?,
            observation_window: int(source, "observation_window", Some(32), "a positive number of queries", |v| v > 0)?,
        })
    }
}

impl AttentionSettings {
    /// Reads and checks the attributes of `SparkAttention`.
    ///
    /// # Errors
    /// Names the attribute that is missing, of another type or out of range.
    pub fn read(source: &impl Attributes) -> Result<Self, CallError> {
        let float = |name| match source.get(name) {
            None => Ok(0.0),
            Some(Attribute::Float(x)) if x.is_finite() => Ok(x),
            Some(other) => Err(wrong_type(name, "a finite float", &other)),
        };
        let window = any_int(source, "local_window_size", Some(-1))?;
        Ok(Self {
            common: Settings::read(source)?,
            scale: Some(float("scale")?).filter(|&s| s != 0.0),
            // As in GroupQueryAttention, what is not positive means none.
            softcap: Some(float("softcap")?).filter(|&s| s > 0.0),
            window: usize::try_from(window).ok().filter(|&w| w > 0),
            causal: flag(source, "causal", 1)?,
        })
    }
}
