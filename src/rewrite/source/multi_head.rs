//! `com.microsoft::MultiHeadAttention`, with past and present on the node, or behind Concat and repetition of heads.
//! `RotaryEmbedding` before it stays where it is.

use super::super::context::Context;
use super::super::error::Refusal;
use super::super::heads::{Layout, Operand, appended, follow_both};
use super::super::operator::Operator;
use super::super::layer::{Layer, Source};
use super::super::mask::{Mask, replace};
use super::schema::{Attribute, Port::Absent, Port::Read, Schema};
use super::{Spell, base_name, cache_on_node, heads};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub struct Spelling;

/// The operator, as far as it must be known before the search for layers.
pub const OPERATOR: Option<Operator> = Some(Operator {
    domain: "com.microsoft",
    name: "MultiHeadAttention",
    past: [6, 7],
    heads: ["num_heads", "num_heads"],
});

/// `com.microsoft::MultiHeadAttention` of ONNX Runtime 1.32.
const SCHEMA: Schema = Schema {
    inputs: &[
        Read("query"),
        Read("key"),
        Read("value"),
        Absent("bias", "a bias of query, key and value"),
        Absent("key_padding_mask", "which keys are padding"),
        Read("attention_bias"),
        Read("past_key"),
        Read("past_value"),
        Absent("past_sequence_length", "the tokens in a shared buffer"),
        Absent("cache_indirection", "which beam a cached token belongs to"),
    ],
    outputs: &[
        Read("output"),
        Read("present_key"),
        Read("present_value"),
        Absent("qk", "the product of query and key"),
    ],
    attributes: &[
        ("num_heads", Attribute::Read),
        ("scale", Attribute::Read),
        ("unidirectional", Attribute::Int(&[0, 1])),
        // The value added to hidden scores, by key_padding_mask or for later keys; hidden keys get no weight either
        // way.
        ("mask_filter_value", Attribute::Read),
    ],
};

/// As metadata names it.
const NAME: &str = "MultiHeadAttention";

impl Spell for Spelling {
    fn begins_at(&self, node: &NodeProto) -> bool {
        OPERATOR.is_some_and(|operator| operator.is(node))
    }

    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
        let node = &context.index.graph.node[n];
        let title = node.title();
        let (Some(query), Some(key), Some(value)) = (node.input_at(0), node.input_at(1), node.input_at(2)) else {
            return Err(Refusal::new(title, "query, key and value", "packed or missing ones"));
        };
        let query_heads = heads(node, "num_heads")?;
        let on_node = node.input_at(6).is_some() || node.input_at(7).is_some();
        let behind = match on_node {
            true => None,
            false => follow_both(context, &title, [key, value], |context, tensor| {
                let flat = context.shape(tensor).is_ok_and(|s| s.len() == 3);
                if flat { Layout::Flat } else { Layout::HeadsFirst }
            })?,
        };
        if !on_node && behind.is_none() {
            return Ok(None);
        }
        SCHEMA.check(node)?;

        let unidirectional = node.int("unidirectional").unwrap_or(0) != 0;
        let (mut doomed, cache, key_value, kv_heads, head_dim, element) = match behind {
            None => {
                let (cache, tensors, naming) = cache_on_node(context, node, 6, Some(query_heads))?;
                let width = context.shape(query).ok().filter(|s| s.len() == 3).map(|s| s[2] / query_heads);
                let head_dim = cache
                    .head_dim
                    .or(width)
                    .ok_or_else(|| Refusal::new(&title, "a head size: a static dimension 3 of past_key", "none"))?;
                let key_value = [key.to_string(), value.to_string()];
                (naming, tensors, key_value, query_heads, head_dim, cache.element)
            }
            Some(pair) => {
                let Operand { kv_heads, head_dim, repeats, .. } = pair[0];
                if unidirectional {
                    let found = "unidirectional with past keys that are not inputs of the node: \
                                 it then counts from the first key";
                    return Err(Refusal::new(title, "a mask, or past_key and past_value on the node", found));
                }
                if kv_heads * repeats != query_heads {
                    let found = format!("{repeats} times {kv_heads}");
                    return Err(Refusal::new(title, format!("keys of {query_heads} heads"), found));
                }
                let element = context.caches[&pair[0].appended.past].element;
                let (doomed, cache, new) = appended(pair);
                (doomed, cache, new, kv_heads, head_dim, element)
            }
        };
        doomed.insert(0, n);
        let masks: Vec<Mask> = node.input_at(5).map(Mask::new).into_iter().collect();
        let masking = replace(context, &title, &masks, element, false)?;
        Ok(Some(Layer {
            source: Source::new(NAME),
            name: base_name(node),
            doomed,
            query: query.to_string(),
            token_axis: 1,
            key_value: Some(key_value),
            cache,
            lengths: None,
            rotary: None,
            bias: masking.bias,
            query_heads,
            kv_heads,
            head_dim,
            scale: super::given_scale_or_default(node)?,
            softcap: 0.0,
            window: -1,
            causal: masking.causal || unidirectional,
            norm: None,
            windowed_cache: false,
            output: node.output_at(0).unwrap_or_default().to_string(),
            output_shape: None,
            element,
            title,
        }))
    }
}
