//! The ways in which models spell attention: the inputs and attributes of each, and how it is found. Each yields a
//! [`Layer`].

mod schema;

use super::cache::origin;
use super::context::{CacheInput, Context, rank};
use super::error::Refusal;
use super::layer::{CacheTensors, Layer};
use super::operator::Operator;
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// A way to spell attention.
trait Spell {
    /// Whether `node` may be the central node of such a layer.
    fn begins_at(&self, node: &NodeProto) -> bool;

    /// The layer at node `n`, `None` if it reads no cache.
    ///
    /// # Errors
    /// It is a layer that cannot be rewritten, with the reason.
    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal>;
}

/// The sources, each in its own file.
macro_rules! sources {
    ($($source:ident),*) => {
        $(mod $source;)*
        const SPELLINGS: &[&dyn Spell] = &[$(&$source::Spelling),*];
        /// The known attention operators.
        pub const OPERATORS: &[Option<Operator>] = &[$($source::OPERATOR),*];
    };
}

sources!(group_query, multi_head, onnx_attention, decomposed);

/// The source for which ONNX Runtime also has quantised caches.
pub use group_query::SOURCE as GROUP_QUERY_ATTENTION;

/// The layer at node `n`, if any source finds one.
pub fn layer_at(context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
    let node = &context.index.graph.node[n];
    for spelling in SPELLINGS {
        if spelling.begins_at(node) {
            return spelling.check(context, n);
        }
    }
    // Others compute attention that SparkAttention does not, including later operators. Linear attention, whose past
    // is a state that does not grow, is not handled here.
    let is_state = |input: &String| {
        let name = origin(context.index, input);
        context.index.input(name).is_some_and(|i| rank(i) > Some(2)) && !context.caches.contains_key(name)
    };
    let others = node.domain() == "com.microsoft" && node.op_type().contains("Attention");
    if others && !node.op_type().starts_with("LinearAttention") && !node.input.iter().any(is_state) {
        let expected = "GroupQueryAttention, MultiHeadAttention, ONNX Attention, or MatMul and Softmax";
        return Err(Refusal::new(node.title(), expected, format!("com.microsoft {}", node.op_type())));
    }
    Ok(None)
}

/// The scale of `node`, or 0 if absent, which stands for `1 / sqrt(D)`.
fn given_scale(node: &NodeProto) -> Result<f32, Refusal> {
    node.float("scale").map_or(Ok(0.0), |scale| usable_scale(node, scale.into()))
}

/// The same for com.microsoft's operators, where a scale of 0 means the default.
fn given_scale_or_default(node: &NodeProto) -> Result<f32, Refusal> {
    if node.float("scale") == Some(0.0) { Ok(0.0) } else { given_scale(node) }
}

/// `scale` as SparkAttention takes it.
///
/// # Errors
/// It is 0, which has another meaning there, or is not finite, or becomes so by rounding.
fn usable_scale(node: &NodeProto, scale: f64) -> Result<f32, Refusal> {
    let rounded = scale as f32;
    match rounded.is_finite() && rounded != 0.0 {
        true => Ok(rounded),
        false => Err(Refusal::new(node.title(), "a scale of scores that is a number other than 0", format!("{scale}"))),
    }
}

/// The cache of a node whose inputs from `past` on are past key and value, and whose outputs 1 and 2 are the present
/// ones; and the nodes that only pass a present one on.
///
/// # Errors
/// These are not inputs and outputs of the model, differ in heads or head size, or do not have `kv_heads` heads.
fn cache_on_node(
    context: &Context<'_>,
    node: &NodeProto,
    past: usize,
    kv_heads: Option<usize>,
) -> Result<(CacheInput, CacheTensors, Vec<usize>), Refusal> {
    let title = node.title();
    let (key, past_key) = context.cache(&title, "past_key", node.input_at(past))?;
    let (value, past_value) = context.cache(&title, "past_value", node.input_at(past + 1))?;
    let mut cache = key.clone();
    let sizes =
        [(&mut cache.kv_heads, value.kv_heads, "heads"), (&mut cache.head_dim, value.head_dim, "channels a head")];
    for (key, value, what) in sizes {
        match (*key, value) {
            (Some(k), Some(v)) if k != v => {
                let expected = format!("past_key and past_value of as many {what}");
                return Err(Refusal::new(title, expected, format!("{k} and {v}")));
            }
            _ => *key = key.or(value),
        }
    }
    if let (Some(declared), Some(heads)) = (cache.kv_heads, kv_heads)
        && declared != heads
    {
        let expected = format!("a cache of {heads} heads, as the node has for keys and values");
        return Err(Refusal::new(title, expected, format!("'{}' of {declared}", node.input[past])));
    }
    cache.kv_heads = cache.kv_heads.or(kv_heads);
    let (present_key, naming_key) = present(context, node, 1, "present_key")?;
    let (present_value, naming_value) = present(context, node, 2, "present_value")?;
    let tensors = CacheTensors { past: [past_key, past_value], present: [present_key, present_value] };
    Ok((cache, tensors, naming_key.into_iter().chain(naming_value).collect()))
}

/// The graph output that is output `index` of `node`, its `role`, and the node that only passes it on.
fn present(
    context: &Context<'_>,
    node: &NodeProto,
    index: usize,
    role: &str,
) -> Result<(String, Option<usize>), Refusal> {
    let expected = || format!("{role} as an output of the model");
    let name = node.output_at(index).ok_or_else(|| Refusal::new(node.title(), expected(), "no such output"))?;
    context.as_output(name).ok_or_else(|| Refusal::new(node.title(), expected(), format!("'{name}', which is none")))
}

/// More heads than any model has.
const MOST_HEADS: usize = 1 << 16;

/// The attribute `name` as a number of heads.
fn heads(node: &NodeProto, name: &str) -> Result<usize, Refusal> {
    let value = node.int(name);
    let heads = value.and_then(|v| usize::try_from(v).ok()).filter(|h| (1..=MOST_HEADS).contains(h));
    heads.ok_or_else(|| {
        let found = value.map_or("no such attribute".to_string(), |v| v.to_string());
        Refusal::new(node.title(), format!("attribute {name}, a number from 1 to {MOST_HEADS}"), found)
    })
}

/// Base for the names of new nodes of the layer at `node`.
fn base_name(node: &NodeProto) -> String {
    match node.name() {
        "" => node.output_at(0).unwrap_or("attention").to_string(),
        name => name.to_string(),
    }
}
