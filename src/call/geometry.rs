//! Sizes of a call, from the shapes of its inputs.

use super::settings::layout_error;
use super::{CallError, Input, Settings};
use crate::format::{KeyLayout, ValueLayout};

/// Most channels of one token, over all sequences and query heads: 1 GiB of float32.
pub const MOST_CHANNELS_A_TOKEN: usize = 1 << 28;

/// How queries, and keys and values with them, lie in their tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryLayout {
    /// `[B, L, Hq*D]`
    Tokens,
    /// `[B, Hq, L, D]`
    Heads,
    /// `[B, L, (Hq+2Hk)*D]`, key and value after the query
    Packed,
}

/// Shapes of the inputs that a node has; optional inputs without elements count as absent.
#[derive(Clone, Debug, Default)]
pub struct Shapes([Option<Vec<usize>>; Input::ALL.len()]);

impl Shapes {
    /// From the shape of each input, `None` where absent.
    ///
    /// # Errors
    /// Names an input with a negative dimension, or more elements than memory can hold.
    pub fn new(shape: impl Fn(Input) -> Option<Vec<i64>>) -> Result<Self, CallError> {
        let mut shapes = Self::default();
        for input in Input::ALL {
            let Some(dims) = shape(input) else { continue };
            let sizes: Option<Vec<_>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
            let bytes = |sizes: &[usize]| sizes.iter().try_fold(8usize, |n, &d| n.checked_mul(d.max(1)));
            match sizes {
                Some(sizes) if bytes(&sizes).is_some_and(|n| isize::try_from(n).is_ok()) => {
                    shapes.0[input.index()] = Some(sizes);
                }
                _ => return Err(input.error(format!("shape {dims:?} is not possible"))),
            }
        }
        let no_tokens = shapes.get(Input::Query).is_some_and(|q| q.contains(&0));
        for input in Input::ALL {
            // Without new tokens a given key has no elements either; only its width tells it from a placeholder.
            let width = shapes.get(input).filter(|s| s.len() >= 3).and_then(|s| s.last());
            let kept = match input {
                Input::Query | Input::PastKey | Input::PastValue => true,
                Input::Key | Input::Value if no_tokens => width.is_some_and(|&w| w > 0),
                _ => !shapes.get(input).is_some_and(|s| s.contains(&0)),
            };
            if !kept {
                shapes.0[input.index()] = None;
            }
        }
        Ok(shapes)
    }

    /// The shape of `input`, `None` if it is not used.
    pub fn get(&self, input: Input) -> Option<&[usize]> {
        self.0[input.index()].as_deref()
    }

    fn required(&self, input: Input) -> Result<&[usize], CallError> {
        self.get(input).ok_or_else(|| input.error("is required"))
    }

    /// Checks that `input`, if used, has one of the `expected` shapes, `None` standing for any size.
    fn expect(&self, input: Input, expected: &[&[Option<usize>]], meaning: &str) -> Result<(), CallError> {
        let Some(shape) = self.get(input) else { return Ok(()) };
        let fits = |e: &&[Option<usize>]| {
            e.len() == shape.len() && e.iter().zip(shape).all(|(e, s)| e.is_none_or(|e| e == *s))
        };
        if expected.iter().any(fits) {
            return Ok(());
        }
        let spelt: Vec<_> = expected
            .iter()
            .map(|e| e.iter().map(|d| d.map_or("any".into(), |d| d.to_string())).collect::<Vec<_>>().join(", "))
            .map(|e| format!("[{e}]"))
            .collect();
        Err(input.error(format!("shape {shape:?}, expected {} ({meaning})", spelt.join(" or "))))
    }
}

/// Sizes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// B
    pub batch: usize,
    /// L, new tokens including padding
    pub new: usize,
    /// P, rows of past_key and past_value
    pub past: usize,
    /// Hq
    pub query_heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// Where queries lie.
    pub layout: QueryLayout,
    /// Key rows; knows D too.
    pub key: KeyLayout,
    /// Value rows.
    pub value: ValueLayout,
}

impl Geometry {
    /// D
    pub fn head_dim(&self) -> usize {
        self.key.head_dim()
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Checks all shapes against each other and the settings. `container` is the size in bytes of an element of C.
    ///
    /// # Errors
    /// Names the input, or the attribute, that does not fit.
    pub fn new(settings: &Settings, shapes: &Shapes, container: usize) -> Result<Self, CallError> {
        let (hq, hk) = (settings.query_heads, settings.kv_heads);
        let packed = shapes.get(Input::Key).is_none();
        if packed != shapes.get(Input::Value).is_none() {
            let (present, absent) = if packed { (Input::Value, Input::Key) } else { (Input::Key, Input::Value) };
            return Err(absent.error(format!("absent although {} is given", present.name())));
        }
        let query = shapes.required(Input::Query)?;
        let (batch, new, head_dim, layout) = match *query {
            [batch, new, width] if packed => {
                let heads = hq + 2 * hk;
                if width % heads != 0 {
                    let problem = format!(
                        "width {width} of packed QKV is not a multiple of num_heads + 2 * kv_num_heads = {heads}"
                    );
                    return Err(Input::Query.error(problem));
                }
                (batch, new, width / heads, QueryLayout::Packed)
            }
            [batch, new, width] => {
                if width % hq != 0 {
                    return Err(Input::Query.error(format!("width {width} is not a multiple of num_heads = {hq}")));
                }
                (batch, new, width / hq, QueryLayout::Tokens)
            }
            [batch, heads, new, head_dim] if !packed => {
                if heads != hq {
                    return Err(Input::Query.error(format!("{heads} heads, but num_heads is {hq}")));
                }
                (batch, new, head_dim, QueryLayout::Heads)
            }
            _ => {
                let ranks = if packed { "3, as packed QKV without key and value" } else { "3 or 4" };
                return Err(Input::Query.error(format!("shape {query:?}, expected rank {ranks}")));
            }
        };
        let key = settings.key_layout(head_dim).map_err(|e| layout_error(e, "key_row_bytes"))?;
        let value = ValueLayout::of(settings.row_format, head_dim, settings.value_bits, settings.value_row_bytes)
            .map_err(|e| layout_error(e, "value_row_bytes"))?;
        let past = match *shapes.required(Input::PastKey)? {
            [_, _, past, _] => past,
            ref other => return Err(Input::PastKey.error(format!("shape {other:?}, expected rank 4"))),
        };
        // Kernels keep a little for every sequence and head, even when there is no token, and so no real memory,
        // anywhere.
        if batch.checked_mul(hq * head_dim).is_none_or(|n| n > MOST_CHANNELS_A_TOKEN) {
            let problem = format!(
                "{batch} sequences of {hq} heads of {head_dim} channels are more than {MOST_CHANNELS_A_TOKEN} channels"
            );
            return Err(Input::Query.error(problem));
        }
        let geometry = Self { batch, new, past, query_heads: hq, kv_heads: hk, layout, key, value };
        geometry.check(settings, shapes, container)?;
        Ok(geometry)
    }

    /// Checks every input but query against the sizes.
    fn check(&self, settings: &Settings, shapes: &Shapes, container: usize) -> Result<(), CallError> {
        let (b, l, d, hk) = (Some(self.batch), Some(self.new), Some(self.head_dim()), Some(self.kv_heads));
        for input in [Input::Key, Input::Value] {
            let tokens = [b, l, Some(self.kv_heads * self.head_dim())];
            shapes.expect(
                input,
                &[&tokens, &[b, hk, l, d]],
                "batch and tokens of the query, kv_num_heads, head size",
            )?;
        }
        shapes.required(Input::PastValue)?;
        for (input, bytes) in [(Input::PastKey, self.key.row_bytes()), (Input::PastValue, self.value.row_bytes())] {
            let width = (self.past > 0).then_some(bytes / container);
            let meaning = format!("batch, kv_num_heads, past rows, row of {bytes} bytes by the attributes");
            shapes.expect(input, &[&[b, hk, Some(self.past), width]], &meaning)?;
        }
        shapes.expect(Input::SeqlensK, &[&[b], &[b, Some(1)]], "batch")?;
        shapes.expect(Input::TotalSequenceLength, &[&[], &[Some(1)], &[Some(1); 2]], "one number")?;
        if settings.rotary.is_some() {
            let rows = shapes.required(Input::CosCache)?.first().copied();
            for input in [Input::CosCache, Input::SinCache] {
                shapes.required(input)?;
                shapes.expect(input, &[&[rows, Some(self.head_dim() / 2)]], "positions, half the head size")?;
            }
        }
        shapes.expect(Input::PositionIds, &[&[b, l]], "batch, tokens of the query")?;
        shapes.expect(Input::PastKeyRecent, &[&[b, hk, None, d]], "batch, kv_num_heads, recent keys, head size")?;
        shapes.expect(Input::QuerySaliency, &[&[hk, d]], "kv_num_heads, head size")?;
        for input in [Input::KeyBasis, Input::QueryBasis] {
            shapes.expect(input, &[&[hk, d, d]], "kv_num_heads, head size, head size")?;
            if settings.planes.is_none() && shapes.get(input).is_some() {
                return Err(input.error("belongs to row_format 3; leave it out"));
            }
        }
        if settings.planes.is_some() {
            shapes.required(Input::KeyBasis)?;
        }
        if let Some(shape) = shapes.get(Input::AttentionBias) {
            let one_or = |i: usize, n: usize| if shape.get(i) == Some(&1) { Some(1) } else { Some(n) };
            let expected = [one_or(0, self.batch), one_or(1, self.query_heads), l, None];
            shapes.expect(
                Input::AttentionBias,
                &[&expected],
                "batch or 1, num_heads or 1, tokens of the query, total length",
            )?;
        }
        Ok(())
    }
}
