//! The operators as ONNX Runtime sees them: thin glue from its tensors and attributes to [`crate::call`] and
//! [`crate::cpu`] or [`crate::hip`]. Their contract is `docs/operators.md`.
//!
//! ONNX Runtime takes a custom operator with one element type per input, so each operator is registered under one name
//! once for every execution provider and combination of T (float32, float16; bfloat16 on a GPU) and C (T, uint8).

mod attention;
mod node;
mod output;
mod pool;
mod prune;
mod rocm;
mod shape_inference;
mod tensors;

use half::{bf16, f16};
use ort::operator::{OperatorDomain, OperatorInput};
use ort::value::{PrimitiveTensorElementType, TensorElementType};

pub use attention::SparkAttention;
pub(crate) use node::panic_message;
pub use prune::SparkPrune;

use crate::call::Input;
use crate::element::Element;

/// The operators' domain.
pub const DOMAIN: &str = "ai.spark";

/// An element type T of the operators on the CPU.
pub trait Tensor: Element + PrimitiveTensorElementType + std::fmt::Debug {}
impl Tensor for f32 {}
impl Tensor for f16 {}

/// An element type C of a cache tensor, which only carries bytes.
pub trait Container: PrimitiveTensorElementType + Send + Sync + 'static {}
impl Container for f32 {}
impl Container for f16 {}
impl Container for bf16 {}
impl Container for u8 {}

/// The domain with both operators, for a Rust host: `Session::builder(..)?.with_operators(spark_ort::operators::domain()?)`.
/// Hosts in other languages register the shared library instead. ONNX Runtime up to 1.23 cannot load models with absent
/// optional inputs this way, unless [`crate::runtime::load`] loaded it; the shared library can.
///
/// # Errors
/// If ONNX Runtime refuses an operator.
pub fn domain() -> ort::Result<OperatorDomain> {
    let domain = OperatorDomain::new(DOMAIN)?
        .add(SparkPrune::<f32, f32>::new())?
        .add(SparkPrune::<f32, u8>::new())?
        .add(SparkPrune::<f16, f16>::new())?
        .add(SparkPrune::<f16, u8>::new())?
        .add(SparkAttention::<f32, f32>::new())?
        .add(SparkAttention::<f32, u8>::new())?
        .add(SparkAttention::<f16, f16>::new())?
        .add(SparkAttention::<f16, u8>::new())?;
    rocm::add(domain)
}

/// The first `count` inputs with the types of T and C.
fn inputs<T: PrimitiveTensorElementType, C: Container>(count: usize) -> impl Iterator<Item = OperatorInput> {
    Input::ALL[..count].iter().map(|input| match input {
        Input::Query => OperatorInput::required(T::into_tensor_element_type()),
        Input::PastKey | Input::PastValue => OperatorInput::required(C::into_tensor_element_type()),
        Input::SeqlensK | Input::TotalSequenceLength => OperatorInput::optional(TensorElementType::Int32),
        Input::PositionIds => OperatorInput::optional(TensorElementType::Int64),
        Input::QuerySaliency => OperatorInput::optional(TensorElementType::Float32),
        _ => OperatorInput::optional(T::into_tensor_element_type()),
    })
}
