//! `SparkPrune` on a GPU.

use ort::operator::{ComputeContext, KernelContext};

use super::super::Container;
use super::super::node::Failure;
use super::super::operation::{Operation, SparkPrune};
use super::super::operator::Computes;
use super::super::output::{Output, PruneOutputs};
use super::super::tensors::Inputs;
use super::{Call, Gpu, Provider, Tensor, stream};
use crate::call::PruneSettings;
use crate::gpu::{Device, plan};

impl<P: Provider, T: Tensor, C: Container> Computes<SparkPrune, T, C> for Gpu<P> {
    fn device(context: &KernelContext<'_>) -> Result<&'static Device, Failure> {
        P::device(context)
    }

    fn compute(settings: &PruneSettings, device: &'static Device, context: &ComputeContext) -> Result<(), Failure> {
        compute::<P, T>(settings, device, size_of::<C>(), context)
    }
}

fn compute<P: Provider, T: Tensor>(
    settings: &PruneSettings,
    device: &Device,
    container: usize,
    context: &ComputeContext,
) -> Result<(), Failure> {
    let stream = stream(context, device)?;
    let tensors = Inputs::new(context, SparkPrune::reads)?;
    SparkPrune::check_after(&settings.common, context)?;
    let Call { geometry, lengths, inputs } = Call::new::<T>(&tensors, &settings.common, container)?;
    let mut present = PruneOutputs::new(context, &tensors, (&geometry, &lengths), settings, container)?;
    if let Some(output) = &present.covariance {
        return Err(output.error("is found on the CPU only; run the model there").into());
    }
    let address = |output: &mut Option<Output<'_>>| output.as_mut().map_or(std::ptr::null_mut(), Output::address);
    let outputs = plan::PruneOutputs {
        present_key: present.key.address().cast(),
        present_value: present.value.address().cast(),
        present_recent: address(&mut present.recent).cast(),
        observed_saliency: address(&mut present.observed).cast(),
    };
    let plan = plan::prune(&device.for_plan(), &geometry, &lengths, settings, &inputs, &outputs)?;
    // SAFETY: ONNX Runtime gives device pointers to inputs and outputs of a kernel of a provider with a GPU and keeps
    // them until the stream is done; `Geometry` and `Lengths` checked that tensors have the sizes the plan goes by.
    unsafe { P::run(context, (device, stream), present.key.memory_info(), plan) }
}
