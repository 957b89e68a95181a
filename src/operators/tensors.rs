//! The inputs of a call, taken from ONNX Runtime and seen as the kernels want them.

use ndarray::{ArrayView, ArrayView2, ArrayView4, Dim, Dimension, s};
use ort::operator::ComputeContext;
use ort::value::{DynTensorValueType, PrimitiveTensorElementType, ValueRef};

use super::Tensor;
use super::memory::Memory;
use super::node::Failure;
use crate::call::{Geometry, Input, Lengths, QueryLayout, Settings, Shapes, channel_scales, positions};
use crate::cpu::{Basis, Rotation, Tokens};

/// The inputs of a node, their shapes, and their memory (empty where an input is not used).
pub(super) struct Inputs<'c> {
    values: Vec<Option<ValueRef<'c, DynTensorValueType>>>,
    shapes: Shapes,
    memory: [Memory; Input::ALL.len()],
}

/// What both operators read alike, all of it checked.
pub(super) struct Common {
    /// Sizes.
    pub(super) geometry: Geometry,
    /// Lengths of the sequences.
    pub(super) lengths: Lengths,
    /// Row of cos_cache for every new token; empty without rotation.
    pub(super) positions: Vec<usize>,
    /// Channel scale c, `[Hk * D]`.
    pub(super) scale: Vec<f32>,
}

impl<'c> Inputs<'c> {
    /// Takes the inputs of a call that `reads` is true of.
    pub(super) fn new(context: &'c ComputeContext, reads: fn(Input) -> bool) -> Result<Self, Failure> {
        let mut values = Vec::with_capacity(Input::ALL.len());
        for input in Input::ALL.into_iter().take(context.num_inputs()?) {
            let value = if reads(input) { context.input(input.index())? } else { None };
            values.push(value.map(|v| v.downcast::<DynTensorValueType>()).transpose()?);
        }
        let shape = |input: Input| values.get(input.index())?.as_ref().map(|v| v.shape().to_vec());
        let shapes = Shapes::new(shape)?;
        let memory = Input::ALL.map(|input| match (shapes.get(input), values.get(input.index())) {
            (Some(_), Some(Some(value))) => Memory::of(value),
            _ => Memory::default(),
        });
        Ok(Self { values, shapes, memory })
    }

    /// Sizes and lengths of the call. `container` is the size in bytes of an element of C.
    pub(super) fn sizes(&self, settings: &Settings, container: usize) -> Result<(Geometry, Lengths), Failure> {
        let geometry = Geometry::new(settings, &self.shapes, container)?;
        let total = self.slice(Input::TotalSequenceLength)?.map(|t| t[0]);
        let lengths = Lengths::new(&geometry, self.slice(Input::SeqlensK)?, total)?;
        Ok((geometry, lengths))
    }

    /// Sizes, lengths, positions and channel scale of the call, whose inputs are all on the CPU.
    pub(super) fn common(&self, settings: &Settings, container: usize) -> Result<Common, Failure> {
        let (geometry, lengths) = self.sizes(settings, container)?;
        let positions = match (settings.rotary, self.shapes.get(Input::CosCache)) {
            (Some(_), Some(&[rows, _])) => positions(&geometry, &lengths, self.slice(Input::PositionIds)?, rows)?,
            _ => Vec::new(),
        };
        let scale = channel_scales(&geometry, self.slice(Input::QuerySaliency)?)?;
        Ok(Common { geometry, lengths, positions, scale })
    }

    /// The shape of `input`, `None` if it is not used.
    pub(super) fn shape(&self, input: Input) -> Option<&[usize]> {
        self.shapes.get(input)
    }

    /// The elements of `input`, which is on the CPU; `None` if it is not used.
    pub(super) fn slice<E: PrimitiveTensorElementType>(&self, input: Input) -> Result<Option<&[E]>, Failure> {
        match (self.shapes.get(input), self.values.get(input.index())) {
            (Some(_), Some(Some(value))) => Ok(Some(value.try_extract_tensor::<E>()?.1)),
            _ => Ok(None),
        }
    }

    /// `input` as an array of `shape`, which its own shape agrees with.
    fn array<E, D>(&self, input: Input, shape: D) -> Result<Option<ArrayView<'_, E, D>>, Failure>
    where
        E: PrimitiveTensorElementType,
        D: Dimension,
    {
        let view = |elements| ArrayView::from_shape(shape, elements).map_err(|e| input.error(e.to_string()));
        Ok(self.slice(input)?.map(view).transpose()?)
    }

    /// `input` as an array of its own four dimensions.
    pub(super) fn array4<E: PrimitiveTensorElementType>(
        &self,
        input: Input,
    ) -> Result<Option<ArrayView4<'_, E>>, Failure> {
        match self.shapes.get(input) {
            Some(&[a, b, c, d]) => self.array(input, Dim([a, b, c, d])),
            _ => Ok(None),
        }
    }

    /// Queries, keys and values of the new tokens.
    pub(super) fn tokens<'a, T: Tensor>(
        &'a self,
        settings: &Settings,
        common: &'a Common,
    ) -> Result<Tokens<'a, T>, Failure> {
        let Geometry { batch, new, query_heads, kv_heads, layout, .. } = common.geometry;
        let d = common.geometry.head_dim();
        let heads_of = |input, heads| -> Result<ArrayView4<'a, T>, Failure> {
            let by_heads = self.shapes.get(input).is_some_and(|s| s.len() == 4);
            let shape = if by_heads { [batch, heads, new, d] } else { [batch, new, heads, d] };
            let view = self.array(input, Dim(shape))?.ok_or_else(|| input.error("is required"))?;
            Ok(if by_heads { view } else { view.permuted_axes([0, 2, 1, 3]) })
        };
        let (query, key, value) = if layout == QueryLayout::Packed {
            let packed = heads_of(Input::Query, query_heads + 2 * kv_heads)?;
            let heads = |first: usize, n: usize| packed.slice_move(s![.., first..first + n, .., ..]);
            (heads(0, query_heads), heads(query_heads, kv_heads), heads(query_heads + kv_heads, kv_heads))
        } else {
            (heads_of(Input::Query, query_heads)?, heads_of(Input::Key, kv_heads)?, heads_of(Input::Value, kv_heads)?)
        };
        let cache = |input: Input| -> Result<ArrayView2<'a, T>, Failure> {
            let rows = self.shapes.get(input).map_or(0, |s| s[0]);
            Ok(self.array(input, Dim([rows, d / 2]))?.ok_or_else(|| input.error("is required"))?)
        };
        let rotation = match settings.rotary {
            Some(style) => {
                let (cos, sin) = (cache(Input::CosCache)?, cache(Input::SinCache)?);
                Some(Rotation { style, cos, sin, positions: &common.positions })
            }
            None => None,
        };
        let basis = match (settings.planes, self.slice(Input::KeyBasis)?) {
            (Some(_), Some(key)) => Some(Basis { key, query: self.slice(Input::QueryBasis)? }),
            _ => None,
        };
        Ok(Tokens { query, key, value, rotation, basis })
    }

    /// The memory of `input`.
    pub(super) fn memory(&self, input: Input) -> Memory {
        self.memory[input.index()]
    }

    /// The rows of `row_bytes` bytes of the past tokens of each (sequence, KV head), the head varying fastest.
    ///
    /// # Safety
    /// While the slices live, nobody may write these rows. (Others may be written: in a shared buffer `SparkPrune`
    /// writes new rows while `SparkAttention` reads past ones.)
    pub(super) unsafe fn past_rows<'a>(
        &'a self,
        input: Input,
        geometry: &Geometry,
        lengths: &Lengths,
        row_bytes: usize,
    ) -> Vec<&'a [u8]> {
        // SAFETY: by this function's contract.
        unsafe { self.rows(input, geometry, row_bytes, |b| 0..lengths.past[b]) }
    }

    /// The rows behind the past tokens of each (sequence, KV head), to the end of the buffer, the head varying fastest.
    ///
    /// # Safety
    /// While the slices live, nobody may write these rows.
    pub(super) unsafe fn free_rows<'a>(
        &'a self,
        input: Input,
        geometry: &Geometry,
        lengths: &Lengths,
        row_bytes: usize,
    ) -> Vec<&'a [u8]> {
        // SAFETY: by this function's contract.
        unsafe { self.rows(input, geometry, row_bytes, |b| lengths.past[b]..geometry.past) }
    }

    /// Some rows of each (sequence, KV head), numbered by `of` the sequence.
    ///
    /// # Safety
    /// The rows are at most P, and nobody writes them while the slices live.
    unsafe fn rows<'a>(
        &'a self,
        input: Input,
        geometry: &Geometry,
        row_bytes: usize,
        of: impl Fn(usize) -> std::ops::Range<usize>,
    ) -> Vec<&'a [u8]> {
        let first: *const u8 = match self.values.get(input.index()) {
            Some(Some(value)) => value.data_ptr().cast(),
            _ => std::ptr::null(),
        };
        let rows = |head: usize| {
            let rows = of(head / geometry.kv_heads);
            match rows.len() * row_bytes {
                0 => &[][..],
                // SAFETY: `Geometry` checked the tensor's shape to be [B, Hk, P, row_bytes / size of C] as past rows
                // exist, `head` is below B * Hk, and the rows are at most P. Any byte is a valid u8.
                bytes => unsafe {
                    let first = first.add((head * geometry.past + rows.start) * row_bytes);
                    std::slice::from_raw_parts(first, bytes)
                },
            }
        };
        (0..geometry.batch * geometry.kv_heads).map(rows).collect()
    }
}
