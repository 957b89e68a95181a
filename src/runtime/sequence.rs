//! The cache of one sequence of tokens.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use ort::memory::MemoryInfo;
use ort::session::{IoBinding, SessionOutputs};
use ort::value::{DynValue, PrimitiveTensorElementType, ValueType};

use super::error::Error;
use super::feeds::zeros;
use super::interface::{CachePair, Element, Interface};

/// The cache of one sequence, made by [`super::Model::start`] and extended by that model's calls. A call that fails or
/// is cancelled leaves it unchanged.
pub struct Sequence {
    /// Shared with the model that made it.
    interface: Arc<Interface>,
    slots: Vec<Slot>,
    length: usize,
    /// Number of tokens with rows in the buffers, if past and present share them.
    capacity: Option<usize>,
}

/// One tensor of the cache.
struct Slot {
    pair: CachePair,
    kv_heads: usize,
    value: DynValue,
    /// Past and present are this one tensor; otherwise present becomes the next call's past.
    shared: bool,
    /// Has one row per token, not only the last ones.
    holds_all: bool,
}

impl Sequence {
    pub(super) fn new(interface: &Arc<Interface>, capacity: Option<usize>) -> ort::Result<Self> {
        let capacity = capacity.filter(|_| interface.shares_buffer);
        let mut slots = Vec::new();
        for layer in &interface.layers {
            let recent = layer.key_recent.as_ref().map(|pair| (pair, false));
            for (pair, holds_all) in [(&layer.key, true), (&layer.value, true)].into_iter().chain(recent) {
                let rows = capacity.filter(|_| holds_all).map(|tokens| tokens + layer.tail_rows());
                let value = zeros(layer.kv_heads, rows.unwrap_or(0), pair)?;
                let (pair, kv_heads) = (pair.clone(), layer.kv_heads);
                slots.push(Slot { pair, kv_heads, value, shared: rows.is_some(), holds_all });
            }
        }
        Ok(Self { interface: Arc::clone(interface), slots, length: 0, capacity })
    }

    /// Number of tokens held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no tokens are held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Number of tokens that fit in the buffers; None if they grow.
    pub fn capacity(&self) -> Option<usize> {
        self.capacity
    }

    /// Bytes of the tokens held: their rows of all layers, and the recent keys.
    pub fn cache_bytes(&self) -> usize {
        let bytes = |slot: &Slot| {
            let rows = if slot.holds_all { self.length } else { shape(&slot.value)[2] as usize };
            rows * slot.kv_heads * slot.pair.row_bytes()
        };
        self.slots.iter().map(bytes).sum()
    }

    /// Bytes of the tensors that hold them, including unused rows.
    pub fn allocated_bytes(&self) -> usize {
        let bytes = |slot: &Slot| shape(&slot.value).iter().product::<i64>() as usize * slot.pair.element.size();
        self.slots.iter().map(bytes).sum()
    }

    /// Another sequence of the same model and kind, with `length` tokens whose rows are all zero, for use with
    /// [`Self::write_rows`].
    ///
    /// # Errors
    /// The buffers are too small, or there is not enough memory.
    pub fn blank(&self, length: usize) -> Result<Self, Error> {
        let mut other = Self::new(&self.interface, self.capacity)?;
        if let Some(capacity) = other.capacity.filter(|capacity| length > *capacity) {
            return Err(Error::Full { capacity, needed: length });
        }
        for slot in other.slots.iter_mut().filter(|slot| !slot.shared && slot.holds_all) {
            slot.value = zeros(slot.kv_heads, length, &slot.pair)?;
        }
        other.length = length;
        Ok(other)
    }

    /// A copy in memory of its own.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn copy(&self) -> Result<Self, Error> {
        let slots = self.slots.iter().map(Slot::copy).collect::<ort::Result<_>>()?;
        Ok(Self { interface: Arc::clone(&self.interface), slots, length: self.length, capacity: self.capacity })
    }

    /// Rows of a cache tensor of bytes, `[rows, width]`, to be read or changed.
    ///
    /// # Errors
    /// The tensor does not hold bytes.
    ///
    /// # Panics
    /// As [`Self::read_rows`].
    pub fn row_bytes_mut(&mut self, tensor: usize, head: usize, rows: Range<usize>) -> Result<&mut [u8], Error> {
        let slot = &mut self.slots[tensor];
        let place = slot.elements(head, &rows, self.length);
        Ok(&mut slot.value.try_extract_tensor_mut::<u8>()?.1[place])
    }

    /// Rows of a cache tensor as float32, `[rows, width]`. Tensors are numbered as in [`Interface::pairs`].
    ///
    /// # Errors
    /// The tensor holds bytes.
    ///
    /// # Panics
    /// If there is no such tensor, KV head or row.
    pub fn read_rows(&self, tensor: usize, head: usize, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let slot = &self.slots[tensor];
        let place = slot.elements(head, &rows, self.length);
        Ok(match slot.pair.element {
            Element::Float16 => slot.value.try_extract_tensor::<f16>()?.1[place].iter().map(|x| x.to_f32()).collect(),
            _ => slot.value.try_extract_tensor::<f32>()?.1[place].to_vec(),
        })
    }

    /// Writes float32 rows, `[rows, width]`, to a cache tensor, from row `first` on.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    ///
    /// # Panics
    /// As [`Self::read_rows`].
    pub fn write_rows(&mut self, tensor: usize, head: usize, first: usize, values: &[f32]) -> Result<(), Error> {
        let slot = &mut self.slots[tensor];
        let place = slot.elements(head, &(first..first + values.len() / slot.pair.width), self.length);
        match slot.pair.element {
            Element::Float16 => {
                let held = &mut slot.value.try_extract_tensor_mut::<f16>()?.1[place];
                held.iter_mut().zip(values).for_each(|(held, value)| *held = f16::from_f32(*value));
            }
            _ => slot.value.try_extract_tensor_mut::<f32>()?.1[place].copy_from_slice(values),
        }
        Ok(())
    }

    /// Checks that a model with this interface may extend the sequence by `new` tokens.
    pub(super) fn check(&self, interface: &Arc<Interface>, new: usize) -> Result<(), Error> {
        if !Arc::ptr_eq(&self.interface, interface) {
            return Err(Error::OtherModel);
        }
        let needed = self.length + new;
        match self.capacity {
            Some(capacity) if needed > capacity => Err(Error::Full { capacity, needed }),
            _ => Ok(()),
        }
    }

    /// Binds past and present; a present that is not shared becomes a new tensor in `memory`.
    pub(super) fn bind(&mut self, binding: &mut IoBinding, memory: &MemoryInfo) -> ort::Result<()> {
        for slot in &mut self.slots {
            binding.bind_input(&slot.pair.past, &slot.value)?;
            match slot.shared {
                true => binding.bind_output(&slot.pair.present, &mut slot.value)?,
                false => binding.bind_output_to_device(&slot.pair.present, memory)?,
            }
        }
        Ok(())
    }

    /// Takes over the results of a call with `new` tokens.
    pub(super) fn extend(&mut self, outputs: &mut SessionOutputs, new: usize) -> Result<(), Error> {
        let length = self.length + new;
        let growing = self.slots.iter().filter(|slot| !slot.shared);
        // All are checked before any is taken, so that an error leaves the sequence unchanged.
        for Slot { pair, kv_heads, holds_all, .. } in growing {
            let found = shape(&outputs[pair.present.as_str()]);
            let rows = if *holds_all { Some(length) } else { found.get(2).map(|&rows| rows as usize) };
            let expected = rows.map(|rows| [1, *kv_heads, rows, pair.width].map(|d| d as i64));
            if expected.is_none_or(|expected| found != expected) {
                let expected = format!("[1, {kv_heads}, {length}, {}]", pair.width);
                return Err(Error::Shape { output: pair.present.clone(), shape: found.to_vec(), expected });
            }
        }
        for slot in self.slots.iter_mut().filter(|slot| !slot.shared) {
            slot.value = outputs.remove(&slot.pair.present).expect("looked at above");
        }
        self.length = length;
        Ok(())
    }
}

impl Slot {
    fn copy(&self) -> ort::Result<Self> {
        let Self { pair, kv_heads, shared, holds_all, .. } = self;
        let mut value = zeros(*kv_heads, shape(&self.value)[2] as usize, pair)?;
        match pair.element {
            Element::Float32 => copy_elements::<f32>(&self.value, &mut value)?,
            Element::Float16 => copy_elements::<f16>(&self.value, &mut value)?,
            Element::Uint8 => copy_elements::<u8>(&self.value, &mut value)?,
            Element::Int8 => copy_elements::<i8>(&self.value, &mut value)?,
        }
        Ok(Self { pair: pair.clone(), kv_heads: *kv_heads, value, shared: *shared, holds_all: *holds_all })
    }

    /// The range of the rows of a KV head in the tensor, for a sequence of `length` tokens.
    fn elements(&self, head: usize, rows: &Range<usize>, length: usize) -> Range<usize> {
        let all = shape(&self.value)[2] as usize;
        let held = if self.holds_all { length } else { all };
        assert!(head < self.kv_heads && rows.end <= held, "rows {rows:?} of head {head}, where {held} are held");
        let start = (head * all + rows.start) * self.pair.width;
        start..start + rows.len() * self.pair.width
    }
}

fn copy_elements<T: PrimitiveTensorElementType + Copy>(from: &DynValue, to: &mut DynValue) -> ort::Result<()> {
    to.try_extract_tensor_mut::<T>()?.1.copy_from_slice(from.try_extract_tensor::<T>()?.1);
    Ok(())
}

/// Dimensions of a tensor.
fn shape(value: &DynValue) -> &[i64] {
    match value.dtype() {
        ValueType::Tensor { shape, .. } => shape,
        _ => &[],
    }
}
