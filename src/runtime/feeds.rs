//! Inputs of a call other than the cache, recognised by the names that exporters give.

use ort::memory::Allocator;
use ort::session::Session;
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

use super::filler::{Filler, Lengths};
use super::interface::{CachePair, Element, Interface};

/// The meaning of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    /// The new tokens, `[1, L]`.
    InputIds,
    /// 0 for each of `blank` tokens without content, 1 for every other held or new one, `[1, P + L]`.
    AttentionMask { blank: usize },
    /// From P on, `[1, L]`.
    PositionIds,
    /// Unknown: see [`Filler`].
    Unknown(Filler),
}

/// An input that is made anew for every call.
#[derive(Debug)]
pub(super) struct Feed {
    pub name: String,
    meaning: Meaning,
    /// int32 instead of int64.
    narrow: bool,
}

impl Feed {
    /// The tensor of a call after `past` held tokens. The caller must have checked the range of `tokens`.
    pub fn tensor(&self, tokens: &[i64], past: usize) -> ort::Result<DynValue> {
        let total = past + tokens.len();
        match &self.meaning {
            Meaning::Unknown(filler) => filler.tensor(tokens, past),
            Meaning::InputIds => self.row(tokens.to_vec()),
            Meaning::AttentionMask { blank } => self.row((0..total).map(|i| i64::from(i >= *blank)).collect()),
            Meaning::PositionIds => self.row((past as i64..total as i64).collect()),
        }
    }

    fn row(&self, values: Vec<i64>) -> ort::Result<DynValue> {
        let shape = [1, values.len()];
        match self.narrow {
            false => Ok(Tensor::from_array((shape, values))?.into_dyn()),
            true => {
                let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
                Ok(Tensor::from_array((shape, values))?.into_dyn())
            }
        }
    }

    /// Tokens must be below this to fit the model's input type.
    pub fn token_limit(feeds: &[Feed]) -> usize {
        let narrow = feeds.iter().any(|feed| feed.meaning == Meaning::InputIds && feed.narrow);
        if narrow { i32::MAX as usize } else { i64::MAX as usize }
    }
}

/// The inputs of a session that are not in the cache. With `fill`, inputs of unknown meaning get harmless values. The
/// first `blank` tokens of the cache have no content.
///
/// # Errors
/// A sentence about an unsupported input or output.
pub(super) fn feeds(session: &Session, interface: &Interface, fill: bool, blank: usize) -> Result<Vec<Feed>, String> {
    let mut feeds = Vec::new();
    let lengths = Lengths::of(session, interface);
    for input in session.inputs() {
        let name = input.name();
        if interface.pairs().any(|(_, pair)| pair.past == name) {
            continue;
        }
        let rank = match input.dtype() {
            ValueType::Tensor { shape, .. } => shape.len(),
            _ => 0,
        };
        let meaning = match name {
            _ if fill && (rank != 2 || !["input_ids", "attention_mask", "position_ids"].contains(&name)) => {
                feeds.push(Feed {
                    name: name.into(),
                    meaning: Meaning::Unknown(Filler::new(input, &lengths)?),
                    narrow: false,
                });
                continue;
            }
            "input_ids" => Meaning::InputIds,
            "attention_mask" => Meaning::AttentionMask { blank },
            "position_ids" => Meaning::PositionIds,
            _ => {
                return Err(format!(
                    "its input '{name}' ({}) is not supported; input_ids, attention_mask, position_ids and the inputs \
                     of the cache are",
                    input.dtype()
                ));
            }
        };
        let narrow = match input.dtype() {
            ValueType::Tensor { ty: TensorElementType::Int64, .. } => false,
            ValueType::Tensor { ty: TensorElementType::Int32, .. } => true,
            other => return Err(format!("its input '{name}' is {other}, only int64 and int32 tensors are supported")),
        };
        feeds.push(Feed { name: name.into(), meaning, narrow });
    }
    if !fill && !feeds.iter().any(|feed| feed.meaning == Meaning::InputIds) {
        return Err("it has no input 'input_ids'".into());
    }
    for (kv_heads, pair) in interface.pairs() {
        check_pair(session, kv_heads, pair)?;
    }
    Ok(feeds)
}

/// The fixed number of tokens in the cache inputs of `session`, 0 if it is not fixed.
pub(super) fn fixed_past(session: &Session, interface: &Interface) -> usize {
    let past = interface.pairs().find_map(|(_, pair)| fixed(session, &pair.past, 2));
    past.unwrap_or(0)
}

/// The fixed number of tokens in every call of `session`, `None` if it is not fixed.
pub(super) fn fixed_tokens(session: &Session) -> Option<usize> {
    fixed(session, "input_ids", 1).or_else(|| fixed(session, "inputs_embeds", 1))
}

/// Longer than the fixed calls or caches of any model.
const MOST_FIXED: usize = 1 << 20;

/// The size of dimension `axis` of the input `name`, if it is a number.
fn fixed(session: &Session, name: &str, axis: usize) -> Option<usize> {
    let input = session.inputs().iter().find(|input| input.name() == name)?;
    let ValueType::Tensor { shape, .. } = input.dtype() else { return None };
    shape.get(axis).and_then(|&size| usize::try_from(size).ok()).filter(|size| *size <= MOST_FIXED)
}

/// Checks that a session has a cache input and output as in the interface.
fn check_pair(session: &Session, kv_heads: usize, pair: &CachePair) -> Result<(), String> {
    let input = session.inputs().iter().find(|input| input.name() == pair.past);
    let input = input.ok_or_else(|| format!("it has no cache input '{}'", pair.past))?;
    if !session.outputs().iter().any(|output| output.name() == pair.present) {
        return Err(format!("it has no cache output '{}'", pair.present));
    }
    let expected = format!("[1, {kv_heads}, rows, {}] of {:?}", pair.width, pair.element);
    let fits = |dimension: i64, size: usize| dimension < 0 || dimension == size as i64;
    match input.dtype() {
        ValueType::Tensor { ty, shape, .. }
            if *ty == element_type(pair.element)
                && shape.len() == 4
                && fits(shape[0], 1)
                && fits(shape[1], kv_heads)
                && fits(shape[3], pair.width) =>
        {
            Ok(())
        }
        other => Err(format!("its cache input '{}' is {other}, expected {expected}", pair.past)),
    }
}

pub(super) fn element_type(element: Element) -> TensorElementType {
    match element {
        Element::Float32 => TensorElementType::Float32,
        Element::Float16 => TensorElementType::Float16,
        Element::Uint8 => TensorElementType::Uint8,
        Element::Int8 => TensorElementType::Int8,
    }
}

/// A cache tensor `[1, kv_heads, rows, width]` of zeros, in memory from ONNX Runtime, so that it can be bound without
/// a copy.
pub(super) fn zeros(kv_heads: usize, rows: usize, pair: &CachePair) -> ort::Result<DynValue> {
    let shape = [1, kv_heads, rows, pair.width];
    let tensor = ort::value::DynTensor::new(&Allocator::default(), element_type(pair.element), shape)?;
    Ok(tensor.into_dyn())
}
