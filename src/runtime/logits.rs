//! The logits that a model computes.

use half::f16;
use ort::session::Session;
use ort::value::{DynValue, TensorElementType, ValueType};

use super::error::Error;

/// The logits of a call, `[1, rows, vocabulary]` in float32 or float16: one row per token, or only the last token's.
pub(super) struct Logits {
    value: DynValue,
    rows: usize,
    vocabulary: usize,
    tokens: usize,
}

impl Logits {
    /// Name of the output, the same for all exporters.
    pub const NAME: &str = "logits";

    /// The size of the vocabulary, if the declared shape of the logits has it.
    ///
    /// # Errors
    /// A sentence about the unsupported output.
    pub fn declared_vocabulary(session: &Session) -> Result<Option<usize>, String> {
        let output = session.outputs().iter().find(|output| output.name() == Self::NAME);
        match output.ok_or_else(|| format!("it has no output '{}'", Self::NAME))?.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32 | TensorElementType::Float16, shape, .. } => {
                Ok(shape.last().and_then(|&size| usize::try_from(size).ok()))
            }
            other => Err(format!("its output '{}' is {other}, only float32 and float16 are supported", Self::NAME)),
        }
    }

    /// The logits of a call with `tokens` new tokens.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn of(value: DynValue, tokens: usize) -> Result<Self, Error> {
        let (batch, rows, vocabulary) = match value.dtype() {
            ValueType::Tensor { shape, .. } if shape.len() == 3 => (shape[0], shape[1] as usize, shape[2] as usize),
            _ => (0, 0, 0),
        };
        let logits = Self { value, rows, vocabulary, tokens };
        match batch == 1 && (rows == tokens || rows == 1) && vocabulary > 0 {
            true => Ok(logits),
            false => Err(logits.unexpected()),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// An error with their shape.
    pub fn unexpected(&self) -> Error {
        let shape = match self.value.dtype() {
            ValueType::Tensor { shape, .. } => shape.to_vec(),
            _ => Vec::new(),
        };
        Error::Shape { output: Self::NAME.into(), shape, expected: format!("[1, {}, vocabulary]", self.tokens) }
    }

    /// The logits from row `row` on, as float32.
    ///
    /// # Errors
    /// If their type differs from the declared one.
    pub fn rows_from(&self, row: usize) -> Result<Vec<f32>, Error> {
        let start = row * self.vocabulary;
        if let Ok((_, values)) = self.value.try_extract_tensor::<f16>() {
            return Ok(values[start..].iter().map(|x| x.to_f32()).collect());
        }
        Ok(self.value.try_extract_tensor::<f32>()?.1[start..].to_vec())
    }
}
