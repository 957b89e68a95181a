//! Some keys and values in float32.

use std::ops::Range;

use crate::cpu::isa::rows::keys::{KeyReader, Sink};
use crate::cpu::isa::rows::{decoded_planes, values};
use crate::cpu::isa::traits::{Isa, Work};
use crate::cpu::isa::vector::{LANES, Vector};
use crate::cpu::kv_source::{KvSource, Place};
use crate::cpu::query_block::QueryBlock;
use crate::element::Element;

/// Keys and values as they are read, `[keys, D]` each.
#[derive(Default)]
pub(super) struct Tile {
    key: Vec<[f32; LANES]>,
    value: Vec<[f32; LANES]>,
}

impl Tile {
    /// Takes keys and values at `positions`, which lie in one `place`, as the queries of `block` see them, with room
    /// for `more` behind them.
    pub(super) fn read<T: Element, I: Isa>(
        &mut self,
        isa: I,
        source: &KvSource<'_, '_, T>,
        block: &QueryBlock,
        (place, positions): (Place, Range<usize>),
        more: usize,
    ) {
        let blocks = source.call.geometry.head_dim() / LANES;
        for part in [&mut self.key, &mut self.value] {
            part.resize((positions.len() + more) * blocks, [0.0; LANES]);
        }
        let all = positions.len() * blocks;
        let (key, value) = (&mut self.key[..all], &mut self.value[..all]);
        isa.run(Read { key, value, source, block, place, positions });
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
struct Read<'s, 'a, 'c, T> {
    key: &'s mut [[f32; LANES]],
    value: &'s mut [[f32; LANES]],
    source: &'s KvSource<'a, 'c, T>,
    block: &'s QueryBlock,
    place: Place,
    positions: Range<usize>,
}

impl<T: Element> Work for Read<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with<I: Isa>(self, isa: I) {
        let v = isa.vector();
        let Self { key, value, source, block, place, positions } = self;
        let past = source.call.lengths.past[block.sequence];
        match place {
            Place::Rows => {
                decode_keys(v, source, block, positions.clone(), key);
                decode_values(v, source, block, positions, value);
            }
            Place::OneByOne => {
                source.one_by_one(v, block, positions.clone(), key.as_flattened_mut());
                decode_values(v, source, block, positions, value);
            }
            Place::New => {
                let tokens = positions.start - past..positions.end - past;
                source.new.read(block.head, tokens, key.as_flattened_mut(), value.as_flattened_mut());
            }
        }
    }
}

/// A key, as it is read, in a tile.
struct DecodedKey<'a> {
    key: &'a mut [[f32; LANES]],
    scale: &'a [[f32; LANES]],
    in_units: bool,
}

impl<V: Vector> Sink<V> for DecodedKey<'_> {
    /// # Safety
    /// The head has a block `n`.
    #[inline(always)]
    unsafe fn take(&mut self, v: V, n: usize, x: V::Lanes) {
        v.store(if self.in_units { v.mul(x, v.load(&self.scale[n])) } else { x }, &mut self.key[n])
    }
}

/// Decodes the key rows at `positions`.
#[inline(always)]
fn decode_keys<T: Element, V: Vector>(
    v: V,
    source: &KvSource<'_, '_, T>,
    block: &QueryBlock,
    positions: Range<usize>,
    keys: &mut [[f32; LANES]],
) {
    let layout = &source.call.geometry.key;
    let rows = source.call.past_key[block.head];
    if let Some(planes) = layout.planes() {
        let keys = keys.as_flattened_mut().chunks_exact_mut(layout.head_dim());
        for (position, key) in positions.zip(keys) {
            decoded_planes::decode(v, planes, &rows[position * layout.row_bytes()..], key);
        }
        return;
    }
    let reader = KeyReader::new(source.key_rows());
    let scale = source.call.scale[block.scale.clone()].as_chunks::<LANES>().0;
    for (position, key) in positions.zip(keys.chunks_exact_mut(layout.head_dim() / LANES)) {
        let mut sink = DecodedKey { key, scale, in_units: source.key_rows().in_units() };
        reader.read::<V, true>(v, &rows[position * layout.row_bytes()..], scale, &mut sink);
    }
}

/// Decodes the value rows at `positions`.
#[inline(always)]
fn decode_values<T: Element, V: Vector>(
    v: V,
    source: &KvSource<'_, '_, T>,
    block: &QueryBlock,
    positions: Range<usize>,
    values: &mut [[f32; LANES]],
) {
    let layout = &source.call.geometry.value;
    let rows = source.call.past_value[block.head];
    for (position, value) in positions.zip(values.chunks_exact_mut(layout.head_dim() / LANES)) {
        values::decode(v, layout, &rows[position * layout.row_bytes()..], value);
    }
}
