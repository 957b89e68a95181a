//! The operators as ONNX Runtime sees them: thin glue from its tensors and attributes to [`crate::call`] and
//! [`crate::cpu`] or [`crate::gpu`]. Their contract is `docs/operators.md`.
//!
//! ONNX Runtime takes a custom operator with one element type per input, so each operator is registered under one name
//! once for every place that runs it and combination of T (float32, float16; bfloat16 on a GPU) and C (T, uint8).

mod cpu;
mod memory;
mod node;
mod operation;
mod operator;
mod output;
mod pool;
mod provider;
mod shape_inference;
mod tensors;

use half::{bf16, f16};
use ort::operator::OperatorDomain;
use ort::value::PrimitiveTensorElementType;

pub(crate) use node::panic_message;

use crate::cpu::KernelElement;
pub use crate::spec::DOMAIN;

/// An element type T of the operators on the CPU.
trait Tensor: KernelElement + PrimitiveTensorElementType + std::fmt::Debug {}
impl Tensor for f32 {}
impl Tensor for f16 {}

/// An element type C of a cache tensor, which only carries bytes.
trait Container: PrimitiveTensorElementType + Send + Sync + 'static {}
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
    provider::add_all(cpu::add_all(OperatorDomain::new(DOMAIN)?)?)
}
