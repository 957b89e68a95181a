//! What happens to cached rows between the cache and a product: repetition for query heads, transposition, scaling.
//! Found by following labelled elements, however it is spelt.

use ndarray::{ArrayD, Axis, IxDyn};

use super::context::{Appended, Context, Sizes, USUAL, labels};
use super::error::Refusal;
use super::layer::CacheTensors;
use crate::onnx::evaluate::Value;

/// Layout of a tensor made from `[B,Hk,S,D]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[B,H,S,D]`, or `[B,Hk,G,S,D]`
    HeadsFirst,
    /// `[B,H,D,S]`, or `[B,Hk,G,D,S]`: a transposed key
    Transposed,
    /// `[B,S,H*D]`
    Flat,
}

/// Where an operand of a product comes from.
#[derive(Clone, Debug)]
pub struct Operand {
    /// The cache.
    pub appended: Appended,
    /// Hk
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// G, the number of copies of each KV head
    pub repeats: usize,
    /// Factor of the elements.
    pub scale: f64,
}

impl Operand {
    /// Heads, head size and repeats.
    fn sizes(&self) -> [usize; 3] {
        [self.kv_heads, self.head_dim, self.repeats]
    }
}

/// Key and value, if their heads, head sizes and repeats agree; only the key may be scaled.
///
/// # Errors
/// They differ.
pub fn alike(title: &str, key: Operand, value: Operand) -> Result<[Operand; 2], Refusal> {
    if key.sizes() != value.sizes() {
        let [key, value] = [key, value].map(|o| {
            let [heads, size, repeats] = o.sizes();
            format!("{heads} heads of {size}, each {repeats} times")
        });
        let expected = "key and value of as many heads, as large and as often repeated";
        return Err(Refusal::new(title, expected, format!("keys of {key}, values of {value}")));
    }
    not_scaled(title, "value", &value)?;
    Ok([key, value])
}

/// Unscaled key and value of `title` that come from caches, each in the layout that `layout` gives for its tensor.
/// `None` if neither comes from a cache.
///
/// # Errors
/// Only one does, or they come from caches in a way that is not understood.
pub fn follow_both(
    context: &mut Context<'_>,
    title: &str,
    [key, value]: [&str; 2],
    layout: impl Fn(&mut Context<'_>, &str) -> Layout,
) -> Result<Option<[Operand; 2]>, Refusal> {
    let mut operand = |role: &str, tensor: &str| {
        let layout = layout(context, tensor);
        follow(context, title, role, tensor, layout)
    };
    match (operand("key", key)?, operand("value", value)?) {
        (Some(key), Some(value)) => {
            not_scaled(title, "key", &key)?;
            alike(title, key, value).map(Some)
        }
        (None, None) => Ok(None),
        _ => Err(Refusal::new(title, "key and value from caches", "only one of them")),
    }
}

/// The nodes that append to the caches of `key` and `value`, the tensors of the caches, and the appended tensors.
pub fn appended([key, value]: [Operand; 2]) -> (Vec<usize>, CacheTensors, [String; 2]) {
    let (key, value) = (key.appended, value.appended);
    let nodes = key.nodes().chain(value.nodes()).collect();
    let cache = CacheTensors { past: [key.past, value.past], present: [key.present, value.present] };
    (nodes, cache, [key.new, value.new])
}

/// Refuses an operand, the `role` of `title`, that is scaled.
fn not_scaled(title: &str, role: &str, operand: &Operand) -> Result<(), Refusal> {
    match operand.scale == 1.0 {
        true => Ok(()),
        false => Err(Refusal::new(title, format!("a {role} as it is cached"), format!("{} times it", operand.scale))),
    }
}

/// Follows `tensor`, the `role` operand of `title`, to a cache. `None` if it comes from no cache.
///
/// # Errors
/// It comes from a cache in a way that is not understood.
pub fn follow(
    context: &mut Context<'_>,
    title: &str,
    role: &str,
    tensor: &str,
    layout: Layout,
) -> Result<Option<Operand>, Refusal> {
    let appended = match context.origins(tensor).as_slice() {
        [] => return Ok(None),
        [one] => (*one).clone(),
        _ => return Err(Refusal::new(title, format!("{role} from one cache"), "more than one")),
    };
    let expected = || format!("{role} to be '{}' with its new rows, repeated for query heads at most", appended.past);
    let cache = &context.caches[&appended.past];
    let (Some(kv_heads), Some(head_dim)) = (cache.kv_heads, cache.head_dim) else {
        let found = "a cache input that does not declare them";
        return Err(Refusal::new(title, format!("heads and head size of '{}' as numbers", appended.past), found));
    };
    let mut answers = Vec::new();
    for sizes in USUAL {
        let value = context.value(tensor, sizes).map_err(|e| Refusal::new(title, expected(), &*e))?;
        let data = value.elements().map_err(|e| Refusal::new(title, expected(), format!("'{tensor}': {e}")))?;
        let unexpected = || Refusal::new(title, expected(), format!("'{tensor}', of other elements"));
        answers.push(compare(data, sizes, kv_heads, head_dim, layout).ok_or_else(unexpected)?);
    }
    match answers[..] {
        [(repeats, scale), other] if other == (repeats, scale) => {
            Ok(Some(Operand { appended, kv_heads, head_dim, repeats, scale }))
        }
        _ => Err(Refusal::new(title, expected(), "something that depends on the number of tokens")),
    }
}

/// G and scale, if `data` is the labelled cache in `layout`.
fn compare(data: &ArrayD<f64>, sizes: Sizes, kv_heads: usize, head_dim: usize, layout: Layout) -> Option<(usize, f64)> {
    let (b, h, s, d) = (sizes.batch, kv_heads, sizes.total(), head_dim);
    let mut data = data.clone();
    if layout == Layout::Transposed {
        let rank = data.ndim();
        data.swap_axes(rank.checked_sub(2)?, rank - 1);
    }
    let data = data.as_standard_layout().into_owned();
    // To [B,Hk,G,S,D].
    let count = data.len() / (b * h * s * d).max(1);
    let grouped = match (layout, data.ndim()) {
        (Layout::Flat, 3) if data.shape()[..2] == [b, s] => {
            let split = data.into_shape_with_order(IxDyn(&[b, s, h, count, d])).ok()?;
            split.permuted_axes(IxDyn(&[0, 2, 3, 1, 4]))
        }
        (Layout::HeadsFirst | Layout::Transposed, 4 | 5) => {
            let shape = data.shape();
            let tail = &shape[shape.len() - 2..];
            let groups_fit = shape.len() == 4 && shape[1] == h * count || shape.len() == 5 && shape[1] == h;
            if tail != [s, d] || shape[0] != b || !groups_fit {
                return None;
            }
            data.into_shape_with_order(IxDyn(&[b, h, count, s, d])).ok()?
        }
        _ => return None,
    };
    let expected = labels(&[b, h, s, d])?.insert_axis(Axis(2));
    let expected = expected.broadcast(grouped.raw_dim())?;
    let scale = grouped.first()? / expected.first()?;
    let close = |(&x, &label): (&f64, &f64)| (x - label * scale).abs() <= label * scale.abs() * 1e-9;
    (scale.is_finite() && grouped.iter().zip(expected.iter()).all(close)).then_some((count, scale))
}

/// The scale of `tensor` relative to `query`, `[B,Hq,L,D]`; its heads may be split as `[Hk,G]`. `None` if it differs
/// in any other way.
pub fn scaled_query(
    context: &mut Context<'_>,
    query: &str,
    tensor: &str,
    query_heads: usize,
    head_dim: usize,
) -> Option<f64> {
    if query == tensor {
        return Some(1.0);
    }
    let mut answers = Vec::new();
    for sizes in USUAL {
        let shape = [sizes.batch, query_heads, sizes.new, head_dim];
        let kind = context.value(query, sizes).map_or(1, |v| v.kind);
        let mut evaluator = context.blank_evaluator();
        evaluator.give(query, Value::known(kind, labels(&shape)?));
        // Lengths that a reshape on the way may use.
        for node in &context.index.graph.node {
            if let ("Shape", Some(input), Some(output)) = (node.op_type(), node.input.first(), node.output.first())
                && input != query
                && let Ok(value) = context.value(output, sizes)
            {
                evaluator.give(output, (*value).clone());
            }
        }
        let value = evaluator.value(tensor).ok()?;
        let data = value.data.as_ref()?;
        let expected = labels(&shape)?;
        let scale = data.first()? / expected.first()?;
        let same = data.len() == expected.len()
            && data.iter().zip(&expected).all(|(&x, &l)| (x - l * scale).abs() <= l * scale.abs() * 1e-9)
            && data.shape().ends_with(&[sizes.new, head_dim]);
        same.then(|| answers.push(scale))?;
    }
    (answers[0] == answers[1]).then_some(answers[0])
}
