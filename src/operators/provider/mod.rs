//! The operators on execution providers with a GPU: their device pointers, stream and memory, handed to
//! [`crate::gpu`]. Only the lengths are read here, from inputs that ONNX Runtime keeps on the CPU. Nothing waits for
//! the device.

mod attention;
mod builtin;
mod prune;
mod spark;

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;

use half::{bf16, f16};
use ort::memory::{MemoryInfo, MemoryType};
use ort::operator::{ComputeContext, KernelContext, OperatorDomain, OperatorInput};
use ort::value::PrimitiveTensorElementType;

use super::node::Failure;
use super::operator::{Place, add};
use super::tensors::Inputs;
use crate::call::{Geometry, Input, Lengths, Settings, positions};
use crate::gpu::plan::{self, Plan};
use crate::gpu::{Device, Handle};

/// An execution provider whose nodes run on a GPU.
trait Provider: Send + Sync + 'static {
    /// What ONNX Runtime calls it.
    const NAME: &'static str;

    /// The device of a session that makes a kernel, with our kernels loaded: what is wrong with it is found here, not
    /// in the first run.
    fn device(context: &KernelContext<'_>) -> Result<&'static Device, Failure>;

    /// Queues `plan` on the call's stream, with a workspace on the device of `memory`.
    ///
    /// # Safety
    /// As for [`Device::queue`], the workspace aside.
    unsafe fn run(
        context: &ComputeContext,
        on: (&Device, Handle),
        memory: &MemoryInfo<'_>,
        plan: Plan,
    ) -> Result<(), Failure>;
}

/// An element type T of the operators on a GPU.
trait Tensor: PrimitiveTensorElementType + Send + Sync + 'static {
    const SCALAR: plan::Scalar;
}

impl Tensor for f32 {
    const SCALAR: plan::Scalar = plan::Scalar::F32;
}
impl Tensor for f16 {
    const SCALAR: plan::Scalar = plan::Scalar::F16;
}
impl Tensor for bf16 {
    const SCALAR: plan::Scalar = plan::Scalar::Bf16;
}

/// The GPU of provider P.
struct Gpu<P>(PhantomData<P>);

impl<P: Provider> Place for Gpu<P> {
    const PROVIDER: Option<&'static str> = Some(P::NAME);
    type Device = &'static Device;

    /// Lengths on the CPU, the rest on the device.
    fn place(input: Input, declared: OperatorInput) -> OperatorInput {
        match input {
            Input::SeqlensK | Input::TotalSequenceLength => declared.memory_type(MemoryType::CPUInput),
            _ => declared,
        }
    }
}

/// Adds the operators to `domain`, for every provider with a GPU. Hosts without one never look at them.
pub(super) fn add_all(domain: OperatorDomain) -> ort::Result<OperatorDomain> {
    add_for::<spark::Spark>(add_for::<builtin::Cuda>(add_for::<builtin::Rocm>(domain)?)?)
}

fn add_for<P: Provider>(domain: OperatorDomain) -> ort::Result<OperatorDomain> {
    add::<Gpu<P>, bf16>(add::<Gpu<P>, f16>(add::<Gpu<P>, f32>(domain)?)?)
}

/// The stream of a call, null for the default one. It is refused before memory is taken, which a driver may not have
/// for a stream that is captured.
fn stream(context: &ComputeContext, device: &Device) -> Result<Handle, Failure> {
    let stream = context.stream()?.map_or(std::ptr::null_mut(), NonNull::as_ptr);
    // SAFETY: ONNX Runtime runs the kernel on the stream of the device that it was made for.
    unsafe { device.check_stream(stream) }?;
    Ok(stream)
}

/// Sizes and lengths of a call, and where its inputs lie.
struct Call {
    geometry: Geometry,
    lengths: Lengths,
    inputs: plan::Inputs,
}

impl Call {
    fn new<T: Tensor>(inputs: &Inputs<'_>, settings: &Settings, container: usize) -> Result<Self, Failure> {
        let (geometry, lengths) = inputs.sizes(settings, container)?;
        let rows = |input: Input, dimension: usize| inputs.shape(input).map_or(0, |shape| shape[dimension]);
        let cache_rows = rows(Input::CosCache, 0);
        if settings.rotary.is_some() && inputs.shape(Input::PositionIds).is_none() {
            // Given positions are on the device; these are not.
            positions(&geometry, &lengths, None, cache_rows)?;
        }
        let by_heads = |input: Input| inputs.shape(input).is_some_and(|shape| shape.len() == 4);
        let pointer = |input| Self::pointer(inputs, input);
        let inputs = plan::Inputs {
            scalar: T::SCALAR,
            query: pointer(Input::Query)?,
            key: pointer(Input::Key)?,
            value: pointer(Input::Value)?,
            key_by_heads: by_heads(Input::Key),
            value_by_heads: by_heads(Input::Value),
            past_key: pointer(Input::PastKey)?,
            past_value: pointer(Input::PastValue)?,
            cos_cache: pointer(Input::CosCache)?,
            sin_cache: pointer(Input::SinCache)?,
            positions: cache_rows,
            position_ids: pointer(Input::PositionIds)?.cast(),
            past_recent: pointer(Input::PastKeyRecent)?,
            past_recent_rows: rows(Input::PastKeyRecent, 2),
            query_saliency: pointer(Input::QuerySaliency)?.cast(),
            key_basis: pointer(Input::KeyBasis)?.cast(),
            query_basis: pointer(Input::QueryBasis)?.cast(),
        };
        Ok(Self { geometry, lengths, inputs })
    }

    /// Where `input` lies, null if it is not used or has no elements.
    fn pointer(inputs: &Inputs<'_>, input: Input) -> Result<*const c_void, Failure> {
        let address = if inputs.shape(input).is_some() { inputs.memory(input).address() } else { 0 };
        match address % 4 {
            0 => Ok(std::ptr::with_exposed_provenance(address)),
            _ => Err(input.error(format!("device address {address:#x} is not a multiple of 4")).into()),
        }
    }
}
