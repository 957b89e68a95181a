//! Output shapes from input shapes, so that a model's shapes stay known behind the operators. Whatever is not known, or
//! does not fit, is left open: the kernels say what is wrong when they see the real tensors.

use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use ort::operator::ShapeInferenceContext;
use ort::sys::{self, ONNXTensorElementDataType as ElementType};
use ort::value::{Shape, SymbolicDimensions, TensorElementType, ValueType};
use ort::{AsPointer, Error};

use crate::call::{Input, Settings};
use crate::format::ValueLayout;

/// A dimension, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dim {
    Value(usize),
    Symbol(String),
    Unknown,
}

impl Dim {
    fn value(&self) -> Option<usize> {
        if let Self::Value(n) = self { Some(*n) } else { None }
    }

    /// The sum, spelt as exporters do.
    fn plus(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Value(a), Self::Value(b)) => {
                a.checked_add(*b).filter(|&n| i64::try_from(n).is_ok()).map_or(Self::Unknown, Self::Value)
            }
            (Self::Value(0), n) | (n, Self::Value(0)) => n.clone(),
            (a, b) => Self::Symbol(format!("{a} + {b}")),
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(n) => n.fmt(f),
            Self::Symbol(s) => s.fmt(f),
            Self::Unknown => "?".fmt(f),
        }
    }
}

/// Element type and shape of an input.
struct Known {
    element: ElementType,
    dims: Vec<Dim>,
}

impl Known {
    /// Whether it is more than a placeholder for an absent input: that has no elements.
    fn used(&self) -> bool {
        !self.dims.contains(&Dim::Value(0))
    }
}

/// What the outputs' shapes follow from.
struct Inferred {
    settings: Settings,
    query: Known,
    container: ElementType,
    packed: bool,
    head_dim: Option<usize>,
    /// S
    present: Dim,
}

/// Sets the output shapes that `SparkPrune` always has. The optional ones stay open: no host says whether a node has
/// them, and ONNX Runtime 1.24 to 1.27 at least write out of bounds when told of one that it does not have.
pub(super) fn prune(context: &mut ShapeInferenceContext) -> ort::Result<()> {
    let Some(Inferred { settings, query, container, head_dim, present, .. }) = infer(context)? else { return Ok(()) };
    let batch = &query.dims[0];
    let heads = Dim::Value(settings.kv_heads);
    let known = |n: Option<usize>| n.map_or(Dim::Unknown, Dim::Value);
    let d = head_dim.unwrap_or(0);
    let key = settings.key_layout(d);
    let value = ValueLayout::of(settings.row_format, d, settings.value_bits, settings.value_row_bytes);
    for (index, bytes) in [(0, key.map(|l| l.row_bytes())), (1, value.map(|l| l.row_bytes()))] {
        let width = known(bytes.ok().map(|b| b / element_bytes(container)));
        set(context, index, container, [batch.clone(), heads.clone(), present.clone(), width].into())?;
    }
    Ok(())
}

/// Sets the output shape of `SparkAttention`.
pub(super) fn attention(context: &mut ShapeInferenceContext) -> ort::Result<()> {
    let Some(Inferred { settings, query, packed, head_dim, .. }) = infer(context)? else { return Ok(()) };
    let mut dims = query.dims;
    if packed {
        dims[2] = head_dim.map_or(Dim::Unknown, |d| Dim::Value(d * settings.query_heads));
    }
    set(context, 0, query.element, dims)
}

/// `None` if query or past_key are not known, or an attribute is not valid.
fn infer(context: &ShapeInferenceContext) -> ort::Result<Option<Inferred>> {
    let Ok(settings) = Settings::read(context) else { return Ok(None) };
    let (Some(query), Some(past_key)) = (input(context, Input::Query)?, input(context, Input::PastKey)?) else {
        return Ok(None);
    };
    let packed = match input(context, Input::Key)? {
        None => true,
        // As for the kernels: without new tokens a given key has no elements either, but a width.
        Some(key) => !key.used() && (key.dims.len() < 3 || key.dims.last() == Some(&Dim::Value(0))),
    };
    let heads = settings.query_heads + if packed { 2 * settings.kv_heads } else { 0 };
    let (new, head_dim) = match &query.dims[..] {
        [_, new, width] => (new, width.value().filter(|w| w.is_multiple_of(heads)).map(|w| w / heads)),
        [_, _, new, head_dim] => (new, head_dim.value()),
        _ => return Ok(None),
    };
    // With lengths at hand, which are values, the number of rows does not follow from shapes.
    let counted = input(context, Input::SeqlensK)?.is_some_and(|s| s.used());
    let present = match past_key.dims.get(2) {
        Some(past) if !counted => past.plus(new),
        _ => Dim::Unknown,
    };
    Ok(Some(Inferred { container: past_key.element, settings, query, packed, head_dim, present }))
}

/// Type and shape of `input`; `None` if it is absent or its type is unknown.
fn input(context: &ShapeInferenceContext, input: Input) -> ort::Result<Option<Known>> {
    let api = ort::api();
    let (mut count, mut rank) = (0, 0);
    let mut info = ptr::null_mut();
    let mut element = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    // SAFETY: the context is ONNX Runtime's for the duration of this call, every out pointer is valid, and the type
    // info stays the context's own.
    unsafe {
        check((api.ShapeInferContext_GetInputCount)(context.ptr(), &mut count))?;
        if input.index() >= count {
            return Ok(None);
        }
        check((api.ShapeInferContext_GetInputTypeShape)(context.ptr(), input.index(), &mut info))?;
        if info.is_null() {
            return Ok(None);
        }
        check((api.GetTensorElementType)(info, &mut element))?;
        check((api.GetDimensionsCount)(info, &mut rank))?;
    }
    if element == ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED {
        return Ok(None);
    }
    let mut values = vec![-1; rank];
    let mut symbols = vec![ptr::null(); rank];
    // SAFETY: as above; both have room for `rank` dimensions, and the symbols are C strings of the type info.
    unsafe {
        check((api.GetDimensions)(info, values.as_mut_ptr(), rank))?;
        check((api.GetSymbolicDimensions)(info, symbols.as_mut_ptr(), rank))?;
    }
    let dim = |(value, symbol): (&i64, &*const std::ffi::c_char)| match usize::try_from(*value) {
        Ok(n) => Dim::Value(n),
        Err(_) if symbol.is_null() => Dim::Unknown,
        // SAFETY: not null, and so a C string of the type info.
        Err(_) => match unsafe { CStr::from_ptr(*symbol) }.to_string_lossy().into_owned() {
            name if name.is_empty() => Dim::Unknown,
            name => Dim::Symbol(name),
        },
    };
    Ok(Some(Known { element, dims: values.iter().zip(&symbols).map(dim).collect() }))
}

/// Sets type and shape of output `index`.
fn set(context: &mut ShapeInferenceContext, index: usize, element: ElementType, dims: Vec<Dim>) -> ort::Result<()> {
    // ONNX Runtime takes an unknown dimension without a name for one of size -1, and equal names for equal sizes.
    static UNKNOWN: AtomicUsize = AtomicUsize::new(0);
    let name = |dim: &Dim| match dim {
        Dim::Value(_) => String::new(),
        Dim::Symbol(name) => name.clone(),
        Dim::Unknown => format!("spark_unknown_{}", UNKNOWN.fetch_add(1, Ordering::Relaxed)),
    };
    let shape = Shape::new(dims.iter().map(|d| d.value().map_or(-1, |n| n as i64)));
    let dimension_symbols = SymbolicDimensions::new(dims.iter().map(name));
    context.set_output(index, &ValueType::Tensor { ty: TensorElementType::from(element), shape, dimension_symbols })
}

fn element_bytes(element: ElementType) -> usize {
    match element {
        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => 4,
        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 => 1,
        _ => 2,
    }
}

/// `status` as a result, taking it over.
fn check(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: it was just returned by ONNX Runtime and is used nowhere else.
    unsafe { Error::result_from_status(status) }
}
