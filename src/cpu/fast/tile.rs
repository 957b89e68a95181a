//! Some keys and values in float32.

use std::ops::Range;

use super::keys::{KeyReader, Sink};
use super::{Block, Fast, Place, values};
use crate::cpu::vector::{LANES, Vector, Work};
use crate::element::Element;

/// Keys and values as they are read, `[keys, D]` each.
#[derive(Default)]
pub(super) struct Tile {
    key: Vec<[f32; LANES]>,
    value: Vec<[f32; LANES]>,
}

impl Tile {
    /// Takes keys and values at `positions`, which lie in one `place`, as the queries of `block` see them, with room for
    /// `more` behind them.
    pub(super) fn read<T: Element, V: Vector>(
        &mut self,
        fast: &Fast<'_, '_, T, V>,
        block: &Block,
        (place, positions): (Place, Range<usize>),
        more: usize,
    ) {
        let blocks = fast.call.geometry.head_dim() / LANES;
        for part in [&mut self.key, &mut self.value] {
            part.resize((positions.len() + more) * blocks, [0.0; LANES]);
        }
        let all = positions.len() * blocks;
        let (key, value) = (&mut self.key[..all], &mut self.value[..all]);
        // SAFETY: a path is only taken on processors that have its instructions.
        unsafe { V::run(Read { key, value, fast, block, place, positions }) };
    }

    /// `[keys, D]`
    pub(super) fn key(&self) -> &[[f32; LANES]] {
        &self.key
    }

    /// `[keys, D]`
    pub(super) fn value(&self) -> &[[f32; LANES]] {
        &self.value
    }
}

/// Keys and values to be read into a tile.
struct Read<'s, 'a, 'c, T, P> {
    key: &'s mut [[f32; LANES]],
    value: &'s mut [[f32; LANES]],
    fast: &'s Fast<'a, 'c, T, P>,
    block: &'s Block,
    place: Place,
    positions: Range<usize>,
}

impl<T: Element, P: Vector> Work for Read<'_, '_, '_, T, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn with<V: Vector>(self) {
        let Self { key, value, fast, block, place, positions } = self;
        let past = fast.call.lengths.past[block.sequence];
        // SAFETY: by the trait's contract.
        unsafe {
            match place {
                Place::Rows => {
                    decode_keys::<T, V, P>(fast, block, positions.clone(), key);
                    decode_values::<T, V, P>(fast, block, positions, value);
                }
                Place::Recent => {
                    key.as_flattened_mut().copy_from_slice(&fast.recent(block, positions.clone()));
                    decode_values::<T, V, P>(fast, block, positions, value);
                }
                Place::New => {
                    let tokens = positions.start - past..positions.end - past;
                    fast.new.read(block.head, tokens, key.as_flattened_mut(), value.as_flattened_mut());
                }
            }
        }
    }
}

/// A key, as it is read, in a tile.
struct Kept<'a> {
    key: &'a mut [[f32; LANES]],
    scale: &'a [[f32; LANES]],
    in_units: bool,
}

impl<V: Vector> Sink<V> for Kept<'_> {
    #[inline(always)]
    unsafe fn take(&mut self, n: usize, x: V::Lanes) {
        // SAFETY: by the trait's contract.
        unsafe { V::store(if self.in_units { V::mul(x, V::load(&self.scale[n])) } else { x }, &mut self.key[n]) }
    }
}

/// Decodes the key rows at `positions`.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn decode_keys<T: Element, V: Vector, P: Vector>(
    fast: &Fast<'_, '_, T, P>,
    block: &Block,
    positions: Range<usize>,
    keys: &mut [[f32; LANES]],
) {
    let layout = &fast.call.geometry.key;
    let rows = fast.call.past_key[block.head];
    let reader = KeyReader::new(layout, fast.recovers());
    let scale = fast.call.scale[block.scale.clone()].as_chunks::<LANES>().0;
    for (position, key) in positions.zip(keys.chunks_exact_mut(layout.head_dim() / LANES)) {
        let mut sink = Kept { key, scale, in_units: reader.in_units() };
        // SAFETY: as this function.
        unsafe { reader.read::<V, true>(&rows[position * layout.row_bytes()..], scale, &mut sink) };
    }
}

/// Decodes the value rows at `positions`.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn decode_values<T: Element, V: Vector, P: Vector>(
    fast: &Fast<'_, '_, T, P>,
    block: &Block,
    positions: Range<usize>,
    values: &mut [[f32; LANES]],
) {
    let layout = &fast.call.geometry.value;
    let rows = fast.call.past_value[block.head];
    for (position, value) in positions.zip(values.chunks_exact_mut(layout.head_dim() / LANES)) {
        // SAFETY: as this function.
        unsafe { values::decode::<V>(layout, &rows[position * layout.row_bytes()..], value) };
    }
}
