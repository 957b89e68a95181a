//! Nodes in front of the operators, for steps that an attention node applied to query and key itself.

use std::collections::HashMap;

use super::build::{Attribute, Builder, set_attribute};
use super::layer::{Layer, Norm, Rotary};

/// Query, and key and value unless they are packed in it.
pub type Operands = (String, Option<[String; 2]>);

/// Adds the nodes, if any, that make query, key and value of `layer`. Returns the names of query, and of key and value
/// unless they are packed. Layers with the same lengths share `positions`.
pub fn front(builder: &mut Builder, layer: &Layer, positions: &mut HashMap<String, String>) -> Operands {
    if layer.norm.is_none() && layer.rotary_in_front().is_none() {
        return (layer.query.clone(), layer.key_value.clone());
    }
    let [mut query, mut key, value] = match &layer.key_value {
        Some([key, value]) => [layer.query.clone(), key.clone(), value.clone()],
        None => split(builder, layer),
    };
    if let Some(norm) = &layer.norm {
        query = normalised(builder, layer, norm, 0, &query);
        key = normalised(builder, layer, norm, 1, &key);
    }
    if let Some(rotary) = layer.rotary_in_front() {
        let positions = match &rotary.positions {
            Some(given) => given.clone(),
            None => {
                let seqlens = layer.lengths.as_ref().map(|lengths| lengths[0].clone()).unwrap_or_default();
                positions.entry(seqlens).or_insert_with_key(|seqlens| positions_of(builder, layer, seqlens)).clone()
            }
        };
        query = rotated(builder, layer, rotary, 0, [&query, &positions]);
        key = rotated(builder, layer, rotary, 1, [&key, &positions]);
    }
    (query, Some([key, value]))
}

/// The heads of query (`part` 0) or key (1), `[B,L,H*D]`, rotated at their positions `[B,L]`.
fn rotated(builder: &mut Builder, layer: &Layer, rotary: &Rotary, part: usize, [tensor, at]: [&str; 2]) -> String {
    let base = format!("{}/{}_rotation", layer.name, ["query", "key"][part]);
    let heads = if part == 0 { layer.query_heads } else { layer.kv_heads };
    let [cos, sin] = &rotary.caches;
    let output = builder.add(&base, "RotaryEmbedding", &[tensor, at, cos, sin]);
    let node = builder.last();
    node.set_domain("com.microsoft".into());
    set_attribute(node, "num_heads", Attribute::Int(heads as i64));
    set_attribute(node, "rotary_embedding_dim", Attribute::Int(rotary.width as i64));
    set_attribute(node, "interleaved", Attribute::Int(rotary.interleaved.into()));
    output
}

/// The positions `[B,L]` that GroupQueryAttention gives new tokens: those after the past of each sequence.
fn positions_of(builder: &mut Builder, layer: &Layer, seqlens: &str) -> String {
    let base = format!("{}/positions", layer.name);
    let [zero, one, axis] =
        [0, 1, layer.token_axis as i64].map(|n| builder.int64s(format!("{base}/number"), &[], &[n]));
    let column = builder.int64s(format!("{base}/column"), &[2], &[-1, 1]);
    let shape = builder.add(&base, "Shape", &[&layer.query]);
    let tokens = builder.add(&base, "Gather", &[&shape, &axis]);
    let last = builder.add(&base, "Cast", &[seqlens]);
    set_attribute(builder.last(), "to", Attribute::Int(7));
    let total = builder.add(&base, "Add", &[&last, &one]);
    // A first prompt may be padded on the right: then a sequence has fewer tokens than the call, and no past.
    let past = builder.add(&base, "Sub", &[&total, &tokens]);
    let past = builder.add(&base, "Max", &[&past, &zero]);
    let past = builder.add(&base, "Reshape", &[&past, &column]);
    let new = builder.add(&base, "Range", &[&zero, &tokens, &one]);
    builder.add(&base, "Add", &[&past, &new])
}

/// Splits packed query, key and value, `[B,L,(Hq+2Hk)*D]`.
fn split(builder: &mut Builder, layer: &Layer) -> [String; 3] {
    let base = format!("{}/unpacked", layer.name);
    let axis = builder.int64s(format!("{base}/axis"), &[1], &[2]);
    let [q, kv] = [layer.query_heads, layer.kv_heads].map(|heads| (heads * layer.head_dim) as i64);
    // Slice, unlike Split, has not changed since opset 10.
    [0..q, q..q + kv, q + kv..q + 2 * kv].map(|part| {
        let [start, end] = [part.start, part.end].map(|at| builder.int64s(format!("{base}/channel"), &[1], &[at]));
        builder.add(&base, "Slice", &[&layer.query, &start, &end, &axis])
    })
}

/// The heads of `tensor`, query (`part` 0) or key (1), `[B,L,H*D]`, each normalised.
fn normalised(builder: &mut Builder, layer: &Layer, norm: &Norm, part: usize, tensor: &str) -> String {
    let base = format!("{}/{}_norm", layer.name, ["query", "key"][part]);
    let size = layer.head_dim as i64;
    let heads = if part == 0 { layer.query_heads } else { layer.kv_heads } as i64;
    let apart = builder.int64s(format!("{base}/heads"), &[4], &[0, 0, heads, size]);
    let joined = builder.int64s(format!("{base}/width"), &[3], &[0, 0, heads * size]);
    let rows = builder.add(&base, "Reshape", &[tensor, &apart]);
    let rows = builder.add(&base, "SimplifiedLayerNormalization", &[&rows, &norm.weights[part]]);
    set_attribute(builder.last(), "axis", Attribute::Int(-1));
    set_attribute(builder.last(), "epsilon", Attribute::Float(norm.epsilons[part]));
    set_attribute(builder.last(), "stash_type", Attribute::Int(1));
    builder.add(&base, "Reshape", &[&rows, &joined])
}
