//! Harmless values for inputs of unknown meaning, for calls whose logits do not matter: consecutive positions, masks
//! that hide nothing, states of zeros, embeddings that differ from each other.

use std::collections::HashMap;

use half::{bf16, f16};
use ort::session::Session;
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, ValueType};

use super::interface::Interface;

/// What a dimension counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// A fixed size.
    Fixed(usize),
    /// L
    New,
    /// P
    Past,
    /// P + L
    Total,
}

/// Meaning of dimensions, by the names that inputs of known meaning give them.
pub(super) struct Lengths(HashMap<String, Length>);

impl Lengths {
    /// The dimensions of a session.
    pub fn of(session: &Session, interface: &Interface) -> Self {
        let mut lengths = HashMap::new();
        for input in session.inputs() {
            let is_past = interface.pairs().any(|(_, pair)| pair.past == input.name());
            let known: &[(usize, Length)] = match input.name() {
                "input_ids" | "inputs_embeds" | "position_ids" => &[(0, Length::Fixed(1)), (1, Length::New)],
                "attention_mask" => &[(0, Length::Fixed(1)), (1, Length::Total)],
                _ if is_past => &[(0, Length::Fixed(1)), (2, Length::Past)],
                _ => &[],
            };
            let ValueType::Tensor { shape, dimension_symbols, .. } = input.dtype() else { continue };
            // In positions and masks with more dimensions, the first may have any meaning.
            let usual = is_past || shape.len() == if input.name() == "inputs_embeds" { 3 } else { 2 };
            for &(axis, length) in known.iter().filter(|_| usual) {
                if let Some(symbol) = dimension_symbols.get(axis).filter(|symbol| !symbol.is_empty()) {
                    lengths.entry(symbol.to_string()).or_insert(length);
                }
            }
        }
        Self(lengths)
    }
}

/// The values of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Zeros,
    Ones,
    /// P, P + 1 and so on along the last dimension.
    Positions,
    /// P + L minus this.
    Total(i64),
    /// Pseudo-random numbers by token and channel.
    Noise,
}

/// How to fill an input of unknown meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filler {
    element: TensorElementType,
    shape: Vec<Length>,
    fill: Fill,
}

impl Filler {
    /// The filler for `input`.
    ///
    /// # Errors
    /// A sentence about an input that is not a numeric tensor.
    pub fn new(input: &Outlet, lengths: &Lengths) -> Result<Self, String> {
        let name = input.name();
        let ValueType::Tensor { ty, shape, dimension_symbols } = input.dtype() else {
            return Err(format!("its input '{name}' is {}, which no tensor fits", input.dtype()));
        };
        use TensorElementType::{Bfloat16, Bool, Float16, Float32, Int32, Int64, Uint8};
        if !matches!(ty, Float32 | Float16 | Bfloat16 | Int64 | Int32 | Bool | Uint8) {
            return Err(format!("its input '{name}' has elements of {ty}"));
        }
        let fill = match name {
            _ if name.contains("position") => Fill::Positions,
            _ if name.contains("seqlens_k") || name == "past_seq_len" => Fill::Total(1),
            _ if name.contains("total_seq") => Fill::Total(0),
            _ if name.contains("embeds") || name.contains("per_layer") => Fill::Noise,
            "attention_mask" if shape.len() == 4 && *ty != Bool => Fill::Zeros,
            _ if *ty == Bool || name.contains("mask") => Fill::Ones,
            _ => Fill::Zeros,
        };
        let last = shape.len().saturating_sub(1);
        let length = |axis: usize| match usize::try_from(shape[axis]) {
            Ok(size) => Length::Fixed(size),
            Err(_) => match dimension_symbols.get(axis).and_then(|symbol| lengths.0.get(symbol.as_str())) {
                Some(&length) => length,
                // A dimension of tokens that no other input names.
                None if name == "attention_mask" => {
                    if axis == last {
                        Length::Total
                    } else {
                        Length::New
                    }
                }
                None if axis == last && fill == Fill::Positions => Length::New,
                None => Length::Fixed(1),
            },
        };
        let shape = (0..shape.len()).map(length).collect();
        Ok(Self { element: *ty, shape, fill })
    }

    /// The input's tensor for a call.
    pub fn tensor(&self, tokens: &[i64], past: usize) -> ort::Result<DynValue> {
        let shape: Vec<usize> = self
            .shape
            .iter()
            .map(|length| match *length {
                Length::Fixed(size) => size,
                Length::New => tokens.len(),
                Length::Past => past,
                Length::Total => past + tokens.len(),
            })
            .collect();
        let count: usize = shape.iter().product();
        let last = shape.last().copied().unwrap_or(1).max(1);
        let values: Vec<f64> = (0..count)
            .map(|i| match self.fill {
                Fill::Zeros => 0.0,
                Fill::Ones => 1.0,
                Fill::Positions => (past + i % last) as f64,
                Fill::Total(less) => (past + tokens.len()) as f64 - less as f64,
                Fill::Noise => noise(tokens.get(i / last).copied().unwrap_or(0), i % last),
            })
            .collect();
        macro_rules! tensor {
            ($convert:expr) => {
                Tensor::from_array((shape, values.into_iter().map($convert).collect::<Vec<_>>()))?.into_dyn()
            };
        }
        Ok(match self.element {
            TensorElementType::Float32 => tensor!(|v| v as f32),
            TensorElementType::Float16 => tensor!(f16::from_f64),
            TensorElementType::Bfloat16 => tensor!(bf16::from_f64),
            TensorElementType::Int32 => tensor!(|v| v as i32),
            TensorElementType::Uint8 => tensor!(|v| v as u8),
            TensorElementType::Bool => tensor!(|v| v != 0.0),
            _ => tensor!(|v| v as i64),
        })
    }
}

/// A number between -1 and 1 for a token and a channel, the same in every call.
fn noise(token: i64, channel: usize) -> f64 {
    // SplitMix64.
    let mut x = (token as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add((channel as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
}
