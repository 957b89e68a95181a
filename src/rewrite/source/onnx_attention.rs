//! ONNX `Attention` of opset 23 to 25, with past and present on the node, or behind Concat and repetition of heads.

use super::super::context::{Context, rank};
use super::super::error::Refusal;
use super::super::heads::{Layout, Operand, appended, follow_both};
use super::super::operator::Operator;
use super::super::layer::{CacheTensors, Layer, Source};
use super::super::mask::{Mask, replace};
use super::schema::{Attribute, Port::Absent, Port::Read, Schema};
use super::{Spell, base_name, cache_on_node, heads};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub struct Spelling;

/// The operator, as far as it must be known before the search for layers.
pub const OPERATOR: Option<Operator> = Some(Operator {
    domain: "",
    name: "Attention",
    past: [4, 5],
    heads: ["q_num_heads", "kv_num_heads"],
});

/// ONNX `Attention` of opsets 23 to 25.
const SCHEMA: Schema = Schema {
    inputs: &[
        Read("Q"),
        Read("K"),
        Read("V"),
        Read("attn_mask"),
        Read("past_key"),
        Read("past_value"),
        Absent("nonpad_kv_seqlen", "the tokens in a cache that is written in place"),
    ],
    outputs: &[
        Read("Y"),
        Read("present_key"),
        Read("present_value"),
        Absent("qk_matmul_output", "the product of query and key"),
    ],
    attributes: &[
        ("q_num_heads", Attribute::Read),
        ("kv_num_heads", Attribute::Read),
        ("scale", Attribute::Read),
        ("softcap", Attribute::Read),
        ("is_causal", Attribute::Int(&[0, 1])),
        ("left_window_size", Attribute::Read),
        ("right_window_size", Attribute::Read),
        // For an output that must be absent.
        ("qk_matmul_output_mode", Attribute::Read),
        // The softmax is computed in float32.
        ("softmax_precision", Attribute::Read),
    ],
};

/// As metadata names it.
const NAME: &str = "Attention";

impl Spell for Spelling {
    fn begins_at(&self, node: &NodeProto) -> bool {
        OPERATOR.is_some_and(|operator| operator.is(node))
    }

    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
        let node = &context.index.graph.node[n];
        let title = node.title();
        let (Some(query), Some(key), Some(value)) = (node.input_at(0), node.input_at(1), node.input_at(2)) else {
            return Err(Refusal::new(title, "query, key and value", "one of them missing"));
        };
        let dims = dimensions(context, query)
            .ok_or_else(|| Refusal::new(&title, "a query of known rank", format!("'{query}' of unknown shape")))?;
        let flat = dims == 3;
        let layout = if flat { Layout::Flat } else { Layout::HeadsFirst };
        let on_node = node.input_at(4).is_some() || node.input_at(5).is_some();
        let is_causal = node.int("is_causal") == Some(1) || node.int("right_window_size") == Some(0);
        let keys = match on_node {
            true => keys_on_node(context, node, [key, value], flat)?,
            false => match keys_behind_concat(context, &title, [key, value], layout, is_causal)? {
                Some(keys) => keys,
                None => return Ok(None),
            },
        };
        let Keys { mut doomed, cache, key_value, kv_heads, head_dim, repeats, element } = keys;
        SCHEMA.check(node)?;
        let window = window(node, on_node)?;
        let query_heads = match flat {
            true => heads(node, "q_num_heads")?,
            false => match context.shape(query).ok().and_then(|s| s.get(1).copied()) {
                Some(heads) => heads,
                None => declared_heads(context, query).unwrap_or(kv_heads * repeats),
            },
        };
        if !query_heads.is_multiple_of(kv_heads) || repeats != 1 && query_heads != kv_heads * repeats {
            let found = format!("{query_heads} heads of the query, {kv_heads} of the cache");
            return Err(Refusal::new(title, "query heads that share KV heads evenly", found));
        }
        doomed.insert(0, n);
        let masks: Vec<Mask> = node.input_at(3).map(Mask::new).into_iter().collect();
        let masking = replace(context, &title, &masks, element, false)?;
        Ok(Some(Layer {
            source: Source::new(NAME),
            name: base_name(node),
            doomed,
            query: query.to_string(),
            token_axis: if flat { 1 } else { 2 },
            key_value: Some(key_value),
            cache,
            lengths: None,
            rotary: None,
            bias: masking.bias,
            query_heads,
            kv_heads,
            head_dim,
            scale: super::given_scale(node)?,
            // Applied before the mask, as in SparkAttention.
            softcap: node.float("softcap").unwrap_or(0.0),
            window,
            causal: masking.causal || is_causal,
            norm: None,
            windowed_cache: false,
            output: node.output_at(0).unwrap_or_default().to_string(),
            output_shape: None,
            element,
            title,
        }))
    }
}

/// Where the keys and values of a layer come from.
struct Keys {
    /// Nodes that are removed with the layer.
    doomed: Vec<usize>,
    cache: CacheTensors,
    /// The new keys and values.
    key_value: [String; 2],
    kv_heads: usize,
    head_dim: usize,
    /// Number of query heads per KV head, where the model repeats keys and values.
    repeats: usize,
    element: i32,
}

/// With past and present on `node`.
fn keys_on_node(
    context: &mut Context<'_>,
    node: &NodeProto,
    [key, value]: [&str; 2],
    flat: bool,
) -> Result<Keys, Refusal> {
    let kv_heads = if flat { Some(heads(node, "kv_num_heads")?) } else { None };
    let (cache, tensors, doomed) = cache_on_node(context, node, 4, kv_heads)?;
    let (Some(kv_heads), Some(head_dim)) = (cache.kv_heads, cache.head_dim) else {
        let expected = "heads and head size of past_key as numbers";
        return Err(Refusal::new(node.title(), expected, "a cache input that does not declare them"));
    };
    let key_value = [key.to_string(), value.to_string()];
    Ok(Keys { doomed, cache: tensors, key_value, kv_heads, head_dim, repeats: 1, element: cache.element })
}

/// With past and new keys concatenated before the node, and repeated for the query heads.
fn keys_behind_concat(
    context: &mut Context<'_>,
    title: &str,
    key_value: [&str; 2],
    layout: Layout,
    is_causal: bool,
) -> Result<Option<Keys>, Refusal> {
    let Some(pair) = follow_both(context, title, key_value, |_, _| layout)? else { return Ok(None) };
    if is_causal {
        let found = "is_causal or right_window_size 0 with past keys that are not inputs of the node: \
                     it then counts from the first key";
        return Err(Refusal::new(title, "a mask, or past_key and past_value on the node", found));
    }
    let Operand { kv_heads, head_dim, repeats, .. } = pair[0];
    let element = context.caches[&pair[0].appended.past].element;
    let (doomed, cache, key_value) = appended(pair);
    Ok(Some(Keys { doomed, cache, key_value, kv_heads, head_dim, repeats, element }))
}

fn dimensions(context: &mut Context<'_>, tensor: &str) -> Option<usize> {
    context.index.declared(tensor).and_then(rank).or_else(|| context.shape(tensor).ok().map(|s| s.len()))
}

fn declared_heads(context: &Context<'_>, tensor: &str) -> Option<usize> {
    super::super::context::static_dim(context.index.declared(tensor)?, 1)
}

/// local_window_size, which includes a query's own key, from left_window_size, which does not.
fn window(node: &NodeProto, on_node: bool) -> Result<i64, Refusal> {
    let [left, right] = ["left_window_size", "right_window_size"].map(|name| node.int(name).unwrap_or(-1));
    let refuse = |expected: &str, found: String| Err(Refusal::new(node.title(), expected, found));
    if right > 0 && node.int("is_causal") != Some(1) {
        return refuse("right_window_size 0, or -1 for none", format!("right_window_size = {right}"));
    }
    match left {
        ..0 => Ok(-1),
        _ if !on_node => refuse(
            "a mask, or past_key and past_value on the node",
            "left_window_size with past keys that are not inputs of the node: it then counts from the first key".into(),
        ),
        _ => Ok(left.saturating_add(1)),
    }
}
