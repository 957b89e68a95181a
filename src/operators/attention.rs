//! `SparkAttention`, the read path.

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};

use super::node::{Failure, Node, guard};
use super::output::attention_output;
use super::pool::OrtPool;
use super::tensors::{Common, Inputs};
use super::{Container, Tensor, inputs, outputs, shape_inference, versions};
use crate::call::{AttentionSettings, Input, check_bias_columns};
use crate::cpu::{Attention, InstructionSet, TailRows, attention};
use crate::format::TailLayout;
use crate::spec;

pub(super) const NAME: &str = spec::ATTENTION.name;

/// `SparkAttention` for tensors of T and caches of C, on the CPU.
pub struct SparkAttention<T, C>(PhantomData<(T, C)>);

impl<T: Tensor, C: Container> SparkAttention<T, C> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Tensor, C: Container> Operator for SparkAttention<T, C> {
    type Kernel<'attr> = AttentionKernel<T, C>;

    fn name(&self) -> &str {
        NAME
    }

    fn versions(&self) -> RangeInclusive<u32> {
        versions()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        inputs::<T, C>(&spec::ATTENTION)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<T, C>(&spec::ATTENTION)
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let node = Node::new(NAME, context);
        let (settings, path) = node.guard(|| {
            let path = InstructionSet::chosen().map_err(Failure::Process)?;
            Ok((AttentionSettings::read(context)?, path))
        })?;
        Ok(AttentionKernel { node, settings, path, types: PhantomData })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        guard(&format!("{NAME} shape inference"), || Ok(shape_inference::attention(context)?))
    }
}

/// The kernel of one node. It holds what the node's attributes say and nothing of any call, since ONNX Runtime runs one
/// kernel from several threads at once.
pub struct AttentionKernel<T, C> {
    node: Node,
    settings: AttentionSettings,
    path: InstructionSet,
    types: PhantomData<(T, C)>,
}

// The crate hands out `&mut self` although calls run side by side: no field may ever change after creation.
impl<T: Tensor, C: Container> Kernel for AttentionKernel<T, C> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.node.guard(|| compute::<T, C>(&self.settings, self.path, context))
    }
}

fn compute<T: Tensor, C: Container>(
    settings: &AttentionSettings,
    path: InstructionSet,
    context: &ComputeContext,
) -> Result<(), Failure> {
    let inputs = Inputs::new(context, Input::ALL.len())?;
    let common = inputs.common(&settings.common, size_of::<C>())?;
    let Common { geometry, lengths, scale, .. } = &common;
    let bias = inputs.array4::<T>(Input::AttentionBias)?;
    if let Some(bias) = &bias {
        check_bias_columns(lengths, bias.dim().3)?;
    }
    let recent = inputs.array4::<T>(Input::PastKeyRecent)?;
    if let Some(recent) = &recent {
        lengths.check_recent(settings.common.recent_window, recent.dim().2)?;
    }
    let (key_bytes, value_bytes) = (geometry.key.row_bytes(), geometry.value.row_bytes());
    // SAFETY: of the cache, only rows of new tokens are written while a model runs, by SparkPrune in a shared buffer.
    let (past_key, past_value) = unsafe {
        (
            inputs.past_rows(Input::PastKey, geometry, lengths, key_bytes),
            inputs.past_rows(Input::PastValue, geometry, lengths, value_bytes),
        )
    };
    let tail_window = if recent.is_some() { 0 } else { settings.common.tail_window };
    // SAFETY: SparkPrune, which writes these rows in a shared buffer, waits for the output of this operator where it
    // has a tail to write.
    let free = (tail_window > 0).then(|| unsafe {
        (
            inputs.free_rows(Input::PastKey, geometry, lengths, key_bytes),
            inputs.free_rows(Input::PastValue, geometry, lengths, value_bytes),
        )
    });
    let layout = TailLayout::new(&geometry.key, &geometry.value, tail_window, geometry.past);
    let tail = free.as_ref().map(|(key, value)| TailRows { layout: &layout, key, value });
    let call = Attention {
        geometry,
        lengths,
        settings,
        tokens: inputs.tokens::<T>(&settings.common, &common)?,
        past_key: &past_key,
        past_value: &past_value,
        recent,
        tail,
        scale,
        bias,
    };
    let mut output = attention_output(context, &inputs, geometry)?;
    attention(&OrtPool::new(context), path, &call, output.heads(geometry)?);
    Ok(())
}
