//! `com.microsoft::GroupQueryAttention`, as the ONNX Runtime GenAI model builder writes it: packed or not, rotary
//! inside or not.

use super::super::context::{Context, static_dim};
use super::super::error::Refusal;
use super::super::operator::Operator;
use super::super::layer::{Bias, Layer, Norm, Rotary, Source};
use super::schema::{Attribute, Port::Absent, Port::Read, Schema};
use super::{Spell, base_name, cache_on_node, heads};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub struct Spelling;

/// The operator, as far as it must be known before the search for layers.
pub const OPERATOR: Option<Operator> = Some(Operator {
    domain: "com.microsoft",
    name: "GroupQueryAttention",
    past: [3, 4],
    heads: ["num_heads", "kv_num_heads"],
});

/// `com.microsoft::GroupQueryAttention` of ONNX Runtime 1.32.
const SCHEMA: Schema = Schema {
    inputs: &[
        Read("query"),
        Read("key"),
        Read("value"),
        Read("past_key"),
        Read("past_value"),
        Read("seqlens_k"),
        Read("total_sequence_length"),
        Read("cos_cache"),
        Read("sin_cache"),
        Read("position_ids"),
        Read("attention_bias"),
        Absent("head_sink", "attention sinks: a score of each head that no key has"),
        Absent("k_scale", "the scale of a quantised key cache"),
        Absent("v_scale", "the scale of a quantised value cache"),
        Read("q_norm_weight"),
        Read("k_norm_weight"),
        Absent("query_seqlens", "the number of valid queries of each sequence"),
    ],
    outputs: &[
        Read("output"),
        Read("present_key"),
        Read("present_value"),
        Absent("output_qk", "the product of query and key"),
    ],
    attributes: &[
        ("num_heads", Attribute::Read),
        ("kv_num_heads", Attribute::Read),
        ("scale", Attribute::Read),
        ("softcap", Attribute::Read),
        ("local_window_size", Attribute::Read),
        ("sliding_window_cache", Attribute::Int(&[0, 1])),
        ("causal", Attribute::Int(&[0, 1])),
        ("do_rotary", Attribute::Int(&[0, 1])),
        ("rotary_interleaved", Attribute::Int(&[0, 1])),
        ("smooth_softmax", Attribute::Int(&[-1, 0])),
        ("qk_output", Attribute::Int(&[0])),
        ("qk_norm_epsilon", Attribute::Read),
        ("q_norm_epsilon", Attribute::Read),
        ("k_norm_epsilon", Attribute::Read),
        ("k_quant_type", Attribute::Text("NONE")),
        ("v_quant_type", Attribute::Text("NONE")),
        ("kv_cache_bit_width", Attribute::Int(&[0])),
    ],
};

/// As metadata names it.
pub const SOURCE: Source = Source::new("GroupQueryAttention");

impl Spell for Spelling {
    fn begins_at(&self, node: &NodeProto) -> bool {
        OPERATOR.is_some_and(|operator| operator.is(node))
    }

    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
        let node = &context.index.graph.node[n];
        let title = node.title();
        SCHEMA.check(node)?;
        let (query_heads, kv_heads) = (heads(node, "num_heads")?, heads(node, "kv_num_heads")?);
        let (cache, tensors, naming) = cache_on_node(context, node, 3, Some(kv_heads))?;
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
            source: SOURCE,
            name: base_name(node),
            doomed: [n].into_iter().chain(naming).collect(),
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

/// The attention_bias that SparkAttention takes.
fn added(tensor: &str) -> Bias {
    Bias { tensor: tensor.to_string(), masked: None, hides: false, cast: false, drop_axis: false, expand: false }
}

/// D from the width of the query, which has `heads` heads, or from the rotation tables.
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

fn rotary(context: &mut Context<'_>, node: &NodeProto, head_dim: usize) -> Result<Rotary, Refusal> {
    let (Some(cos), Some(sin)) = (node.input_at(7), node.input_at(8)) else {
        return Err(Refusal::new(node.title(), "cos_cache and sin_cache, since do_rotary is 1", "one of them missing"));
    };
    let expected = || format!("a cos_cache [positions,width/2] for a width of at most {head_dim} channels");
    let width = columns(context, cos).ok_or_else(|| {
        Refusal::new(node.title(), expected(), format!("'{cos}', whose width nothing says"))
    })?;
    let width = width.checked_mul(2).filter(|width| (1..=head_dim).contains(width));
    let width = width.ok_or_else(|| Refusal::new(node.title(), expected(), format!("'{cos}' of another width")))?;
    Ok(Rotary {
        caches: [cos.to_string(), sin.to_string()],
        positions: node.input_at(9).map(str::to_string),
        interleaved: node.int("rotary_interleaved").unwrap_or(0) != 0,
        width,
    })
}

/// Columns of a two-dimensional table, however it is made.
fn columns(context: &mut Context<'_>, table: &str) -> Option<usize> {
    let of_dims = |dims: &[i64]| dims.get(1).and_then(|&d| usize::try_from(d).ok());
    if let Some(tensor) = context.index.initializer(table) {
        return of_dims(&tensor.dims);
    }
    if let Some(width) = context.index.declared(table).and_then(|info| static_dim(info, 1)) {
        return Some(width);
    }
    if let Ok(shape) = context.shape(table) {
        return shape.get(1).copied();
    }
    let (n, output) = context.index.producer(table)?;
    let node = &context.index.graph.node[n];
    if node.is_onnx("Cast") || node.is_onnx("Identity") {
        return columns(context, node.input_at(0)?);
    }
    // Both tables of an If that chooses by the number of tokens have the same width.
    let branches = node.attribute.iter().filter(|_| node.is_onnx("If")).filter_map(|a| a.g.as_ref());
    let mut widths = branches.map(|graph| {
        let name = graph.output.get(output)?.name();
        let made = graph.node.iter().find(|node| node.output_at(0) == Some(name)).and_then(|node| node.tensor("value"));
        let stored = graph.initializer.iter().find(|tensor| tensor.name() == name);
        let declared = static_dim(&graph.output[output], 1);
        declared.or_else(|| of_dims(&made.or(stored)?.dims))
    });
    let first = widths.next()??;
    widths.all(|width| width == Some(first)).then_some(first)
}

/// local_window_size; 0 would hide even a query's own key.
fn window(node: &NodeProto) -> Result<i64, Refusal> {
    match node.int("local_window_size").unwrap_or(-1) {
        0 => Err(Refusal::new(node.title(), "local_window_size above 0, or -1 for none", "local_window_size = 0")),
        window => Ok(window.max(-1)),
    }
}

/// q_norm_weight and k_norm_weight, which normalise each head of query and key before rotation.
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
