//! `SparkPrune` on a GPU.

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};

use super::super::node::{Failure, Node, guard};
use super::super::output::{Output, PruneOutputs};
use super::super::tensors::Inputs;
use super::super::{Container, outputs, prune, shape_inference, versions};
use super::{Call, Provider, Tensor, check, device_inputs};
use crate::call::PruneSettings;
use crate::gpu::{Device, plan};
use crate::spec;

/// `SparkPrune` on provider P, for tensors of T and caches of C.
pub(super) struct GpuPrune<P, T, C>(PhantomData<(P, T, C)>);

impl<P: Provider, T: Tensor, C: Container> GpuPrune<P, T, C> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<P: Provider, T: Tensor, C: Container> Operator for GpuPrune<P, T, C> {
    type Kernel<'attr> = PruneKernel<P, T, C>;

    fn name(&self) -> &str {
        prune::NAME
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some(P::NAME)
    }

    fn versions(&self) -> RangeInclusive<u32> {
        versions()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        device_inputs::<T, C>(&spec::PRUNE)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<T, C>(&spec::PRUNE)
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let node = Node::new(prune::NAME, context);
        let (settings, device) = node.guard(|| {
            let settings = PruneSettings::read(context)?;
            check(&settings.common)?;
            Ok((settings, P::device(context)?))
        })?;
        Ok(PruneKernel { node, settings, device, types: PhantomData })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        guard(&format!("{} shape inference", prune::NAME), || Ok(shape_inference::prune(context)?))
    }
}

/// The kernel of one node, without anything of any call.
pub(super) struct PruneKernel<P, T, C> {
    node: Node,
    settings: PruneSettings,
    device: &'static Device,
    types: PhantomData<(P, T, C)>,
}

// The crate hands out `&mut self` although calls run side by side: no field may ever change after creation.
impl<P: Provider, T: Tensor, C: Container> Kernel for PruneKernel<P, T, C> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.node.guard(|| compute::<P, T>(&self.settings, self.device, size_of::<C>(), context))
    }
}

fn compute<P: Provider, T: Tensor>(
    settings: &PruneSettings,
    device: &Device,
    container: usize,
    context: &ComputeContext,
) -> Result<(), Failure> {
    let tensors = Inputs::new(context, prune::INPUTS)?;
    prune::check_after(&settings.common, context)?;
    let Call { geometry, lengths, inputs } = Call::new::<T>(&tensors, &settings.common, container)?;
    let mut present = PruneOutputs::new(context, &tensors, (&geometry, &lengths), settings, container)?;
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
    unsafe { P::run(context, device, present.key.memory_info(), plan) }
}
