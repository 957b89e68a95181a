//! `SparkPrune` on the CPU.

use ndarray::Dim;
use ort::operator::{ComputeContext, KernelContext};

use super::super::node::Failure;
use super::super::operation::{Operation, SparkPrune};
use super::super::operator::Computes;
use super::super::output::{Output, PruneOutputs};
use super::super::pool::OrtPool;
use super::super::tensors::{Common, Inputs};
use super::super::{Container, Tensor};
use super::Cpu;
use crate::call::{Geometry, Input, Lengths, PruneSettings};
use crate::cpu::{HeadRows, InstructionSet, Prune, covariances, grow, prune, recent_keys, write_tail};
use crate::format::TailLayout;

impl<T: Tensor, C: Container> Computes<SparkPrune, T, C> for Cpu {
    fn device(_: &KernelContext<'_>) -> Result<InstructionSet, Failure> {
        InstructionSet::chosen().map_err(Failure::Process)
    }

    fn compute(settings: &PruneSettings, path: InstructionSet, context: &ComputeContext) -> Result<(), Failure> {
        compute::<T, C>(settings, path, context)
    }
}

fn compute<T: Tensor, C: Container>(
    settings: &PruneSettings,
    path: InstructionSet,
    context: &ComputeContext,
) -> Result<(), Failure> {
    SparkPrune::check_after(&settings.common, context)?;
    let pool = OrtPool::new(context);
    let inputs = Inputs::new(context, SparkPrune::reads)?;
    let common = inputs.common(&settings.common, size_of::<C>())?;
    let Common { geometry, lengths, scale, .. } = &common;
    let call = Prune {
        geometry,
        lengths,
        settings,
        tokens: inputs.tokens::<T>(&settings.common, &common)?,
        query_saliency: inputs.slice(Input::QuerySaliency)?,
        scale,
    };
    let &Geometry { batch, kv_heads, .. } = geometry;
    let d = geometry.head_dim();
    let recent_rows = lengths.total.min(settings.common.recent_window);
    let PruneOutputs { mut key, mut value, mut recent, mut observed, mut covariance } =
        PruneOutputs::new(context, &inputs, (geometry, lengths), settings, size_of::<C>())?;
    let past_recent = inputs.array4::<T>(Input::PastKeyRecent)?;
    let present = Present { inputs: &inputs, geometry, lengths, pool: &pool };

    if let Some(recent) = &mut recent {
        recent_keys(&pool, &call, past_recent, recent.array(Dim([batch, kv_heads, recent_rows, d]))?);
    }
    if let Some(covariance) = &mut covariance {
        let sums = covariance.array(Dim([batch * kv_heads * 2 * d * d]))?;
        covariances(&pool, &call, sums.into_slice().expect("contiguous"));
    }
    let observed = observed.as_mut().map(|o| o.array(Dim([batch, kv_heads, d]))).transpose()?;
    // A tail lies in both buffers.
    let both_shared = present.shares(Input::PastKey, &key) && present.shares(Input::PastValue, &value);
    let with_tail = settings.common.tail_window > 0 && both_shared;
    let key = present.new_rows(Input::PastKey, &mut key, geometry.key.row_bytes(), with_tail);
    let value = present.new_rows(Input::PastValue, &mut value, geometry.value.row_bytes(), with_tail);
    let rows = key.new.into_iter().zip(value.new).map(|(key, value)| HeadRows { key, value }).collect();
    prune(&pool, path, &call, rows, observed);
    if with_tail {
        let layout = TailLayout::new(&geometry.key, &geometry.value, settings.common.tail_window, geometry.past);
        let free = key.free.into_iter().zip(value.free).enumerate();
        let slots = free.map(|(head, (key, value))| {
            let (past, new) = (lengths.past[head / kv_heads], lengths.new[head / kv_heads]);
            layout.write(past + new, new, key, value)
        });
        write_tail(&pool, &call, slots.collect());
    }
    Ok(())
}

/// The present cache of a call, grown or shared.
struct Present<'c> {
    inputs: &'c Inputs<'c>,
    geometry: &'c Geometry,
    lengths: &'c Lengths,
    pool: &'c OrtPool<'c>,
}

/// What a call may write of a present cache, for each (sequence, KV head), the head varying fastest.
struct Writable<'o> {
    /// Rows of the new tokens.
    new: Vec<&'o mut [u8]>,
    /// In a shared buffer that is to have a tail, the rows behind them to its end; elsewhere none.
    free: Vec<&'o mut [u8]>,
}

impl Present<'_> {
    /// Whether past and present are the same memory.
    fn shares(&self, past: Input, present: &Output<'_>) -> bool {
        self.inputs.memory(past).overlaps(present.memory())
    }

    /// Where the rows of the new tokens go, with the past rows in place before them, and a tail behind them if wanted.
    fn new_rows<'o>(
        &self,
        past: Input,
        present: &'o mut Output<'_>,
        row_bytes: usize,
        with_tail: bool,
    ) -> Writable<'o> {
        let Geometry { batch, kv_heads, .. } = *self.geometry;
        let heads = batch * kv_heads;
        let rows = self.lengths.present(self.geometry);
        let shared = self.shares(past, present);
        let first = present.address();
        if shared {
            let new_and_free = |head: usize| {
                let (past, new) = (self.lengths.past[head / kv_heads], self.lengths.new[head / kv_heads]);
                let writable = if with_tail { rows - past } else { new };
                let bytes = match writable * row_bytes {
                    0 => &mut [][..],
                    // SAFETY: the output is [B, Hk, S, row_bytes / size of C], `head` is below B * Hk, and past and new
                    // tokens together are at most S. The slices of different heads are disjoint, and no other reference
                    // covers these rows: reads of the past, here and in SparkAttention, stop at the first new row, but
                    // for the tail, and with one SparkAttention is done before this operator begins:
                    // `SparkPrune::check_after`.
                    bytes => unsafe {
                        let row = head * rows + past;
                        std::slice::from_raw_parts_mut(first.add(row * row_bytes), bytes)
                    },
                };
                bytes.split_at_mut(new * row_bytes)
            };
            let (new, free) = (0..heads).map(new_and_free).unzip();
            return Writable { new, free };
        }
        // SAFETY: past and present do not overlap, and nothing else writes a node's inputs while it runs.
        let past = unsafe { self.inputs.past_rows(past, self.geometry, self.lengths, row_bytes) };
        let present = match heads * rows * row_bytes {
            0 => &mut [][..],
            // SAFETY: the output has this many bytes, by its shape, and is this call's alone.
            bytes => unsafe { std::slice::from_raw_parts_mut(first, bytes) },
        };
        let new = grow(self.pool, self.geometry, self.lengths, row_bytes, &past, present);
        let free = (0..heads).map(|_| &mut [][..]).collect();
        Writable { new, free }
    }
}
