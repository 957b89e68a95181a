//! `com.microsoft::GroupQueryAttention`, as the ONNX Runtime GenAI model builder writes it: packed or not, rotary inside
//! or not.

use super::super::context::{Context, static_dim};
use super::super::error::Refusal;
use super::super::layer::{Bias, Layer, Norm, Rotary, Source};
use super::schema::GROUP_QUERY;
use super::{Pattern, base_name, cache_on_node, heads};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub struct GroupQuery;

impl Pattern for GroupQuery {
    fn begins_at(&self, node: &NodeProto) -> bool {
        node.is("com.microsoft", "GroupQueryAttention")
    }

    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
        let node = &context.index.graph.node[n];
        let title = node.title();
        GROUP_QUERY.check(node)?;
        let (query_heads, kv_heads) = (heads(node, "num_heads")?, heads(node, "kv_num_heads")?);
        let (cache, tensors) = cache_on_node(context, node, 3, Some(kv_heads))?;
        let query = node.input_at(0).ok_or_else(|| Refusal::new(&title, "a query", "none"))?;
        let key_value = match (node.input_at(1), node.input_at(2)) {
            (Some(key), Some(value)) => Some([key.to_string(), value.to_string()]),
            (None, None) => None,
            _ => return Err(Refusal::new(title, "key and value, or neither", "one of them")),
        };
        let lengths = match (node.input_at(5), node.input_at(6)) {
            (Some(seqlens), Some(total)) => Some([seqlens.to_string(), total.to_string()]),
            _ => return Err(Refusal::new(title, "seqlens_k and total_sequence_length", "one of them missing")),
        };
        let head_dim = match cache.head_dim {
            Some(d) => d,
            None => head_dim(context, node, query_heads + if key_value.is_none() { 2 * kv_heads } else { 0 })?,
        };
        let rotary = match node.int("do_rotary").unwrap_or(0) {
            0 => None,
            _ => Some(rotary(context, node, head_dim)?),
        };
        let window = window(node)?;
        Ok(Some(Layer {
            source: Source::GroupQueryAttention,
            name: base_name(node),
            doomed: vec![n],
            query: query.to_string(),
            token_axis: 1,
            key_value,
            cache: tensors,
            lengths,
            rotary,
            bias: node.input_at(10).map(added).into_iter().collect(),
            query_heads,
            kv_heads,
            head_dim,
            scale: super::given_scale_or_default(node)?,
            softcap: node.float("softcap").unwrap_or(0.0),
            window,
            causal: node.int("causal") != Some(0),
            norm: norm(node)?,
            windowed_cache: node.int("sliding_window_cache") == Some(1),
            output: node.output_at(0).unwrap_or_default().to_string(),
            output_shape: None,
            element: cache.element,
            title,
        }))
    }
}

/// An attention_bias as SparkAttention takes it.
fn added(tensor: &str) -> Bias {
    Bias { tensor: tensor.to_string(), masked: None, hides: false, cast: false, drop_axis: false, expand: false }
}

/// D from the width of the query, which has `heads` heads, or from the rotation's tables.
fn head_dim(context: &mut Context<'_>, node: &NodeProto, heads: usize) -> Result<usize, Refusal> {
    let declared = context.index.declared(&node.input[0]).and_then(|info| static_dim(info, 2));
    let width = declared.or_else(|| context.shape(&node.input[0]).ok().and_then(|s| s.get(2).copied()));
    let half = || usize::try_from(*context.index.initializer(node.input_at(7)?)?.dims.get(1)?).ok();
    match width {
        Some(width) if width % heads == 0 && width > 0 => Ok(width / heads),
        Some(width) => {
            let found = format!("a query of width {width}");
            Err(Refusal::new(node.title(), format!("a width that {heads} heads share"), found))
        }
        None => half().and_then(|half| half.checked_mul(2)).ok_or_else(|| {
            let expected = "a head size: a static dimension 3 of past_key, or a query of known width";
            Refusal::new(node.title(), expected, "neither")
        }),
    }
}

fn rotary(context: &Context<'_>, node: &NodeProto, head_dim: usize) -> Result<Rotary, Refusal> {
    let (Some(cos), Some(sin)) = (node.input_at(7), node.input_at(8)) else {
        return Err(Refusal::new(node.title(), "cos_cache and sin_cache, since do_rotary is 1", "one of them missing"));
    };
    if let Some(&width) = context.index.initializer(cos).and_then(|t| t.dims.get(1))
        && width != (head_dim / 2) as i64
    {
        let expected = format!("a rotation of all {head_dim} channels");
        return Err(Refusal::new(node.title(), expected, format!("one of {}", 2 * width)));
    }
    Ok(Rotary {
        caches: [cos.to_string(), sin.to_string()],
        positions: node.input_at(9).map(str::to_string),
        interleaved: node.int("rotary_interleaved").unwrap_or(0) != 0,
    })
}

/// local_window_size; 0 hides even a query's own key.
fn window(node: &NodeProto) -> Result<i64, Refusal> {
    match node.int("local_window_size").unwrap_or(-1) {
        0 => Err(Refusal::new(node.title(), "local_window_size above 0, or -1 for none", "local_window_size = 0")),
        window => Ok(window.max(-1)),
    }
}

/// q_norm_weight and k_norm_weight, which a head of query and key is normalised with before it is rotated.
fn norm(node: &NodeProto) -> Result<Option<Norm>, Refusal> {
    let weights = match (node.input_at(14), node.input_at(15)) {
        (None, None) => return Ok(None),
        (Some(query), Some(key)) => [query.to_string(), key.to_string()],
        _ => return Err(Refusal::new(node.title(), "q_norm_weight and k_norm_weight, or neither", "one of them")),
    };
    let both = node.float("qk_norm_epsilon").unwrap_or(1e-6);
    let epsilons = ["q_norm_epsilon", "k_norm_epsilon"].map(|name| node.float(name).unwrap_or(both));
    Ok(Some(Norm { weights, epsilons }))
}
