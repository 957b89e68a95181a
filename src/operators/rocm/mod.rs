//! The operators on ONNX Runtime's ROCm execution provider: its device pointers, its stream and its memory, handed to
//! [`crate::gpu`]. Only the lengths are read here, from inputs that ONNX Runtime keeps on the CPU. Nothing waits for the
//! device.

mod attention;
mod memory;
mod prune;

use std::ffi::c_void;

use half::{bf16, f16};
use ort::memory::MemoryType;
use ort::operator::{KernelContext, OperatorDomain, OperatorInput};
use ort::value::PrimitiveTensorElementType;

use super::node::Failure;
use super::tensors::Inputs;
use super::{Container, inputs};
use crate::call::{CallError, Geometry, Input, Lengths, Settings, positions};
use crate::format::RowFormat;
use crate::gpu::{Device, Vendor, plan};
use crate::spec;

/// What ONNX Runtime calls the provider.
const PROVIDER: &str = "ROCMExecutionProvider";

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

/// Adds the operators to `domain`. Hosts without the provider never look at them.
pub(super) fn add(domain: OperatorDomain) -> ort::Result<OperatorDomain> {
    domain
        .add(prune::RocmPrune::<f32, f32>::new())?
        .add(prune::RocmPrune::<f32, u8>::new())?
        .add(prune::RocmPrune::<f16, f16>::new())?
        .add(prune::RocmPrune::<f16, u8>::new())?
        .add(prune::RocmPrune::<bf16, bf16>::new())?
        .add(prune::RocmPrune::<bf16, u8>::new())?
        .add(attention::RocmAttention::<f32, f32>::new())?
        .add(attention::RocmAttention::<f32, u8>::new())?
        .add(attention::RocmAttention::<f16, f16>::new())?
        .add(attention::RocmAttention::<f16, u8>::new())?
        .add(attention::RocmAttention::<bf16, bf16>::new())?
        .add(attention::RocmAttention::<bf16, u8>::new())
}

/// Inputs of `operator`: lengths on the CPU, the rest on the device.
fn device_inputs<T: Tensor, C: Container>(operator: &spec::Operator) -> impl Iterator<Item = OperatorInput> {
    inputs::<T, C>(operator).zip(Input::ALL).map(|(declared, input)| match input {
        Input::SeqlensK | Input::TotalSequenceLength => declared.memory_type(MemoryType::CPUInput),
        _ => declared,
    })
}

/// The device of a session that makes a kernel, with our kernels loaded: what is wrong with it is found here, not in
/// the first run.
fn device(context: &KernelContext<'_>) -> Result<&'static Device, Failure> {
    let ordinal = context.allocator(MemoryType::Default)?.memory_info().device_id();
    Ok(Device::get(Vendor::Amd, ordinal)?)
}

/// Refuses what the kernels here do not read.
fn check(settings: &Settings) -> Result<(), Failure> {
    match settings.row_format {
        RowFormat::V1 => Ok(()),
        _ => {
            let problem = "format 2 has no kernels on a GPU yet: leave it out, or run the node on the CPU";
            Err(CallError::attribute(spec::ROW_FORMAT.name, problem.to_owned()).into())
        }
    }
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
