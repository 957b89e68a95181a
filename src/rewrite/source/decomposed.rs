//! Attention as MatMul, Softmax, MatMul, as written by Optimum's TorchScript export and the dynamo exporter of
//! torch.onnx.

use std::collections::HashSet;

use super::super::context::{Context, HIDDEN, USUAL};
use super::super::diagnosis::why_unknown;
use super::super::error::Refusal;
use super::super::heads::{Layout, Operand, alike, appended, follow, scaled_query};
use super::super::operator::Operator;
use super::super::layer::{Layer, Source};
use super::super::mask::{Mask, replace};
use super::{Spell, base_name};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub struct Spelling;

/// The steps between the product of query and key, and the softmax.
struct Scores {
    /// The product.
    product: usize,
    /// Factor of the product.
    scale: f64,
    /// Limit that a tanh sets on the scaled product, 0: none.
    softcap: f64,
    /// Masks, which are added up.
    masks: Vec<Mask>,
}

/// Not a single operator.
pub const OPERATOR: Option<Operator> = None;

/// As metadata names it.
const NAME: &str = "decomposed";

impl Spell for Spelling {
    fn begins_at(&self, node: &NodeProto) -> bool {
        node.is_onnx("Softmax")
    }

    fn check(&self, context: &mut Context<'_>, n: usize) -> Result<Option<Layer>, Refusal> {
        let index = context.index;
        let softmax = &index.graph.node[n];
        let Some((result, probabilities)) = weighted_sum(context, softmax) else { return Ok(None) };
        let product = &index.graph.node[result];
        let title = product.title();
        let Some(value) = follow(context, &title, "value", &product.input[1], Layout::HeadsFirst)? else {
            return Ok(None);
        };
        if index.is_output(&softmax.output[0]) || index.is_output(&probabilities) {
            return Err(Refusal::new(title, "attention weights that stay inside", "an output of the model"));
        }
        over_keys(context, softmax)?;
        let scores = scores(context, softmax)?;
        let qk = &index.graph.node[scores.product];
        let layout = if qk.int("transB") == Some(1) { Layout::HeadsFirst } else { Layout::Transposed };
        let Some(key) = follow(context, &qk.title(), "key", &qk.input[1], layout)? else {
            let found = context.behind(&qk.input[1]).map(|cache| format!("'{cache}': {}", why_unknown(index, cache)));
            let found = found.unwrap_or_else(|| format!("'{}', which comes from none", qk.input[1]));
            return Err(Refusal::new(qk.title(), "the key from a cache, as the value is", found));
        };
        let [key, value] = alike(&title, key, value)?;
        let (query_heads, grouped) = query_heads(context, qk, &key)?;
        let operand = &qk.input[0];
        let known = query(context, operand, query_heads, key.head_dim);
        // Of unknown shape: taken as it is, including its scaling.
        let known = known.or_else(|| context.shape(operand).is_err().then(|| (operand.clone(), 1.0)));
        let (query, query_scale) = known.ok_or_else(|| {
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
        let masking = replace(context, &title, &scores.masks, element, grouped)?;
        let (kv_heads, head_dim, key_scale) = (key.kv_heads, key.head_dim, key.scale);
        let (nodes, cache, new) = appended([key, value]);
        let groups = (query_heads / kv_heads) as i64;
        Ok(Some(Layer {
            source: Source::new(NAME),
            name: base_name(product),
            doomed: [result].into_iter().chain(nodes).collect(),
            query,
            token_axis: 2,
            key_value: Some(new),
            cache,
            lengths: None,
            rotary: None,
            bias: masking.bias,
            query_heads,
            kv_heads,
            head_dim,
            scale: super::usable_scale(qk, scores.scale * query_scale * key_scale)?,
            softcap: scores.softcap as f32,
            window: -1,
            causal: masking.causal,
            norm: None,
            windowed_cache: false,
            output: product.output[0].clone(),
            output_shape: grouped.then(|| vec![0, kv_heads as i64, groups, -1, head_dim as i64]),
            element,
            title,
        }))
    }
}

/// The number of query heads of `qk`, and whether they are grouped by KV head, `[B,Hk,G,L,D]`.
fn query_heads(context: &mut Context<'_>, qk: &NodeProto, key: &Operand) -> Result<(usize, bool), Refusal> {
    let key_heads = key.kv_heads * key.repeats;
    let query_shape = match context.shape(&qk.input[0]) {
        Ok(shape) => shape,
        // After nodes that cannot be evaluated: as many heads as the key has, unless one KV head may serve several.
        Err(_) if key_heads > 1 && context.shape(&qk.input[1]).is_ok_and(|shape| shape.len() == 4) => {
            return Ok((key_heads, false));
        }
        Err(e) => return Err(Refusal::new(qk.title(), "a query whose shape can be followed", &*e)),
    };
    let query_heads = match query_shape[..] {
        [_, heads, _, _] => heads,
        [_, heads, groups, _, _] => heads.saturating_mul(groups),
        _ => {
            let found = format!("'{}' of {} dimensions", qk.input[0], query_shape.len());
            return Err(Refusal::new(qk.title(), "a query of four or five dimensions", found));
        }
    };
    let grouped = query_shape.len() == 5;
    if query_heads == 0
        || !query_heads.is_multiple_of(key.kv_heads)
        || key.repeats != 1 && query_heads != key.kv_heads * key.repeats
    {
        let found = format!("{query_heads} heads of the query, {} of the cache", key.kv_heads);
        return Err(Refusal::new(qk.title(), "query heads that share KV heads evenly", found));
    }
    Ok((query_heads, grouped))
}

/// Whether `node` multiplies two tensors of heads: ONNX's MatMul, or the FusedMatMul of ONNX Runtime's optimiser,
/// whose second factor may be transposed.
fn is_product(node: &NodeProto) -> bool {
    let fused = node.is("com.microsoft", "FusedMatMul")
        && ["transA", "transBatchA", "transBatchB"].iter().all(|name| node.int(name).unwrap_or(0) == 0);
    (fused || node.is_onnx("MatMul")) && node.input.len() == 2
}

/// Whether it also scales the product.
fn has_factor(node: &NodeProto) -> bool {
    node.float("alpha").unwrap_or(1.0) != 1.0 || node.int("transB").unwrap_or(0) != 0
}

/// Refuses a `softmax` that is not over the last dimension, where scores have their keys.
fn over_keys(context: &mut Context<'_>, softmax: &NodeProto) -> Result<(), Refusal> {
    let scores = softmax.input_at(0).unwrap_or_default();
    let found = match softmax.int("axis") {
        Some(-1) => return Ok(()),
        None if context.opset >= 13 => return Ok(()),
        Some(axis) => match context.shape(scores) {
            Ok(shape) if usize::try_from(axis).is_ok_and(|axis| axis + 1 == shape.len()) => return Ok(()),
            _ => format!("axis {axis}"),
        },
        None => "no axis, which before opset 13 means 1".to_string(),
    };
    Err(Refusal::new(softmax.title(), "a softmax over keys, the last axis", found))
}

/// The product of the output of `softmax`, after any guards against NaN, with another tensor; and the softmax factor.
fn weighted_sum(context: &mut Context<'_>, softmax: &NodeProto) -> Option<(usize, String)> {
    let index = context.index;
    let mut tensor = softmax.output_at(0)?;
    loop {
        let readers = index.readers(tensor);
        let node = |n: usize| &index.graph.node[n];
        match *readers {
            [n] if is_product(node(n)) && !has_factor(node(n)) && node(n).input[0] == tensor => {
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
                    && context.constant(choice.input_at(1)?) == Some(0.0)
                    && choice.input_at(2) == Some(tensor);
                tensor = choice.output_at(0).filter(|_| guarded)?;
            }
            _ => return None,
        }
    }
}

/// Follows the input of `softmax` back to a product.
fn scores(context: &mut Context<'_>, softmax: &NodeProto) -> Result<Scores, Refusal> {
    let index = context.index;
    let (mut scale, mut softcap, mut masks) = (1.0, 0.0, Vec::new());
    let mut tensor = softmax.input_at(0).unwrap_or_default();
    loop {
        let refuse = |found: String| {
            let expected = "a product of query and key, scaled and masked, before the softmax";
            Refusal::new(softmax.title(), expected, found)
        };
        let (n, node) = match index.producer(tensor) {
            Some((n, _)) if context.constants.may_follow(1) => (n, &index.graph.node[n]),
            _ => return Err(refuse(format!("'{tensor}'"))),
        };
        let (a, b) = (node.input_at(0).unwrap_or_default(), node.input_at(1).unwrap_or_default());
        match node.op_type() {
            _ if is_product(node) => {
                let scale = scale * f64::from(node.float("alpha").unwrap_or(1.0));
                // The tanh is applied to the product divided by the limit.
                let scale = if softcap > 0.0 { scale * softcap } else { scale };
                return Ok(Scores { product: n, scale, softcap, masks });
            },
            "Cast" | "Identity" => tensor = a,
            "Tanh" if softcap == 0.0 && scale > 0.0 => (softcap, scale, tensor) = (scale, 1.0, a),
            "Add" | "Where" if softcap != 0.0 => {
                return Err(refuse(format!("a mask inside of a tanh, {}", node.title())));
            }
            "Mul" | "Div" => match (context.constant(a), context.constant(b)) {
                (_, Some(factor)) => {
                    scale *= if node.op_type() == "Mul" { factor } else { 1.0 / factor };
                    tensor = a;
                }
                (Some(factor), _) if node.op_type() == "Mul" => (scale, tensor) = (scale * factor, b),
                _ => return Err(refuse(format!("{} by something that is no number", node.title()))),
            },
            "Add" if leads_to_product(context, a) && leads_to_product(context, b) => {
                let found = "a sum of two products, as multi-head latent attention has it: it is not supported";
                return Err(refuse(format!("{}, {found}", node.title())));
            }
            // A scale before the mask applies to the product only, one after it also to the mask.
            "Add" | "Where" if scale != 1.0 => return Err(refuse(format!("a scaled mask, {}", node.title()))),
            "Add" => {
                let (scores, added) = if leads_to_product(context, a) { (a, b) } else { (b, a) };
                masks.push(Mask::new(added));
                tensor = scores;
            }
            "Where" => {
                let c = node.input_at(2).unwrap_or_default();
                let mut lowest = |t: &str| context.constant(t).filter(|&low| low <= HIDDEN);
                let (low, hides) = match (lowest(b), lowest(c)) {
                    (None, Some(low)) => (low, false),
                    (Some(low), None) => (low, true),
                    _ => {
                        let expected = "Where(mask, scores, lowest) or Where(mask, lowest, scores)";
                        return Err(refuse(format!("{}, which is neither {expected}", node.title())));
                    }
                };
                masks.push(Mask { tensor: a.to_string(), low: low as f32, hides });
                tensor = if hides { c } else { b };
            }
            _ => return Err(refuse(node.title())),
        }
    }
}

/// Whether `tensor` is a product with a cached key, scaled and masked or not.
fn leads_to_product(context: &Context<'_>, tensor: &str) -> bool {
    let (mut seen, mut queue) = (HashSet::new(), vec![tensor]);
    while let Some(name) = queue.pop() {
        let Some(node) = context.index.maker(name).filter(|_| context.constants.may_follow(1)) else { continue };
        match node.op_type() {
            "MatMul" | "FusedMatMul" if node.input_at(1).is_some_and(|key| !context.origins(key).is_empty()) => {
                return true;
            }
            "Mul" | "Div" | "Cast" | "Identity" | "Add" | "Where" | "Tanh" => {
                queue.extend(node.input.iter().map(String::as_str).filter(|&name| seen.insert(name)));
            }
            _ => {}
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
        let Some(node) = context.index.maker(tensor).filter(|_| context.constants.may_follow(1)) else { return best };
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
