//! Random calls of the kernels, made from a seed.

#![allow(dead_code)]

use half::f16;
use ndarray::{Array2, Array4, ArrayView4};
use spark_ort::call::{AttentionSettings, Geometry, Input, Lengths, PruneSettings, QueryLayout, Rotary, Settings};
use spark_ort::cpu::{Attention, Basis, InstructionSet, Prune, Rotation, TailRows, Tokens, encode_key};
use spark_ort::format::{Bits, KeyLayout, Planes, RowFormat, TailLayout, ValueLayout};
use spark_ort::method::{Recovery, channel_scale};

/// A small generator of test numbers (SplitMix64): the same everywhere, under valgrind too.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Roughly normal.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    pub fn array(&mut self, shape: [usize; 4]) -> Array4<f32> {
        Array4::from_shape_simple_fn(shape, || self.normal())
    }
}

/// Everything that a call of either kernel borrows.
pub struct Case {
    pub geometry: Geometry,
    pub lengths: Lengths,
    pub attention: AttentionSettings,
    pub prune: PruneSettings,
    pub query: Array4<f32>,
    pub key: Array4<f32>,
    pub value: Array4<f32>,
    pub cos: Array2<f32>,
    pub sin: Array2<f32>,
    pub positions: Vec<usize>,
    pub query_saliency: Vec<f32>,
    pub scale: Vec<f32>,
    pub past_key: Vec<Vec<u8>>,
    pub past_value: Vec<Vec<u8>>,
    /// What the key and the value buffer of each (sequence, KV head) hold behind the past rows; needed with a tail.
    pub free: [Vec<Vec<u8>>; 2],
    /// Bases of keys and of queries, `[Hk, D, D]`, of format 3.
    pub basis: Option<[Vec<f32>; 2]>,
    pub recent: Option<Array4<f32>>,
    pub bias: Option<Array4<f32>>,
}

/// Random attributes, of `format`, with head size, key bits and value bits as `wanted`; and the head size.
fn settings(r: &mut Random, format: RowFormat, wanted: Option<(usize, Bits, Bits)>) -> (usize, Settings) {
    let (head_dim, value_bits) =
        r.pick(&[(32, 4), (40, 8), (48, 8), (64, 16), (64, 4), (80, 16), (96, 4), (128, 8), (192, 8), (256, 16)]);
    let head_dim = wanted.map_or(head_dim, |w| w.0);
    let (kv_heads, group) = (1 + r.below(3), r.pick(&[1, 2, 3, 4, 7, 8]));
    let kept_channels = 1 + r.below(head_dim);
    let (key_bits, value_bits) = (Bits::new(r.pick(&[16, 8, 4])).unwrap(), Bits::new(value_bits).unwrap());
    let (key_bits, value_bits) = wanted.map_or((key_bits, value_bits), |w| (w.1, w.2));
    let padding = 4 * r.below(3);
    let mut ends = [r.below(kept_channels + 1), r.below(kept_channels + 1)];
    ends.sort_unstable();
    let planes = Planes { eight: ends[0], four: ends[1] - ends[0], two: kept_channels - ends[1] };
    let planes = (format == RowFormat::V3).then_some(planes);
    let value = ValueLayout::of(format, head_dim, value_bits, 0).unwrap();
    // Kernels that read rows one by one serve drawn magnitudes, all others the rest.
    let others = [Recovery::Mean, Recovery::None].repeat(3);
    let recovery = r.pick(&[&others[..], &[Recovery::Exponential, Recovery::Normal]].concat());
    let mut settings = Settings {
        query_heads: kv_heads * group,
        kv_heads,
        kept_channels,
        row_format: format,
        key_bits,
        planes,
        value_bits,
        key_row_bytes: 0,
        value_row_bytes: value.row_bytes() + padding,
        recovery: if planes.is_some() { Recovery::None } else { recovery },
        recent_window: r.below(20),
        tail_window: 0,
        rotary: r.pick(&[None, Some(Rotary::Halves), Some(Rotary::Interleaved)]),
    };
    settings.key_row_bytes = settings.key_layout(head_dim).unwrap().row_bytes() + padding;
    (head_dim, settings)
}

impl Case {
    /// Shapes of the inputs, by their numbers: float32 by heads, a cache in float32, no lengths and no recent keys.
    pub fn shapes(&self) -> Vec<Option<Vec<i64>>> {
        let g = &self.geometry;
        let sizes = |n: [usize; 4]| Some(n.map(|d| d as i64).to_vec());
        let mut shapes: Vec<Option<Vec<i64>>> = vec![None; Input::ALL.len()];
        shapes[Input::Query.index()] = sizes([g.batch, g.query_heads, g.new, g.head_dim()]);
        for input in [Input::Key, Input::Value] {
            shapes[input.index()] = sizes([g.batch, g.kv_heads, g.new, g.head_dim()]);
        }
        shapes[Input::PastKey.index()] = sizes([g.batch, g.kv_heads, g.past, g.key.row_bytes() / 4]);
        shapes[Input::PastValue.index()] = sizes([g.batch, g.kv_heads, g.past, g.value.row_bytes() / 4]);
        for input in [Input::CosCache, Input::SinCache] {
            shapes[input.index()] = Some(vec![9, g.head_dim() as i64 / 2]);
        }
        shapes
    }

    /// A random call with up to `most_past` past and `most_new` new tokens; the cache holds random bytes.
    pub fn new(seed: u64, most_past: usize, most_new: usize) -> Self {
        Self::with(seed, most_past, most_new, None)
    }

    /// The same, with head size, key bits and value bits as `wanted`.
    pub fn with(seed: u64, most_past: usize, most_new: usize, wanted: Option<(usize, Bits, Bits)>) -> Self {
        Self::of(RowFormat::V1, seed, most_past, most_new, wanted)
    }

    /// The same, of a row format.
    pub fn of(
        format: RowFormat,
        seed: u64,
        most_past: usize,
        most_new: usize,
        wanted: Option<(usize, Bits, Bits)>,
    ) -> Self {
        let r = &mut Random(seed);
        let (head_dim, settings) = settings(r, format, wanted);
        let Settings { kv_heads, value_bits, .. } = settings;
        let geometry = Geometry {
            batch: 1 + r.below(3),
            new: r.below(most_new + 1),
            past: r.below(most_past + 1),
            query_heads: settings.query_heads,
            kv_heads,
            layout: QueryLayout::Heads,
            key: settings.key_layout(head_dim).unwrap(),
            value: ValueLayout::of(format, head_dim, value_bits, settings.value_row_bytes).unwrap(),
        };
        let (b, l, p) = (geometry.batch, geometry.new, geometry.past);
        let first = r.coin();
        let mut lengths = Lengths { total: if first { l } else { p + l }, past: vec![0; b], new: vec![l; b] };
        for s in 0..b {
            if first {
                lengths.new[s] = r.below(l + 1);
            } else {
                lengths.past[s] = if s == 0 { p } else { r.below(p + 1) };
            }
        }
        let rows = most_past + most_new + 1;
        let angles: Array2<f32> = Array2::from_shape_simple_fn((rows, head_dim / 2), || r.normal() * 3.0);
        let query_saliency: Vec<f32> = (0..kv_heads * head_dim).map(|_| r.normal().exp()).collect();
        let factor = 1.0 / (head_dim as f32).sqrt();
        let mut matrices = || (0..kv_heads * head_dim * head_dim).map(|_| r.normal() * factor).collect();
        let basis = (format == RowFormat::V3).then(|| [matrices(), matrices()]);
        let past = |r: &mut Random, row_bytes: usize| {
            (0..b * kv_heads).map(|h| r.bytes(lengths.past[h / kv_heads] * row_bytes)).collect::<Vec<_>>()
        };
        let bias_shape = [r.pick(&[1, b]), r.pick(&[1, settings.query_heads]), l, lengths.total + r.below(3)];
        let bias = r.coin().then(|| r.array(bias_shape).mapv(|x| if x > 1.0 { f32::NEG_INFINITY } else { x }));
        Self {
            attention: AttentionSettings {
                common: settings.clone(),
                scale: r.pick(&[None, Some(0.3)]),
                softcap: r.pick(&[None, Some(2.0)]),
                window: r.pick(&[None, Some(1), Some(7)]),
                causal: r.below(4) > 0,
            },
            recent: r.coin().then(|| r.array([b, kv_heads, settings.recent_window, head_dim])),
            prune: PruneSettings { common: settings, observation_window: 1 + r.below(40), observation_scale: None },
            query: r.array([b, geometry.query_heads, l, head_dim]),
            key: r.array([b, kv_heads, l, head_dim]),
            value: r.array([b, kv_heads, l, head_dim]),
            cos: angles.mapv(f32::cos),
            sin: angles.mapv(f32::sin),
            positions: (0..b * l).map(|_| r.below(rows)).collect(),
            scale: query_saliency.iter().map(|&n| channel_scale(n)).collect(),
            query_saliency,
            past_key: past(r, geometry.key.row_bytes()),
            past_value: past(r, geometry.value.row_bytes()),
            free: [vec![], vec![]],
            basis,
            bias,
            geometry,
            lengths,
        }
    }

    /// Replaces the random bytes of the cache by rows of ordinary numbers.
    pub fn fill_cache(&mut self, seed: u64) {
        let r = &mut Random(seed);
        let (g, d) = (self.geometry.clone(), self.geometry.head_dim());
        for head in 0..g.batch * g.kv_heads {
            let scale = &self.scale[head % g.kv_heads * d..(head % g.kv_heads + 1) * d];
            for row in self.past_key[head].chunks_exact_mut(g.key.row_bytes()) {
                let key: Vec<f32> = (0..d).map(|_| r.normal()).collect();
                encode_key(&g.key, Recovery::Mean, &key, &vec![1.0; d], scale, row);
            }
            for row in self.past_value[head].chunks_exact_mut(g.value.row_bytes()) {
                let value: Vec<f32> = (0..d).map(|_| r.normal()).collect();
                g.value.encode(&value, row);
            }
        }
    }

    pub fn tokens(&self) -> Tokens<'_, f32> {
        let rotation = self.prune.common.rotary.map(|style| Rotation {
            style,
            cos: self.cos.view(),
            sin: self.sin.view(),
            positions: &self.positions,
        });
        let basis = self.basis.as_ref().map(|[key, query]| Basis { key, query: Some(query) });
        Tokens { query: self.query.view(), key: self.key.view(), value: self.value.view(), rotation, basis }
    }

    pub fn prune_call(&self) -> Prune<'_, f32> {
        Prune {
            geometry: &self.geometry,
            lengths: &self.lengths,
            settings: &self.prune,
            tokens: self.tokens(),
            query_saliency: Some(&self.query_saliency),
            scale: &self.scale,
        }
    }

    pub fn attention_call<'a>(&'a self, past_key: &'a [&'a [u8]], past_value: &'a [&'a [u8]]) -> Attention<'a, f32> {
        Attention {
            geometry: &self.geometry,
            lengths: &self.lengths,
            settings: &self.attention,
            tokens: self.tokens(),
            past_key,
            past_value,
            recent: self.recent.as_ref().map(|r| r.view()),
            tail: None,
            scale: &self.scale,
            bias: self.bias.as_ref().map(|b| -> ArrayView4<'_, f32> { b.view() }),
        }
    }

    /// The attention output, `[B, Hq, L, D]`.
    pub fn attend(&self, pool: &impl spark_ort::cpu::Pool, path: InstructionSet) -> Array4<f32> {
        let key: Vec<_> = self.past_key.iter().map(|r| &r[..]).collect();
        let value: Vec<_> = self.past_value.iter().map(|r| &r[..]).collect();
        let mut out = Array4::from_elem(self.query.dim(), f32::NAN);
        let [free_key, free_value] = self.free.each_ref().map(|free| free.iter().map(|r| &r[..]).collect::<Vec<_>>());
        let layout = self.tail_layout();
        let has_tail = self.attention.common.tail_window > 0 && self.recent.is_none();
        let tail = has_tail.then_some(TailRows { layout: &layout, key: &free_key, value: &free_value });
        let call = Attention { tail, ..self.attention_call(&key, &value) };
        spark_ort::cpu::attention(pool, path, &call, out.view_mut());
        out
    }

    pub fn tail_layout(&self) -> TailLayout {
        let Geometry { key, value, past, .. } = &self.geometry;
        TailLayout::new(key, value, self.attention.common.tail_window, *past)
    }
}

/// The paths that this processor can take.
pub fn paths() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::ALL.into_iter().filter(|path| path.is_available())
}

/// Whether a new key row of a device is the CPU's: bit for bit but for `a`, whose sum the device takes in another order
/// and which may be the next float16. In planes so may `s`, and codes are then those of its own.
pub fn same_new_key(layout: &KeyLayout, got: &[u8], expected: &[u8]) -> bool {
    // Mask and sign plane come before it; nothing does in planes.
    let at = if layout.planes().is_some() { 0 } else { layout.head_dim() / 4 };
    let number = |row: &[u8]| i32::from(u16::from_le_bytes([row[at], row[at + 1]]));
    let others = got[..at] == expected[..at] && got[at + 2..] == expected[at + 2..];
    let others = others || number(got) != number(expected) && similar_planes(layout, got, expected);
    others && (number(got) - number(expected)).abs() <= 1
}

/// Whether two rows in planes stand for numbers that are no further apart than two levels of their planes.
fn similar_planes(layout: &KeyLayout, got: &[u8], of: &[u8]) -> bool {
    let Some(planes) = layout.planes() else { return false };
    let [got, expected] = [got, of].map(|row| {
        let mut key = vec![0.0; layout.head_dim()];
        planes.decode(row, &mut key);
        key
    });
    let s = f16::from_le_bytes([of[0], of[1]]).to_f32();
    let gap = |j: usize| match j {
        _ if j < planes.eight => 4.5 / 127.0,
        _ if j < planes.eight + planes.four => 2.73 * 31.0 / 127.0,
        _ => 1.51 * 89.0 / 127.0,
    };
    got.iter().zip(&expected).enumerate().all(|(j, (a, b))| (a - b).abs() <= 1.01 * s * gap(j))
}
