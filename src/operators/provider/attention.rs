//! `SparkAttention` on a GPU.

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};

use super::super::node::{Failure, Node, guard};
use super::super::output::attention_output;
use super::super::tensors::Inputs;
use super::super::{Container, attention::NAME, outputs, shape_inference, versions};
use super::{Call, Provider, Tensor, check, device_inputs};
use crate::call::{AttentionSettings, Input, check_bias_columns};
use crate::gpu::{Device, plan};
use crate::spec;

/// `SparkAttention` on provider P, for tensors of T and caches of C.
pub(super) struct GpuAttention<P, T, C>(PhantomData<(P, T, C)>);

impl<P: Provider, T: Tensor, C: Container> GpuAttention<P, T, C> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<P: Provider, T: Tensor, C: Container> Operator for GpuAttention<P, T, C> {
    type Kernel<'attr> = AttentionKernel<P, T, C>;

    fn name(&self) -> &str {
        NAME
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some(P::NAME)
    }

    fn versions(&self) -> RangeInclusive<u32> {
        versions()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        device_inputs::<T, C>(&spec::ATTENTION)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<T, C>(&spec::ATTENTION)
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let node = Node::new(NAME, context);
        let (settings, device) = node.guard(|| {
            let settings = AttentionSettings::read(context)?;
            check(&settings.common)?;
            Ok((settings, P::device(context)?))
        })?;
        Ok(AttentionKernel { node, settings, device, types: PhantomData })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        guard(&format!("{NAME} shape inference"), || Ok(shape_inference::attention(context)?))
    }
}

/// The kernel of one node, without anything of any call.
pub(super) struct AttentionKernel<P, T, C> {
    node: Node,
    settings: AttentionSettings,
    device: &'static Device,
    types: PhantomData<(P, T, C)>,
}

// The crate hands out `&mut self` although calls run side by side: no field may ever change after creation.
impl<P: Provider, T: Tensor, C: Container> Kernel for AttentionKernel<P, T, C> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.node.guard(|| compute::<P, T>(&self.settings, self.device, size_of::<C>(), context))
    }
}

fn compute<P: Provider, T: Tensor>(
    settings: &AttentionSettings,
    device: &Device,
    container: usize,
    context: &ComputeContext,
) -> Result<(), Failure> {
    let tensors = Inputs::new(context, Input::ALL.len())?;
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
    let plan = plan::attention(&device.for_plan(), &geometry, &lengths, settings, &inputs, &attention)?;
    // SAFETY: ONNX Runtime gives device pointers to inputs and outputs of a kernel of a provider with a GPU and keeps
    // them until the stream is done; `Geometry` and `Lengths` checked that tensors have the sizes the plan goes by.
    unsafe { P::run(context, device, output.memory_info(), plan) }
}
