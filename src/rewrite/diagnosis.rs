//! Why no known kind of attention reads a cache: describes the first node after it that cannot be rewritten.

use std::collections::{HashSet, VecDeque};

use super::cache::{is_matrix_product, joins_tokens, looks_like_cache, origin, passes_on};
use super::sizes::rank;
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{Index, NodeExt};

/// Most nodes after a cache that are examined.
const MOST_NODES: usize = 64;

/// How the input `cache` is read, when not by a known kind of attention.
pub fn why_unknown(index: &Index<'_>, cache: &str) -> String {
    let (mut seen, mut queue) = (HashSet::new(), VecDeque::from([(cache, false, false)]));
    let mut first: Option<&NodeProto> = None;
    while let Some((tensor, joined, multiplied)) = queue.pop_front() {
        for &n in index.readers(tensor) {
            let node = &index.graph.node[n];
            if node.is_onnx("Shape") || !seen.insert(n) || seen.len() > MOST_NODES {
                continue;
            }
            first = first.or(Some(node).filter(|node| !passes_on(node)));
            if let Some(reason) = reason(index, node, tensor, joined, multiplied) {
                return reason;
            }
            if node.is_onnx("Softmax") {
                continue;
            }
            let joined = joined || node.is_onnx("Concat");
            let multiplied = multiplied || is_product(node);
            queue.extend(node.output.iter().map(|output| (output.as_str(), joined, multiplied)));
        }
    }
    match first {
        Some(node) => format!("it is read by {}, and what follows is no attention that is known", node.title()),
        None => "nothing reads its elements".into(),
    }
}

/// Why `node` is not supported as a reader of `tensor`, which comes from a cache, appended to or not, multiplied or
/// not.
fn reason(index: &Index<'_>, node: &NodeProto, tensor: &str, joined: bool, multiplied: bool) -> Option<String> {
    let title = node.title();
    if joined && !multiplied && is_projection(index, node, tensor) {
        return Some(format!(
            "multi-head latent attention, {title}: a projection makes keys and values of what is cached, which is \
             not supported"
        ));
    }
    match node.op_type() {
        "If" | "Loop" | "Scan" => Some(format!(
            "it is read within {title}: a merged decoder, which holds models with and without past; rewrite the one \
             with past (Optimum: --no-post-process, decoder_with_past_model.onnx)"
        )),
        operator if operator.contains("Quantize") || operator.contains("Integer") || operator.contains("QLinear") => {
            Some(format!("quantised attention, {title}: rewrite the model before attention is quantised"))
        }
        operator if operator.starts_with("Scatter") || operator == "TensorScatter" => {
            Some(format!("{title} writes new rows into it, at places that the host gives: export a cache that grows"))
        }
        "Gather" | "GatherElements" if !joined => Some(format!(
            "{title} chooses among its rows, as for beams, before new ones are appended: let the host do that"
        )),
        "Concat" if multiplied && meets_softmax(index, node, 4) => {
            Some(format!("attention sinks, {title}: a score that no key has joins the others"))
        }
        "Concat" if !joined => not_appended(index, node, tensor),
        _ => None,
    }
}

/// Why a Concat does not append to the cache `tensor`.
fn not_appended(index: &Index<'_>, node: &NodeProto, tensor: &str) -> Option<String> {
    let (title, output) = (node.title(), node.output_at(0)?);
    if !joins_tokens(node) {
        let axis = node.int("axis").map_or("no axis".into(), |axis| format!("axis {axis}"));
        return Some(format!(
            "{title} appends along {axis}; a cache [batch, heads, tokens, head size] grows along axis 2"
        ));
    }
    if node.input_at(0) != Some(tensor) {
        return Some(format!("{title} puts it behind something else, not new rows behind it"));
    }
    let mut readers = index.readers(output).iter().map(|&n| &index.graph.node[n]);
    if index.is_output(output) || readers.clone().any(passes_on) {
        return None;
    }
    match readers.find(|reader| reader.output.iter().any(|output| index.is_output(output))) {
        Some(reader) => Some(format!(
            "the model's output is not the cache with its new rows, but what {} makes of it: \
             export a cache that stays whole",
            reader.title()
        )),
        None => Some(format!(
            "what {title} makes is no output of the model, which gives new rows alone: \
             export present keys and values whole"
        )),
    }
}

/// Whether a Softmax follows within `steps` of `node`.
fn meets_softmax(index: &Index<'_>, node: &NodeProto, steps: usize) -> bool {
    let mut readers = node.output.iter().flat_map(|output| index.readers(output)).map(|&n| &index.graph.node[n]);
    steps > 0 && readers.any(|reader| reader.is_onnx("Softmax") || meets_softmax(index, reader, steps - 1))
}

/// Whether `node` multiplies `tensor` by weights.
fn is_projection(index: &Index<'_>, node: &NodeProto, tensor: &str) -> bool {
    let weights = node.input_at(1).map(|weights| origin(index, weights));
    let stored =
        |name: &str| index.initializer(name).is_some() || index.maker(name).is_some_and(|n| is_stored(index, n));
    node.input_at(0) == Some(tensor)
        && weights.is_some_and(stored)
        && (is_product(node) || node.op_type() == "MatMulNBits")
}

/// Whether the output of `node` is stored weights, possibly stored as integers.
fn is_stored(index: &Index<'_>, node: &NodeProto) -> bool {
    let rounded = node.is_onnx("DequantizeLinear") && node.input_at(0).is_some_and(|i| index.initializer(i).is_some());
    node.is_onnx("Constant") || rounded
}

fn is_product(node: &NodeProto) -> bool {
    is_matrix_product(node) || node.is_onnx("Einsum")
}

/// What a model without caches has instead.
pub fn no_caches(graph: &GraphProto) -> String {
    let name = |name: &str| name.contains("past") || name.contains("cache_k") || name.contains("kv");
    let odd = graph.input.iter().find(|input| name(input.name()) && rank(input) != Some(4));
    match odd {
        Some(input) => {
            let dimensions = rank(input).map_or("no declared shape".into(), |rank| format!("{rank} dimensions"));
            format!(
                "no input that is one; '{}' has {dimensions}. Caches are known as keys and values of each layer apart, \
                 [batch, heads, tokens, head size]",
                input.name()
            )
        }
        None if graph.input.iter().any(looks_like_cache) => "none".into(),
        None => "no past inputs: export the model with its KV cache (Optimum: --task text-generation-with-past)".into(),
    }
}
