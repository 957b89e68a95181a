//! The outputs of a call, as ONNX Runtime gives them. They may share no memory with what a kernel still reads.

use ndarray::{ArrayViewMut, ArrayViewMut4, Dim, Dimension};
use ort::memory::MemoryInfo;
use ort::operator::ComputeContext;
use ort::value::{DynTensorValueType, PrimitiveTensorElementType, ValueRefMut};

use super::Tensor;
use super::memory::Memory;
use super::node::Failure;
use super::tensors::Inputs;
use crate::call::{CallError, Geometry, Input, Lengths, PruneSettings, QueryLayout};

/// An output of a call.
pub(super) struct Output<'c> {
    name: &'static str,
    value: ValueRefMut<'c, DynTensorValueType>,
    memory: Memory,
}

impl<'c> Output<'c> {
    /// Output `index` of `shape`, `None` if the node does not have it.
    pub(super) fn new(
        context: &'c ComputeContext,
        index: usize,
        name: &'static str,
        shape: &[usize],
    ) -> Result<Option<Self>, Failure> {
        if index >= context.num_outputs()? {
            return Ok(None);
        }
        let dims: Vec<_> = shape.iter().map(|&d| d as i64).collect();
        // A host may have bound memory of another shape, or there is no memory of this one.
        let refused = |e: ort::Error| CallError::Output { name, problem: format!("shape {shape:?} is refused: {e}") };
        let value = context.output(index, dims).map_err(refused)?;
        let value = value.map(|v| v.downcast::<DynTensorValueType>()).transpose()?;
        let Some(value) = value else { return Ok(None) };
        let memory = Memory::of(&value);
        if memory.is_missing() {
            // An allocator of a plugin that has no memory left gives none, and ONNX Runtime passes that on.
            let problem =
                format!("out of memory: ONNX Runtime gave no memory for shape {shape:?}, {} bytes", memory.bytes());
            return Err(CallError::Output { name, problem }.into());
        }
        Ok(Some(Self { name, memory, value }))
    }

    /// An output that every node has.
    pub(super) fn required(
        context: &'c ComputeContext,
        index: usize,
        name: &'static str,
        shape: &[usize],
    ) -> Result<Self, Failure> {
        let missing = || CallError::Output { name, problem: "is required".into() };
        Ok(Self::new(context, index, name, shape)?.ok_or_else(missing)?)
    }

    /// Where its bytes begin.
    pub(super) fn address(&mut self) -> *mut u8 {
        self.value.data_ptr().cast_mut().cast()
    }

    /// What kind of memory it is, and on which device.
    pub(super) fn memory_info(&self) -> &MemoryInfo<'_> {
        self.value.memory_info()
    }

    /// Its memory.
    pub(super) fn memory(&self) -> Memory {
        self.memory
    }

    /// Checks that it shares no memory with `other`.
    pub(super) fn check_apart(&self, other: &Self) -> Result<(), Failure> {
        match self.memory.overlaps(other.memory) {
            true => Err(self.error(format!("shares memory with {}; bind other memory", other.name)).into()),
            false => Ok(()),
        }
    }

    /// An error about this output.
    pub(super) fn error(&self, problem: impl Into<String>) -> CallError {
        CallError::Output { name: self.name, problem: problem.into() }
    }

    /// Its elements as an array of `shape`, which has as many.
    pub(super) fn array<E, D>(&mut self, shape: D) -> Result<ArrayViewMut<'_, E, D>, Failure>
    where
        E: PrimitiveTensorElementType,
        D: Dimension,
    {
        let name = self.name;
        let elements = self.value.try_extract_tensor_mut::<E>()?.1;
        let view = ArrayViewMut::from_shape(shape, elements);
        Ok(view.map_err(|e| CallError::Output { name, problem: e.to_string() })?)
    }

    /// Its elements as `[B, Hq, L, D]`, lying as queries do.
    pub(super) fn heads<T: Tensor>(&mut self, geometry: &Geometry) -> Result<ArrayViewMut4<'_, T>, Failure> {
        let &Geometry { batch, new, query_heads, layout, .. } = geometry;
        let d = geometry.head_dim();
        Ok(match layout {
            QueryLayout::Heads => self.array(Dim([batch, query_heads, new, d]))?,
            _ => self.array(Dim([batch, new, query_heads, d]))?.permuted_axes([0, 2, 1, 3]),
        })
    }
}

/// The outputs of `SparkPrune`, all of them checked.
pub(super) struct PruneOutputs<'c> {
    /// present_key
    pub(super) key: Output<'c>,
    /// present_value
    pub(super) value: Output<'c>,
    /// present_key_recent
    pub(super) recent: Option<Output<'c>>,
    /// observed_saliency
    pub(super) observed: Option<Output<'c>>,
    /// observed_covariance
    pub(super) covariance: Option<Output<'c>>,
}

impl<'c> PruneOutputs<'c> {
    /// Makes the outputs of a call. Everything that can be wrong is found before anything is written: the cache may be
    /// the host's only copy. `container` is the size in bytes of an element of C.
    pub(super) fn new(
        context: &'c ComputeContext,
        inputs: &Inputs<'_>,
        (geometry, lengths): (&Geometry, &Lengths),
        settings: &PruneSettings,
        container: usize,
    ) -> Result<Self, Failure> {
        let &Geometry { batch, kv_heads, .. } = geometry;
        let (d, window) = (geometry.head_dim(), settings.common.recent_window);
        let present = |index, name, row_bytes| {
            let shape = [batch, kv_heads, lengths.present(geometry), row_bytes / container];
            Output::required(context, index, name, &shape).map_err(|e| explain_rows(e, geometry, lengths))
        };
        let outputs = Self {
            key: present(0, "present_key", geometry.key.row_bytes())?,
            value: present(1, "present_value", geometry.value.row_bytes())?,
            recent: Output::new(context, 2, "present_key_recent", &[batch, kv_heads, lengths.total.min(window), d])?,
            observed: Output::new(context, 3, "observed_saliency", &[batch, kv_heads, d])?,
            covariance: Output::new(context, 4, "observed_covariance", &[batch, kv_heads, 2, d, d])?,
        };
        let past_recent = inputs.shape(Input::PastKeyRecent);
        if past_recent.is_some() || outputs.recent.is_some() {
            lengths.check_recent(window, past_recent.map_or(0, |shape| shape[2]))?;
        }
        outputs.check_apart(inputs, geometry, lengths)?;
        Ok(outputs)
    }

    fn check_apart(&self, inputs: &Inputs<'_>, geometry: &Geometry, lengths: &Lengths) -> Result<(), Failure> {
        let mut before: Vec<&Output<'_>> = Vec::new();
        for (output, shared) in [
            (Some(&self.key), Some(Input::PastKey)),
            (Some(&self.value), Some(Input::PastValue)),
            (self.recent.as_ref(), None),
            (self.observed.as_ref(), None),
            (self.covariance.as_ref(), None),
        ] {
            let Some(output) = output else { continue };
            if let Some(past) = shared {
                check_shared(inputs.memory(past), past, output, geometry, lengths)?;
            }
            check_apart(inputs, output, shared)?;
            before.iter().try_for_each(|o| output.check_apart(o))?;
            before.push(output);
        }
        Ok(())
    }
}

/// Checks that `output` shares no memory with an input, except `shared`: a kernel would write what it still reads.
fn check_apart(inputs: &Inputs<'_>, output: &Output<'_>, shared: Option<Input>) -> Result<(), Failure> {
    let memory = output.memory();
    let mut others = Input::ALL.into_iter().filter(|&input| Some(input) != shared);
    match others.find(|&input| inputs.memory(input).overlaps(memory)) {
        Some(input) => Err(output.error(format!("shares memory with {}; bind other memory", input.name())).into()),
        None => Ok(()),
    }
}

/// Checks that `output` is either other memory than `past`, or the same of the same shape: a shared buffer.
fn check_shared(
    memory: Memory,
    past: Input,
    output: &Output<'_>,
    geometry: &Geometry,
    lengths: &Lengths,
) -> Result<(), Failure> {
    let (rows, past_rows) = (lengths.present(geometry), geometry.past);
    if memory.overlaps(output.memory()) && memory != output.memory() {
        let problem = format!(
            "shares part of the memory of {}, {past_rows} rows, itself {rows}; \
             a shared buffer is the same memory of the same shape",
            past.name()
        );
        return Err(output.error(problem).into());
    }
    Ok(())
}

/// An error about an output of rows, with where their number comes from.
fn explain_rows(error: Failure, geometry: &Geometry, lengths: &Lengths) -> Failure {
    match error {
        Failure::Call(CallError::Output { name, problem }) => {
            let (past, total) = (geometry.past, lengths.total);
            let rows = format!("rows are the larger of {past} of past_key and total_sequence_length {total}");
            CallError::Output { name, problem: format!("{rows}: {problem}") }.into()
        }
        other => other,
    }
}

/// The output of `SparkAttention`, checked.
pub(super) fn attention_output<'c>(
    context: &'c ComputeContext,
    inputs: &Inputs<'_>,
    geometry: &Geometry,
) -> Result<Output<'c>, Failure> {
    let &Geometry { batch, new, query_heads, layout, .. } = geometry;
    let d = geometry.head_dim();
    let shape = match layout {
        QueryLayout::Heads => vec![batch, query_heads, new, d],
        _ => vec![batch, new, query_heads * d],
    };
    let output = Output::required(context, 0, "output", &shape)?;
    check_apart(inputs, &output, None)?;
    Ok(output)
}
