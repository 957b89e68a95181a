//! Attention in statically quantised models: keys, scores, probabilities and values each pass through int8. The
//! operators compute attention in float, so QuantizeLinear and DequantizeLinear between a cache and the result of
//! attention are removed, including those of masks. Those of weights, queries, new keys and values, and results stay.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::cache::{is_matrix_product, joins_tokens, passes_on};
use super::operator::Operator;
use super::sizes::rank;
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{Index, NodeExt, remove_nodes};

/// How far along the path from a cache a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The cache.
    Past,
    /// The cache with new rows appended.
    Rows,
    /// Products, before the softmax.
    Scores,
    /// After the softmax.
    Probabilities,
}

type Place<'g> = (&'g str, Stage);

/// Removes the roundings of attention from `graph`, whose nodes are in order; returns how many there were.
pub fn remove_roundings(graph: &mut GraphProto, operators: &[Option<Operator>]) -> usize {
    let Ok(index) = Index::new(graph) else { return 0 };
    let roundings = roundings(&index, operators);
    let passed: HashMap<String, String> = roundings
        .iter()
        .map(|&n| &graph.node[n])
        .filter_map(|node| Some((node.output_at(0)?.to_string(), node.input_at(0)?.to_string())))
        .collect();
    for node in graph.node.iter_mut().filter(|node| node.is_onnx("DequantizeLinear")) {
        if let Some(float) = node.input.first().and_then(|rounded| passed.get(rounded)) {
            node.input = vec![float.clone()];
            node.set_op_type("Identity".into());
            node.attribute.clear();
        }
    }
    remove_nodes(graph, &roundings);
    roundings.len()
}

/// The QuantizeLinear nodes between caches and the results of attention.
fn roundings(index: &Index<'_>, operators: &[Option<Operator>]) -> Vec<usize> {
    let caches = index.graph.input.iter().filter(|input| rank(input) == Some(4));
    let mut queue: Vec<Place<'_>> = caches.map(|input| (input.name(), Stage::Past)).collect();
    let mut seen: HashSet<Place<'_>> = queue.iter().copied().collect();
    // How each place is reached, and through which rounding.
    let mut ways: HashMap<Place<'_>, Vec<(Place<'_>, Option<usize>)>> = HashMap::new();
    let mut ends = Vec::new();
    while let Some(place) = queue.pop() {
        let (tensor, stage) = place;
        if stage == Stage::Rows && index.is_output(tensor) {
            ends.push(place);
        }
        for &n in index.readers(tensor) {
            let node = &index.graph.node[n];
            // Keys with a query, or probabilities with values.
            if matches!(stage, Stage::Rows | Stage::Probabilities) && is_matrix_product(node) {
                ends.push(place);
            }
            let (behind, rounding) = match rounded(index, n) {
                Some(floats) => (floats.into_iter().map(|float| (float, stage)).collect(), Some(n)),
                None if operators
                    .iter()
                    .flatten()
                    .any(|o| o.is(node) && (stage == Stage::Rows || o.reads_past(node, tensor))) =>
                {
                    ends.push(place);
                    continue;
                }
                None => (after(node, tensor, stage).into_iter().collect::<Vec<_>>(), None),
            };
            for next in behind {
                let ways = ways.entry(next).or_default();
                ways.push((place, rounding));
                if stage == Stage::Scores && rounding.is_none() {
                    let masks = node.input.iter().filter(|&input| input != tensor);
                    ways.extend(masks.filter_map(|mask| Some((place, Some(rounding_of(index, mask)?)))));
                }
                if seen.insert(next) {
                    queue.push(next);
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    let mut on_the_way: HashSet<Place<'_>> = ends.iter().copied().collect();
    while let Some(place) = ends.pop() {
        for &(before, rounding) in ways.get(&place).into_iter().flatten() {
            found.extend(rounding);
            if on_the_way.insert(before) {
                ends.push(before);
            }
        }
    }
    found.into_iter().collect()
}

/// The tensors that replace node `n`, if it is a QuantizeLinear: the outputs of DequantizeLinear nodes of the same
/// scale and zero point. `None` if something else reads it.
fn rounded<'g>(index: &Index<'g>, n: usize) -> Option<Vec<&'g str>> {
    let node = Some(&index.graph.node[n]).filter(|node| node.is_onnx("QuantizeLinear"))?;
    let output = node.output_at(0).filter(|output| !index.is_output(output))?;
    let back = |&reader: &usize| {
        let reader = &index.graph.node[reader];
        let same = reader.is_onnx("DequantizeLinear") && reader.input.get(1..) == node.input.get(1..);
        reader.output_at(0).filter(|_| same && reader.input_at(0) == Some(output))
    };
    index.readers(output).iter().map(back).collect()
}

/// The QuantizeLinear that `tensor` comes from through DequantizeLinear.
fn rounding_of(index: &Index<'_>, tensor: &str) -> Option<usize> {
    let back = index.maker(tensor).filter(|node| node.is_onnx("DequantizeLinear"))?;
    let (n, _) = index.producer(back.input_at(0)?)?;
    rounded(index, n).map(|_| n)
}

/// Where `node` takes `tensor` to, if that is a step of attention.
fn after<'g>(node: &'g NodeProto, tensor: &str, stage: Stage) -> Option<Place<'g>> {
    const MOVES: &[&str] =
        &["Transpose", "Reshape", "Expand", "Unsqueeze", "Squeeze", "Flatten", "Tile", "Slice", "Gather", "Concat"];
    let among = |operators: &[&str]| operators.iter().any(|operator| node.is_onnx(operator));
    let first = node.input_at(0) == Some(tensor);
    let stage = match stage {
        _ if passes_on(node) => stage,
        Stage::Past if joins_tokens(node) && first => Stage::Rows,
        Stage::Rows if is_matrix_product(node) => Stage::Scores,
        Stage::Rows if among(MOVES) && first || among(&["Mul", "Div"]) => Stage::Rows,
        Stage::Scores if node.is_onnx("Softmax") => Stage::Probabilities,
        Stage::Scores if among(&["Mul", "Div", "Add", "Sub", "Where", "Tanh"]) => Stage::Scores,
        Stage::Probabilities if among(&["Dropout", "Where"]) => Stage::Probabilities,
        _ => return None,
    };
    Some((node.output_at(0)?, stage))
}
