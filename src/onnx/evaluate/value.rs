//! Tensors of the evaluator.

use ndarray::{ArrayD, IxDyn};
use protobuf::Enum;

use crate::onnx::proto::TensorProto;
use crate::onnx::proto::tensor_proto::{DataLocation, DataType};

/// Largest tensor whose elements are followed, in elements.
const MOST_ELEMENTS: usize = 8 << 20;

/// Most dimensions of a tensor; more than ONNX Runtime's operators take.
pub(super) const MOST_DIMENSIONS: usize = 64;

/// A tensor of which at least the shape is known.
///
/// Elements are float64, whatever the type: exact for the lengths and positions that shapes and masks are made of.
#[derive(Clone, Debug)]
pub struct Value {
    /// ONNX's number of the element type.
    pub kind: i32,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements, where they are known.
    pub data: Option<ArrayD<f64>>,
}

/// Inputs of a node, `None` where one is absent.
pub type Inputs<'v> = [Option<&'v Value>];

/// Input `index`.
///
/// # Errors
/// It is absent.
pub fn need<'v>(inputs: &Inputs<'v>, index: usize) -> Result<&'v Value, String> {
    inputs.get(index).copied().flatten().ok_or_else(|| format!("input {index} is missing"))
}

impl Value {
    /// A tensor with known elements.
    pub fn known(kind: i32, data: ArrayD<f64>) -> Self {
        Self { kind, shape: data.shape().to_vec(), data: Some(data) }
    }

    /// A tensor of which only the shape is known.
    pub fn shaped(kind: i32, shape: Vec<usize>) -> Self {
        Self { kind, shape, data: None }
    }

    /// Number of known elements.
    pub(super) fn known_elements(&self) -> usize {
        self.data.as_ref().map_or(0, ArrayD::len)
    }

    /// Elements in order; the error says what is not known.
    pub fn elements(&self) -> Result<&ArrayD<f64>, String> {
        self.data.as_ref().ok_or_else(|| "its elements depend on the tokens".to_string())
    }

    /// Elements as integers, saturating.
    pub fn ints(&self) -> Result<Vec<i64>, String> {
        Ok(self.elements()?.iter().map(|&x| x as i64).collect())
    }

    /// The only element.
    pub fn scalar(&self) -> Result<f64, String> {
        let data = self.elements()?;
        match data.len() {
            1 => Ok(data.iter().copied().sum()),
            n => Err(format!("it has {n} elements")),
        }
    }

    /// The value of a constant. Elements stay unknown if they are external, too many, or of an unusual type.
    pub fn constant(tensor: &TensorProto) -> Result<Self, String> {
        let shape = tensor
            .dims
            .iter()
            .map(|&d| usize::try_from(d))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| format!("'{}' has the shape {:?}", tensor.name(), tensor.dims))?;
        if shape.len() > MOST_DIMENSIONS {
            return Err(format!("'{}' has {} dimensions", tensor.name(), shape.len()));
        }
        let kind = tensor.data_type();
        // A dimension of 0 counts as 1: the product of the others must not overflow either.
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        if tensor.data_location() == DataLocation::EXTERNAL || count.is_none_or(|n| n > MOST_ELEMENTS) {
            return Ok(Self::shaped(kind, shape));
        }
        let data = elements(tensor).and_then(|e| ArrayD::from_shape_vec(IxDyn(&shape), e).ok());
        Ok(Self { kind, shape, data })
    }
}

/// Numbers of element types.
pub mod kinds {
    #![allow(missing_docs)]
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const UINT16: i32 = 4;
    pub const INT16: i32 = 5;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;

    /// The least and greatest value of a type that activations are quantised to.
    pub fn range(kind: i32) -> Option<(f64, f64)> {
        match kind {
            UINT8 => Some((0.0, 255.0)),
            INT8 => Some((-128.0, 127.0)),
            UINT16 => Some((0.0, 65535.0)),
            INT16 => Some((-32768.0, 32767.0)),
            _ => None,
        }
    }

    /// Whether division truncates.
    pub fn is_integer(kind: i32) -> bool {
        matches!(kind, 2..=7 | 12 | 13)
    }
}

fn elements(tensor: &TensorProto) -> Option<Vec<f64>> {
    let raw = tensor.raw_data();
    fn fixed<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
        Some(raw.chunks_exact(N).map(|c| read(c.try_into().expect("N bytes"))).collect())
    }
    let ints = || tensor.int32_data.iter().map(|&x| f64::from(x)).collect();
    let typed = !raw.is_empty();
    match DataType::from_i32(tensor.data_type())? {
        DataType::FLOAT if typed => fixed(raw, |b| f32::from_le_bytes(b).into()),
        DataType::FLOAT => Some(tensor.float_data.iter().map(|&x| x.into()).collect()),
        DataType::DOUBLE if typed => fixed(raw, f64::from_le_bytes),
        DataType::DOUBLE => Some(tensor.double_data.clone()),
        DataType::FLOAT16 if typed => fixed(raw, |b| half::f16::from_le_bytes(b).into()),
        DataType::FLOAT16 => Some(tensor.int32_data.iter().map(|&x| half::f16::from_bits(x as u16).into()).collect()),
        DataType::BFLOAT16 if typed => fixed(raw, |b| half::bf16::from_le_bytes(b).into()),
        DataType::INT64 if typed => fixed(raw, |b| i64::from_le_bytes(b) as f64),
        DataType::INT64 => Some(tensor.int64_data.iter().map(|&x| x as f64).collect()),
        DataType::INT32 if typed => fixed(raw, |b| i32::from_le_bytes(b).into()),
        DataType::UINT8 | DataType::BOOL if typed => fixed(raw, |b: [u8; 1]| b[0].into()),
        DataType::INT8 if typed => fixed(raw, |b: [u8; 1]| f64::from(b[0] as i8)),
        DataType::UINT16 if typed => fixed(raw, |b| u16::from_le_bytes(b).into()),
        DataType::INT16 if typed => fixed(raw, |b| i16::from_le_bytes(b).into()),
        DataType::UINT16 | DataType::INT16 => Some(ints()),
        DataType::INT32 | DataType::UINT8 | DataType::BOOL | DataType::INT8 => Some(ints()),
        _ => None,
    }
}
