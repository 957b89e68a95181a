//! The operators as ONNX Runtime sees them: thin glue from its tensors and attributes to [`crate::call`] and
//! [`crate::cpu`] or [`crate::gpu`]. Their contract is `docs/operators.md`.
//!
//! ONNX Runtime takes a custom operator with one element type per input, so each operator is registered under one name
//! once for every execution provider and combination of T (float32, float16; bfloat16 on a GPU) and C (T, uint8).

mod attention;
mod memory;
mod node;
mod output;
mod pool;
mod provider;
mod prune;
mod shape_inference;
mod tensors;

use std::ops::RangeInclusive;

use half::{bf16, f16};
use ort::operator::{OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{PrimitiveTensorElementType, TensorElementType};

pub use attention::SparkAttention;
pub(crate) use node::panic_message;
pub use prune::SparkPrune;

use crate::cpu::KernelElement;
use crate::spec;

pub use crate::spec::DOMAIN;

/// An element type T of the operators on the CPU.
pub trait Tensor: KernelElement + PrimitiveTensorElementType + std::fmt::Debug {}
impl Tensor for f32 {}
impl Tensor for f16 {}

/// An element type C of a cache tensor, which only carries bytes.
pub trait Container: PrimitiveTensorElementType + Send + Sync + 'static {}
impl Container for f32 {}
impl Container for f16 {}
impl Container for bf16 {}
impl Container for u8 {}

/// The domain with both operators, for a Rust host:
/// `Session::builder(..)?.with_operators(spark_ort::operators::domain()?)`. Hosts in other languages register the
/// shared library instead. ONNX Runtime up to 1.23 cannot load models with absent optional inputs this way, unless
/// [`crate::runtime::load`] loaded it; the shared library can.
///
/// ```no_run
/// use ort::session::Session;
///
/// let environment = ort::init().build()?;
/// let session = Session::builder(&environment)?
///     .with_operators(spark_ort::operators::domain()?)?
///     .commit_from_file("small.onnx")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    provider::add(domain)
}

/// Versions of the domain that the operators serve. ONNX Runtime holds models to the first one only, so that nodes say
/// theirs themselves ([`spec::VERSION`]).
fn versions() -> RangeInclusive<u32> {
    let [first, last] = [spec::VERSIONS.start(), spec::VERSIONS.end()].map(|&v| v as u32);
    first..=last
}

/// Inputs of `operator` with the types of T and C.
fn inputs<T: PrimitiveTensorElementType, C: Container>(
    operator: &spec::Operator,
) -> impl Iterator<Item = OperatorInput> {
    operator.inputs.iter().map(|input| match input.required {
        true => OperatorInput::required(element::<T, C>(input.element)),
        false => OperatorInput::optional(element::<T, C>(input.element)),
    })
}

/// Outputs of `operator` with the types of T and C.
fn outputs<T: PrimitiveTensorElementType, C: Container>(
    operator: &spec::Operator,
) -> impl Iterator<Item = OperatorOutput> {
    operator.outputs.iter().map(|output| match output.required {
        true => OperatorOutput::required(element::<T, C>(output.element)),
        false => OperatorOutput::optional(element::<T, C>(output.element)),
    })
}

fn element<T: PrimitiveTensorElementType, C: Container>(element: spec::Type) -> TensorElementType {
    match element {
        spec::Type::T => T::into_tensor_element_type(),
        spec::Type::C => C::into_tensor_element_type(),
        spec::Type::Int32 => TensorElementType::Int32,
        spec::Type::Int64 => TensorElementType::Int64,
        spec::Type::Float32 => TensorElementType::Float32,
    }
}
