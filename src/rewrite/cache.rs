//! Which graph inputs are KV caches: those that attention reads as its past. Other states of a model, such as those of
//! convolutions and recurrences, are not caches and stay as they are.

use super::operator::Operator;
use super::sizes::{rank, static_dim};
use crate::onnx::proto::{NodeProto, ValueInfoProto};
use crate::onnx::{Index, NodeExt};

/// A graph input that is a cache.
#[derive(Clone, Debug)]
pub struct CacheInput {
    /// Element type in which attention reads it, possibly after a Cast.
    pub element: i32,
    /// Hk, where declared.
    pub kv_heads: Option<usize>,
    /// D, where declared.
    pub head_dim: Option<usize>,
}

impl CacheInput {
    /// `input` as a cache. `None` if it is not one: nothing reads it as the past of attention, and it is not a growing
    /// input with the name of a cache.
    pub fn of(index: &Index<'_>, input: &ValueInfoProto, operators: &[Option<Operator>]) -> Option<Self> {
        let declared = input.type_.tensor_type().elem_type();
        if !is_floating(declared) || rank(input) != Some(4) {
            return None;
        }
        let read = read_as_past(index, input.name(), declared, operators);
        let element = read.or_else(|| looks_like_cache(input).then_some(declared))?;
        Some(Self { element, kv_heads: static_dim(input, 1), head_dim: static_dim(input, 3) })
    }
}

/// Whether `node` passes its first input on, changing at most its type.
pub fn passes_on(node: &NodeProto) -> bool {
    node.is_onnx("Identity") || node.is_onnx("Cast")
}

/// The tensor that `tensor` comes from through Identity and Cast.
pub fn origin<'a>(index: &Index<'a>, tensor: &'a str) -> &'a str {
    let mut tensor = tensor;
    while let Some(node) = index.maker(tensor).filter(|node| passes_on(node)) {
        match node.input_at(0) {
            Some(input) => tensor = input,
            None => break,
        }
    }
    tensor
}

/// Whether `input` has the name of a cache and a variable number of tokens.
pub fn looks_like_cache(input: &ValueInfoProto) -> bool {
    is_cache_name(input.name()) && static_dim(input, 2).is_none()
}

/// Whether a graph input of this name is a cache, as exporters name them.
pub fn is_cache_name(name: &str) -> bool {
    name.contains("past") || name.contains("cache")
}

/// Whether `node` concatenates tensors `[B,H,tokens,D]` along their tokens.
pub fn joins_tokens(node: &NodeProto) -> bool {
    node.is_onnx("Concat") && matches!(node.int("axis"), Some(2 | -2))
}

/// Whether `node` multiplies two matrices, whichever way they are turned.
pub fn is_matrix_product(node: &NodeProto) -> bool {
    node.is_onnx("MatMul") || node.is("com.microsoft", "FusedMatMul")
}

fn is_floating(element: i32) -> bool {
    matches!(element, 1 | 10 | 11 | 16)
}

/// The element type in which attention reads `tensor` as its past, if it does.
fn read_as_past(index: &Index<'_>, tensor: &str, element: i32, operators: &[Option<Operator>]) -> Option<i32> {
    index.readers(tensor).iter().find_map(|&n| {
        let node = &index.graph.node[n];
        if passes_on(node) {
            let to = node.int("to").and_then(|to| i32::try_from(to).ok()).unwrap_or(element);
            return is_floating(to).then(|| read_as_past(index, node.output_at(0)?, to, operators)).flatten();
        }
        let is_past = match operators.iter().flatten().find(|o| o.is(node)) {
            Some(operator) => operator.reads_past(node, tensor),
            None => joins_tokens(node) && node.input_at(0) == Some(tensor),
        };
        is_past.then_some(element)
    })
}
