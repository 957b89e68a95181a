//! Nodes in front of the operators, for what an attention node did to query and key itself.

use super::build::{Attribute, Builder, set_attribute};
use super::layer::{Layer, Norm};

/// Adds the nodes, if any, that make query, key and value of `layer`, and gives the names of
/// query, and of key and value unless they are packed.
pub fn front(builder: &mut Builder, layer: &Layer) -> (String, Option<[String; 2]>) {
    let Some(norm) = &layer.norm else { return (layer.query.clone(), layer.key_value.clone()) };
    let [query, key, value] = match &layer.key_value {
        Some([key, value]) => [layer.query.clone(), key.clone(), value.clone()],
        None => split(builder, layer),
    };
    let query = normalised(builder, layer, norm, 0, &query);
    let key = normalised(builder, layer, norm, 1, &key);
    (query, Some([key, value]))
}

/// Query, key and value of what has all three, `[B,L,(Hq+2Hk)*D]`.
fn split(builder: &mut Builder, layer: &Layer) -> [String; 3] {
    let base = format!("{}/unpacked", layer.name);
    let axis = builder.int64s(format!("{base}/axis"), &[1], &[2]);
    let [q, kv] = [layer.query_heads, layer.kv_heads].map(|heads| (heads * layer.head_dim) as i64);
    // Slice, unlike Split, is the same in all versions since 10.
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
