//! What the kernels of the processor take for a row, without ONNX Runtime: `cargo bench --bench kernels`.
//!
//! One token is decoded by 32 query heads over 8 KV heads of 65,536 cached keys, D = 128, or by the heads of a smaller
//! model where a setting says so, float32, by one thread. An item is a row: a key and its value. Cycles of a row are
//! the clock over the items a second (docs/performance.md); where a row's time goes shows `perf record -e cpu-clock` of
//! this program.

use std::fmt;
use std::sync::OnceLock;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use ndarray::{Array4, s};
use spark_ort::call::{AttentionSettings, Geometry, Lengths, PruneSettings, QueryLayout, Settings};
use spark_ort::cpu::{Attention, Basis, HeadRows, InstructionSet, Prune, Serial, TailRows, Tokens, attention, prune};
use spark_ort::format::{self, Bits, KeyLayout, RowFormat, TailLayout, ValueLayout, write_dense_key};
use spark_ort::method::{Recovery, channel_scale};

/// So many that no cache holds the rows of eight heads.
const KEYS: usize = 65_536;

/// Free rows of a head's buffers.
const FREE: usize = 512;
/// Every so many rows are made; the others repeat them.
const MADE: usize = KEYS / 64;

/// Heads of a model's layer.
#[derive(Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
}

/// As in Llama 3 8B.
const LARGE: Heads = Heads { query: 32, kv: 8, dim: 128 };
/// As in Llama 3.2 1B.
const SMALL: Heads = Heads { query: 32, kv: 8, dim: 64 };
/// A query head for each KV head.
const SINGLE: Heads = Heads { query: 8, kv: 8, dim: 64 };
/// As in SmolLM2 135M.
const THREE: Heads = Heads { query: 9, kv: 3, dim: 64 };

/// Heads, row format, keys, value bits, and keys that are dense in free rows.
#[derive(Clone, Copy)]
struct Setting(Heads, RowFormat, Keys, i64, usize);

/// What keys keep.
#[derive(Clone, Copy)]
enum Keys {
    /// So many channels, with so many bits.
    Channels(usize, i64),
    /// So many directions with 8, 4 and 2 bits.
    Planes(usize, usize, usize),
}

use Keys::{Channels, Planes};

const SETTINGS: [Setting; 18] = [
    Setting(LARGE, RowFormat::V1, Channels(64, 16), 16, 0),
    Setting(LARGE, RowFormat::V1, Channels(64, 8), 8, 0),
    Setting(LARGE, RowFormat::V1, Channels(64, 8), 8, 64),
    Setting(LARGE, RowFormat::V1, Channels(38, 4), 4, 0),
    Setting(LARGE, RowFormat::V1, Channels(38, 4), 4, 64),
    Setting(LARGE, RowFormat::V2, Channels(38, 4), 4, 0),
    // 64 and 48 bytes a key.
    Setting(LARGE, RowFormat::V3, Planes(23, 48, 57), 8, 0),
    Setting(LARGE, RowFormat::V3, Planes(10, 40, 64), 4, 0),
    Setting(SMALL, RowFormat::V1, Channels(32, 8), 8, 0),
    Setting(SMALL, RowFormat::V1, Channels(20, 4), 4, 0),
    // 32 bytes a key.
    Setting(SMALL, RowFormat::V3, Planes(11, 20, 33), 8, 0),
    Setting(SMALL, RowFormat::V3, Planes(11, 20, 33), 4, 0),
    Setting(SINGLE, RowFormat::V1, Channels(32, 8), 8, 0),
    Setting(SINGLE, RowFormat::V1, Channels(20, 4), 4, 0),
    Setting(THREE, RowFormat::V1, Channels(32, 8), 8, 0),
    Setting(THREE, RowFormat::V1, Channels(20, 4), 4, 0),
    // 36 bytes a key.
    Setting(THREE, RowFormat::V3, Planes(8, 48, 8), 4, 0),
    Setting(THREE, RowFormat::V3, Planes(8, 48, 8), 4, 64),
];

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self(heads, format, keys, value, recent) = self;
        write!(f, "{}/{} heads, ", heads.query, heads.kv)?;
        let dim = heads.dim;
        match keys {
            Channels(kept, bits) => write!(f, "{format:?}, {kept} of {dim} channels, {bits}/{value} bits")?,
            Planes(eight, four, two) => {
                write!(f, "{format:?}, {eight}, {four} and {two} of {dim} directions, 8, 4, 2/{value} bits")?;
            }
        }
        write!(f, ", {recent} recent")
    }
}

/// A cache full of ordinary numbers, and a token that reads it.
struct Lab {
    shape: Heads,
    geometry: Geometry,
    lengths: Lengths,
    attention: AttentionSettings,
    prune: PruneSettings,
    token: [Array4<f32>; 3],
    scale: Vec<f32>,
    saliency: Vec<f32>,
    /// Reflections, which are their own inverse, of keys in planes.
    basis: Option<Vec<f32>>,
    /// Key and value rows, then the free ones, head by head.
    past: [Vec<u8>; 2],
    tail: TailLayout,
}

impl Lab {
    fn new(Setting(shape, format, keys, value_bits, recent): Setting) -> Self {
        let bits = |bits| Bits::new(bits).expect("16, 8 or 4");
        let (kept_channels, key_bits, planes) = match keys {
            Channels(kept, key_bits) => (kept, bits(key_bits), None),
            Planes(eight, four, two) => (eight + four + two, Bits::B8, Some(format::Planes { eight, four, two })),
        };
        let value_bits = bits(value_bits);
        let key = match planes {
            Some(planes) => KeyLayout::of_planes(shape.dim, planes, 0),
            None => KeyLayout::of(format, shape.dim, kept_channels, key_bits, 0),
        };
        let key = key.expect("a layout");
        let value = ValueLayout::of(format, shape.dim, value_bits, 0).expect("a layout");
        let common = Settings {
            query_heads: shape.query,
            kv_heads: shape.kv,
            kept_channels,
            row_format: format,
            key_bits,
            planes,
            value_bits,
            key_row_bytes: key.row_bytes(),
            value_row_bytes: value.row_bytes(),
            recovery: if planes.is_some() { Recovery::None } else { Recovery::Mean },
            recent_window: 0,
            tail_window: recent,
            rotary: None,
        };
        let mut at = 0_u32;
        let mut number = || {
            at += 1;
            // Without a period that rows could have in common.
            (at as f32 * 0.618_034).fract() * 4.0 - 2.0
        };
        let mut heads = |heads, tokens| Array4::from_shape_simple_fn([1, heads, tokens, shape.dim], &mut number);
        let filling = [heads(shape.query, MADE), heads(shape.kv, MADE), heads(shape.kv, MADE)];
        let token = [heads(shape.query, 1), heads(shape.kv, 1), heads(shape.kv, 1)];
        let saliency = vec![1.0; shape.kv * shape.dim];
        let mut lab = Self {
            shape,
            geometry: Geometry {
                batch: 1,
                new: MADE,
                past: 0,
                query_heads: shape.query,
                kv_heads: shape.kv,
                layout: QueryLayout::Heads,
                key,
                value,
            },
            lengths: Lengths { total: MADE, past: vec![0], new: vec![MADE] },
            attention: AttentionSettings {
                common: common.clone(),
                scale: None,
                softcap: None,
                window: None,
                causal: true,
            },
            prune: PruneSettings { common, observation_window: 32, observation_scale: None },
            scale: saliency.iter().map(|&s| channel_scale(s)).collect(),
            basis: planes.map(|_| reflections(shape)),
            token: filling,
            saliency,
            past: [Vec::new(), Vec::new()],
            tail: TailLayout::new(&key, &value, recent, KEYS + FREE),
        };
        lab.past = lab.new_rows(InstructionSet::Portable).map(|head_rows| {
            let one = head_rows.len() / shape.kv;
            let rows = head_rows.chunks_exact(one);
            rows.flat_map(|rows| [rows.repeat(KEYS / MADE), vec![0; one / MADE * FREE]].concat()).collect()
        });
        lab.write_tail(recent);
        lab.geometry.new = 1;
        lab.geometry.past = KEYS;
        lab.lengths = Lengths { total: KEYS + 1, past: vec![KEYS], new: vec![1] };
        lab.token = token;
        lab
    }

    /// Writes the last `recent` keys of those that rows were made from, dense.
    fn write_tail(&mut self, recent: usize) {
        let [key, value] = &mut self.past;
        let (key_head, value_head) = (key.len() / self.shape.kv, value.len() / self.shape.kv);
        let heads = key.chunks_exact_mut(key_head).zip(value.chunks_exact_mut(value_head));
        for (h, (key, value)) in heads.enumerate() {
            let free = |buffer: usize| buffer / (KEYS + FREE) * KEYS;
            let (key, value) = (&mut key[free(key_head)..], &mut value[free(value_head)..]);
            for (position, slot) in (KEYS - recent..).zip(self.tail.write(KEYS, recent, key, value)) {
                let mut dense = self.token[1].slice(s![0, h, position % MADE, ..]).to_vec();
                if self.basis.is_some() {
                    reflect(&mut dense);
                }
                write_dense_key(&dense, slot);
            }
        }
    }

    fn tokens(&self) -> Tokens<'_, f32> {
        let [query, key, value] = &self.token;
        let basis = self.basis.as_ref().map(|basis| Basis { key: basis, query: Some(basis) });
        Tokens { query: query.view(), key: key.view(), value: value.view(), rotation: None, basis }
    }

    /// Key and value rows of the new tokens, head by head.
    fn new_rows(&self, path: InstructionSet) -> [Vec<u8>; 2] {
        let bytes = |row_bytes| vec![0; self.shape.kv * self.geometry.new * row_bytes];
        let (key_bytes, value_bytes) = (self.geometry.key.row_bytes(), self.geometry.value.row_bytes());
        let (mut key, mut value) = (bytes(key_bytes), bytes(value_bytes));
        let call = Prune {
            geometry: &self.geometry,
            lengths: &self.lengths,
            settings: &self.prune,
            tokens: self.tokens(),
            query_saliency: Some(&self.saliency),
            scale: &self.scale,
        };
        let new = self.geometry.new;
        let rows = key.chunks_exact_mut(new * key_bytes).zip(value.chunks_exact_mut(new * value_bytes));
        let rows = rows.map(|(key, value)| HeadRows { key, value }).collect();
        prune(&Serial, path, &call, rows, None);
        [key, value]
    }
}

/// What the reflections of keys in planes make of a key.
fn reflect(key: &mut [f32]) {
    let twice_mean = 2.0 / key.len() as f32 * key.iter().sum::<f32>();
    key.iter_mut().for_each(|x| *x -= twice_mean);
}

/// A reflection for each KV head.
fn reflections(Heads { kv, dim, .. }: Heads) -> Vec<f32> {
    let entry = |n: usize| {
        let (i, j) = (n / dim % dim, n % dim);
        f32::from(u8::from(i == j)) - 2.0 / dim as f32
    };
    (0..kv * dim * dim).map(entry).collect()
}

fn lab(which: usize) -> &'static Lab {
    static LABS: [OnceLock<Lab>; SETTINGS.len()] = [const { OnceLock::new() }; SETTINGS.len()];
    LABS[which].get_or_init(|| Lab::new(SETTINGS[which]))
}

/// A setting, read or written with one instruction set.
#[derive(Clone, Copy)]
struct Measured {
    path: InstructionSet,
    setting: usize,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.path.name(), SETTINGS[self.setting])
    }
}

/// Every setting with every instruction set of this processor that is to be fast.
fn measured() -> impl Iterator<Item = Measured> {
    let fast = |&path: &InstructionSet| path != InstructionSet::Scalar && path.is_available();
    let settings = |path| (0..SETTINGS.len()).map(move |setting| Measured { path, setting });
    InstructionSet::ALL.into_iter().filter(fast).flat_map(settings)
}

/// Decoding of one token.
#[divan::bench(args = measured(), max_time = 2)]
fn attend(bencher: Bencher<'_, '_>, measured: Measured) {
    let lab = lab(measured.setting);
    let Heads { query, kv, dim } = lab.shape;
    let heads = |rows: usize| {
        let past = &lab.past[rows];
        let split = past.len() / kv / (KEYS + FREE) * KEYS;
        let (rows, free): (Vec<_>, Vec<_>) =
            past.chunks_exact(past.len() / kv).map(|head| head.split_at(split)).unzip();
        (rows, free)
    };
    let ((past_key, free_key), (past_value, free_value)) = (heads(0), heads(1));
    let call = Attention {
        geometry: &lab.geometry,
        lengths: &lab.lengths,
        settings: &lab.attention,
        tokens: lab.tokens(),
        past_key: &past_key,
        past_value: &past_value,
        recent: None,
        tail: Some(TailRows { layout: &lab.tail, key: &free_key, value: &free_value }),
        scale: &lab.scale,
        bias: None,
    };
    let mut output = Array4::<f32>::zeros([1, query, 1, dim]);
    let bytes = past_key.iter().chain(&past_value).map(|rows| rows.len()).sum::<usize>();
    bencher.counter(ItemsCount::new(kv * KEYS)).counter(BytesCount::new(bytes)).bench_local(|| {
        attention(&Serial, measured.path, black_box(&call), output.view_mut());
    });
}

/// Rows of one new token made.
#[divan::bench(args = measured(), max_time = 1)]
fn encode(bencher: Bencher<'_, '_>, measured: Measured) {
    let lab = lab(measured.setting);
    bencher.counter(ItemsCount::new(lab.shape.kv)).bench_local(|| black_box(lab).new_rows(measured.path));
}

fn main() {
    divan::main();
}
