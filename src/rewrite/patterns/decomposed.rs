//! MatMul, Softmax, MatMul, as Optimum's TorchScript export and the dynamo exporter of torch.onnx write attention.

use super::super::context::{Context, USUAL};
use super::super::error::Refusal;
use super::super::heads::{Layout, follow, scaled_query};
use super::super::layer::{CacheTensors, Layer, Source};
use super::super::mask::{Mask, Masking, replace};
use super::{Pattern, base_name};
use crate::onnx::evaluate::kinds;
use crate::onnx::proto::NodeProto;
use crate::onnx::{Index, NodeExt};

pub struct Decomposed;

/// What stands between the product of query and key, and the softmax.
struct Scores {
    /// The product.
    product: usize,
    /// Factor of the product.
    scale: f64,
    /// The mask, and what stands where a boolean one is false.
    mask: Option<(String, f32)>,
}

impl Pattern for Decomposed {
    fn begins_at(&self, node: &NodeProto) -> bool {
        node.is_onnx("Softmax")
    }

    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
        let index = context.index;
        let softmax = &index.graph.node[n];
        let Some((result, probabilities)) = weighted_sum(index, softmax) else { return Ok(None) };
        let product = &index.graph.node[result];
        let title = product.title();
        let Some(value) = follow(context, &title, "value", &product.input[1], Layout::HeadsFirst)? else {
            return Ok(None);
        };
        if index.is_output(&softmax.output[0]) || index.is_output(&probabilities) {
            return Err(Refusal::new(title, "attention weights that stay inside", "an output of the model"));
        }
        if !matches!(softmax.int("axis"), None | Some(-1 | 3 | 4)) {
            return Err(Refusal::new(
                softmax.title(),
                "a softmax over keys",
                format!("axis {:?}", softmax.int("axis")),
            ));
        }
        let scores = scores(context, softmax)?;
        let qk = &index.graph.node[scores.product];
        let Some(key) = follow(context, &qk.title(), "key", &qk.input[1], Layout::Transposed)? else {
            return Err(Refusal::new(qk.title(), "the key from a cache, as the value is", "another second factor"));
        };
        let cached = |o: &super::super::heads::Operand| (o.kv_heads, o.head_dim, o.repeats);
        if cached(&key) != cached(&value) || value.scale != 1.0 {
            let found = format!("{:?} and {:?}, the value times {}", cached(&key), cached(&value), value.scale);
            return Err(Refusal::new(title, "key and value alike, the value not scaled", found));
        }
        let query_shape = context
            .shape(&qk.input[0])
            .map_err(|e| Refusal::new(qk.title(), "a query whose shape can be followed", &*e))?;
        let grouped = query_shape.len() == 5;
        let query_heads: usize = query_shape[1..query_shape.len().max(4) - 2].iter().product();
        if query_heads == 0
            || !query_heads.is_multiple_of(key.kv_heads)
            || key.repeats != 1 && query_heads != key.kv_heads * key.repeats
        {
            let found = format!("{query_heads} heads of the query, {} of the cache", key.kv_heads);
            return Err(Refusal::new(qk.title(), "query heads that share KV heads evenly", found));
        }
        let (query, query_scale) = query(context, &qk.input[0], query_heads, key.head_dim).ok_or_else(|| {
            Refusal::new(qk.title(), "a query [B,Hq,L,D] that is at most scaled", "another first factor")
        })?;
        let cache = &context.caches[&key.appended.past];
        let element = cache.element;
        if let Ok(value) = context.value(&query, USUAL[0])
            && value.kind != element
        {
            let found = format!("element types {} and {element}", value.kind);
            return Err(Refusal::new(qk.title(), "a query of the cache's type", found));
        }
        let masking = match &scores.mask {
            Some((tensor, masked)) => replace(context, Mask { tensor, masked: *masked }, element),
            None => Masking { causal: false, bias: None },
        };
        let (kv_heads, head_dim) = (key.kv_heads, key.head_dim);
        let groups = (query_heads / kv_heads) as i64;
        Ok(Some(Layer {
            source: Source::Decomposed,
            name: base_name(product),
            doomed: vec![result, key.appended.node, value.appended.node],
            query,
            token_axis: 2,
            key_value: Some([key.appended.new, value.appended.new]),
            cache: CacheTensors {
                past: [key.appended.past, value.appended.past],
                present: [key.appended.present, value.appended.present],
            },
            lengths: None,
            rotary: None,
            bias: masking.bias,
            query_heads,
            kv_heads,
            head_dim,
            scale: (scores.scale * query_scale * key.scale) as f32,
            softcap: 0.0,
            window: -1,
            causal: masking.causal,
            output: product.output[0].clone(),
            output_shape: grouped.then(|| vec![0, kv_heads as i64, groups, -1, head_dim as i64]),
            element,
            title,
        }))
    }
}

/// The product of what `softmax` makes and something, past guards against NaN; and its first factor.
fn weighted_sum(index: &Index<'_>, softmax: &NodeProto) -> Option<(usize, String)> {
    let mut tensor = softmax.output_at(0)?;
    loop {
        let readers = index.readers(tensor);
        let node = |n: usize| &index.graph.node[n];
        match *readers {
            [n] if node(n).is_onnx("MatMul") && node(n).input_at(0) == Some(tensor) => {
                return Some((n, tensor.to_string()));
            }
            [n] if ["Cast", "Identity", "Dropout"].iter().any(|o| node(n).is_onnx(o)) => {
                tensor = node(n).output_at(0)?
            }
            [a, b] => {
                let (guard, choice) = if node(a).is_onnx("IsNaN") { (node(a), node(b)) } else { (node(b), node(a)) };
                let guarded = guard.is_onnx("IsNaN")
                    && choice.is_onnx("Where")
                    && choice.input_at(0) == guard.output_at(0)
                    && choice.input_at(2) == Some(tensor);
                tensor = choice.output_at(0).filter(|_| guarded)?;
            }
            _ => return None,
        }
    }
}

/// Follows what `softmax` reads up to a product.
fn scores(context: &mut Context<'_>, softmax: &NodeProto) -> Result<Scores, Refusal> {
    let index = context.index;
    let (mut scale, mut mask) = (1.0, None);
    let mut tensor = softmax.input_at(0).unwrap_or_default();
    loop {
        let refuse = |found: String| {
            let expected = "a product of query and key, scaled and masked, before the softmax";
            Refusal::new(softmax.title(), expected, found)
        };
        let (n, node) = match index.producer(tensor) {
            Some((n, _)) => (n, &index.graph.node[n]),
            None => return Err(refuse(format!("'{tensor}'"))),
        };
        let (a, b) = (node.input_at(0).unwrap_or_default(), node.input_at(1).unwrap_or_default());
        match node.op_type() {
            "MatMul" => return Ok(Scores { product: n, scale, mask }),
            "Cast" | "Identity" => tensor = a,
            "Mul" | "Div" => match (context.constant(a), context.constant(b)) {
                (_, Some(factor)) => {
                    scale *= if node.op_type() == "Mul" { factor } else { 1.0 / factor };
                    tensor = a;
                }
                (Some(factor), _) if node.op_type() == "Mul" => (scale, tensor) = (scale * factor, b),
                _ => return Err(refuse(format!("{} by something that is no number", node.title()))),
            },
            "Add" | "Where" if mask.is_some() => return Err(refuse(format!("a second mask, {}", node.title()))),
            // A scale before the mask is one of the product alone, after it one of the mask too.
            "Add" | "Where" if scale != 1.0 => return Err(refuse(format!("a scaled mask, {}", node.title()))),
            "Add" => {
                let (scores, added) = if leads_to_product(index, a) { (a, b) } else { (b, a) };
                mask = Some((added.to_string(), f32::NEG_INFINITY));
                tensor = scores;
            }
            "Where" => {
                let low = node.input_at(2).and_then(|t| context.constant(t)).filter(|&low| low <= -1e4);
                let boolean = context.value(a, USUAL[0]).is_ok_and(|v| v.kind == kinds::BOOL);
                let (Some(low), true) = (low, boolean) else {
                    return Err(refuse(format!("{}, which is no Where(mask, scores, lowest)", node.title())));
                };
                mask = Some((a.to_string(), low as f32));
                tensor = b;
            }
            _ => return Err(refuse(node.title())),
        }
    }
}

fn leads_to_product(index: &Index<'_>, tensor: &str) -> bool {
    let mut tensor = tensor;
    while let Some(node) = index.maker(tensor) {
        match node.op_type() {
            "MatMul" => return true,
            "Mul" | "Div" | "Cast" | "Identity" | "Add" => {}
            _ => return false,
        }
        // Where both sides are made by nodes, the number of a scale comes from a Constant.
        let constant = |t: &str| index.maker(t).is_none_or(|n| n.is_onnx("Constant"));
        let next = node.input.iter().map(String::as_str).find(|t| !constant(t));
        match next {
            Some(next) => tensor = next,
            None => return false,
        }
    }
    false
}

/// The tensor `[B,Hq,L,D]` of which `operand` is a multiple, and the factor.
fn query(context: &mut Context<'_>, operand: &str, heads: usize, head_dim: usize) -> Option<(String, f64)> {
    let mut best = None;
    let mut tensor = operand;
    loop {
        let four = context.shape(tensor).ok().is_some_and(|s| s.len() == 4 && s[1] == heads && s[3] == head_dim);
        if four && let Some(scale) = scaled_query(context, tensor, operand, heads, head_dim) {
            best = Some((tensor.to_string(), scale));
        }
        let Some(node) = context.index.maker(tensor) else { return best };
        let (a, b) = (node.input_at(0)?, node.input_at(1));
        let numbers = |context: &mut Context<'_>, t: Option<&str>| t.is_some_and(|t| context.constant(t).is_some());
        tensor = match node.op_type() {
            "Mul" | "Div" if numbers(context, b) => a,
            "Mul" if numbers(context, Some(a)) => b?,
            "Identity" | "Reshape" | "Unsqueeze" if best.is_none() || node.op_type() == "Identity" => a,
            _ => return best,
        };
    }
}
