//! `SparkAttention` on the CPU.

use ort::operator::{ComputeContext, KernelContext};

use super::super::node::Failure;
use super::super::operation::{Operation, SparkAttention};
use super::super::operator::Computes;
use super::super::output::attention_output;
use super::super::pool::OrtPool;
use super::super::tensors::{Common, Inputs};
use super::super::{Container, Tensor};
use super::Cpu;
use crate::call::{AttentionSettings, Input, check_bias_columns};
use crate::cpu::{Attention, InstructionSet, TailRows, attention};
use crate::format::TailLayout;

impl<T: Tensor, C: Container> Computes<SparkAttention, T, C> for Cpu {
    fn device(_: &KernelContext<'_>) -> Result<InstructionSet, Failure> {
        InstructionSet::chosen().map_err(Failure::Process)
    }

    fn compute(settings: &AttentionSettings, path: InstructionSet, context: &ComputeContext) -> Result<(), Failure> {
        compute::<T, C>(settings, path, context)
    }
}

fn compute<T: Tensor, C: Container>(
    settings: &AttentionSettings,
    path: InstructionSet,
    context: &ComputeContext,
) -> Result<(), Failure> {
    let inputs = Inputs::new(context, SparkAttention::reads)?;
    let common = inputs.common(&settings.common, size_of::<C>())?;
    SparkAttention::check_basis(&settings.common, &inputs)?;
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
