//! `SparkAttention` on a GPU.

use ort::operator::{ComputeContext, KernelContext};

use super::super::Container;
use super::super::node::Failure;
use super::super::operation::{Operation, SparkAttention};
use super::super::operator::Computes;
use super::super::output::attention_output;
use super::super::tensors::Inputs;
use super::{Call, Gpu, Provider, Tensor, stream};
use crate::call::{AttentionSettings, Input, check_bias_columns};
use crate::gpu::{Device, plan};

impl<P: Provider, T: Tensor, C: Container> Computes<SparkAttention, T, C> for Gpu<P> {
    fn device(context: &KernelContext<'_>) -> Result<&'static Device, Failure> {
        P::device(context)
    }

    fn compute(settings: &AttentionSettings, device: &'static Device, context: &ComputeContext) -> Result<(), Failure> {
        compute::<P, T>(settings, device, size_of::<C>(), context)
    }
}

fn compute<P: Provider, T: Tensor>(
    settings: &AttentionSettings,
    device: &Device,
    container: usize,
    context: &ComputeContext,
) -> Result<(), Failure> {
    let stream = stream(context, device)?;
    let tensors = Inputs::new(context, SparkAttention::reads)?;
    SparkAttention::check_basis(&settings.common, &tensors)?;
    let Call { geometry, lengths, inputs } = Call::new::<T>(&tensors, &settings.common, container)?;
    let mut bias_shape = [0; 4];
    if let Some(shape) = tensors.shape(Input::AttentionBias) {
        bias_shape.copy_from_slice(shape);
        check_bias_columns(&lengths, shape[3])?;
    }
    if !inputs.past_recent.is_null() {
        lengths.check_recent(settings.common.recent_window, inputs.past_recent_rows)?;
    }
    let mut output = attention_output(context, &tensors, &geometry)?;
    let attention = plan::AttentionTensors {
        bias: Call::pointer(&tensors, Input::AttentionBias)?,
        bias_shape,
        output: output.address().cast(),
    };
    let plan = |device: &_| plan::attention(device, &geometry, &lengths, settings, &inputs, &attention);
    let run = |plan| {
        // SAFETY: ONNX Runtime gives device pointers to inputs and outputs of a kernel of a provider with a GPU and
        // keeps them until the stream is done; `Geometry` and `Lengths` checked that tensors have the sizes the plan
        // goes by.
        unsafe { P::run(context, (device, stream), output.memory_info(), plan) }
    };
    let whole = plan(&device.for_plan())?;
    let unpacked = whole.unpacked_bytes();
    match run(whole) {
        Err(Failure::Workspace(..)) if unpacked > 0 => {
            device.unpack_less_than(unpacked);
            run(plan(&plan::Device { unpacked_bytes: 0, ..device.for_plan() })?)
        }
        result => result,
    }
}
