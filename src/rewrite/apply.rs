//! Putting the operators into a graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use protobuf::MessageField;

use super::bias::{attention_bias, empty_tensor};
use super::build::{Attribute, Builder, FLOAT16, node, set_attribute};
use super::cache::passes_on;
use super::context::{rank, static_dim};
use super::error::Refusal;
use super::front::{Operands, front};
use super::layer::Layer;
use super::recent::Recent;
use crate::onnx::proto::tensor_shape_proto::Dimension;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use crate::onnx::{Index, NodeExt, reads, remove_nodes, sort_nodes};
use crate::spec;

pub use crate::spec::DOMAIN;

/// Tensors that a rewritten layer adds to those of the original.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// Name of the SparkAttention node.
    pub attention: String,
    /// Name of the SparkPrune node.
    pub prune: String,
    /// Initializer of calibrated saliency.
    pub query_saliency: String,
    /// Output of observed saliency, for calibration.
    pub observed_saliency: String,
    /// Initializers of a basis: of keys, of queries.
    pub basis: [String; 2],
    /// Output of observed covariance, for calibration.
    pub observed_covariance: String,
    /// Graph input and output of recent keys.
    pub key_recent: [String; 2],
}

/// Replaces `layers` in the graph of `model`. The new nodes get their inputs and outputs, and the attributes that
/// follow from the layer; [`configure`](super::configure::configure) sets the rest, and connects recent keys if they
/// are inputs.
///
/// # Errors
/// Something other than lengths is read from a cache, or a tensor that would be removed is still read.
pub fn apply(model: &mut ModelProto, layers: &[Layer], recent: Recent, version: i64) -> Result<Vec<Names>, Refusal> {
    let graph = model.graph.mut_or_insert_default();
    read_presents(graph, layers);
    let mut builder = Builder::new(graph);
    let mut names = Vec::new();
    let mut added: BTreeMap<usize, Vec<NodeProto>> = BTreeMap::new();
    let mut biases: HashMap<(String, i32), String> = HashMap::new();
    let mut empty = None;
    let mut positions = HashMap::new();
    for layer in layers {
        let mut unique = |wanted: String| builder.unique(wanted);
        let recent_of = |name: &String| format!("{name}_recent");
        let new = Names {
            attention: unique(format!("{}/SparkAttention", layer.name)),
            prune: unique(format!("{}/SparkPrune", layer.name)),
            query_saliency: unique(format!("{}/query_saliency", layer.name)),
            observed_saliency: unique(format!("{}/observed_saliency", layer.name)),
            basis: ["key_basis", "query_basis"].map(|name| unique(format!("{}/{name}", layer.name))),
            observed_covariance: unique(format!("{}/observed_covariance", layer.name)),
            key_recent: [unique(recent_of(&layer.cache.past[0])), unique(recent_of(&layer.cache.present[0]))],
        };
        let mut optional = [String::new(), String::new(), String::new()];
        if !layer.bias.is_empty() {
            let key = (format!("{:?}, {}", layer.bias, layer.token_axis), layer.element);
            let made = biases.entry(key).or_insert_with(|| attention_bias(&mut builder, layer, &layer.bias));
            optional[0] = made.clone();
        }
        // In this order; the input of recent keys counts only while it is not connected.
        let free =
            [layer.bias.is_empty(), layer.rotary_inside().is_none(), recent.inputs == 0].iter().position(|&free| free);
        if let Some(free) = free.filter(|_| layer.element == FLOAT16) {
            optional[free] = empty.get_or_insert_with(|| empty_tensor(&mut builder, layer)).clone();
        }
        let operands = front(&mut builder, layer, &mut positions);
        spark_nodes(&mut builder, layer, operands, &new, optional, recent.buffer > 0);
        added.entry(layer.doomed[0]).or_default().append(&mut builder.nodes);
        names.push(new);
    }
    graph.initializer.append(&mut builder.initializers);
    let declared: HashSet<String> = graph.value_info.iter().map(|v| v.name().to_string()).collect();
    graph.value_info.extend(layers.iter().filter(|l| !declared.contains(&l.output)).map(result_info));

    let doomed = insert(graph, added, layers.iter().flat_map(|l| &l.doomed).copied().collect());
    remove_nodes(graph, &doomed);
    sort_nodes(graph).map_err(|tensor| {
        Refusal::new(format!("tensor '{tensor}'"), "keys that do not depend on the cache that they go into", "a circle")
    })?;
    store_early(graph);
    only_lengths_are_read(graph, layers)?;
    nothing_is_missing(graph)?;
    model.opset_import.retain(|o| o.domain() != DOMAIN);
    let mut opset = OperatorSetIdProto::new();
    opset.set_domain(DOMAIN.into());
    opset.set_version(version);
    model.opset_import.push(opset);
    Ok(names)
}

/// Where a removed Identity or Cast gives a model output its name, the tensor that it reads takes that name.
fn read_presents(graph: &mut GraphProto, layers: &[Layer]) {
    let mut renamed = HashMap::new();
    for layer in layers {
        let identities = layer.doomed.iter().map(|&n| &graph.node[n]).filter(|n| passes_on(n));
        for node in identities.filter(|n| n.output.first().is_some_and(|o| layer.cache.present.contains(o))) {
            renamed.insert(node.input[0].clone(), node.output[0].clone());
        }
    }
    for input in graph.node.iter_mut().filter(|n| !passes_on(n)).flat_map(|n| &mut n.input) {
        if let Some(present) = renamed.get(input) {
            input.clone_from(present);
        }
    }
}

/// Inserts `added` nodes, each list before the node at its key, and returns the new positions of `doomed`.
fn insert(graph: &mut GraphProto, added: BTreeMap<usize, Vec<NodeProto>>, doomed: Vec<usize>) -> Vec<usize> {
    let mut before = 0;
    let sums: Vec<(usize, usize)> = added
        .iter()
        .map(|(&n, nodes)| {
            before += nodes.len();
            (n, before)
        })
        .collect();
    // How many nodes are inserted up to each position.
    let up_to = |n: usize| sums.partition_point(|&(at, _)| at <= n).checked_sub(1).map_or(0, |last| sums[last].1);
    let doomed = doomed.into_iter().map(|n| n + up_to(n)).collect();
    let old = std::mem::take(&mut graph.node);
    let mut added = added;
    for (n, node) in old.into_iter().enumerate() {
        graph.node.extend(added.remove(&n).into_iter().flatten());
        graph.node.push(node);
    }
    doomed
}

/// Adds the two operators of `layer`. The `optional` inputs of SparkAttention are attention_bias, cos_cache and
/// past_key_recent. With a `tail`, SparkPrune may overwrite what SparkAttention reads, and so comes after it.
fn spark_nodes(
    builder: &mut Builder,
    layer: &Layer,
    (query, key_value): Operands,
    names: &Names,
    optional: [String; 3],
    tail: bool,
) {
    let given = |o: Option<&String>| o.cloned().unwrap_or_default();
    let mut inputs = vec![query];
    inputs.extend((0..2).map(|i| given(key_value.as_ref().map(|kv| &kv[i]))));
    inputs.extend(layer.cache.past.iter().cloned());
    inputs.extend((0..2).map(|i| given(layer.lengths.as_ref().map(|l| &l[i]))));
    inputs.extend((0..2).map(|i| given(layer.rotary_inside().map(|r| &r.caches[i]))));
    inputs.push(given(layer.rotary_inside().and_then(|r| r.positions.as_ref())));
    inputs.extend([String::new(), String::new()]);
    let output = match layer.output_shape {
        Some(_) => builder.unique(format!("{}/SparkAttention/output", layer.name)),
        None => layer.output.clone(),
    };
    let mut attention = node(&names.attention, spec::ATTENTION.name, DOMAIN, inputs.clone(), vec![output.clone()]);
    if tail {
        inputs.push(output.clone());
    }
    attention.input.push(String::new());
    for (index, name) in [12, 7, 10].into_iter().zip(optional).filter(|(_, name)| !name.is_empty()) {
        attention.input[index] = name;
    }
    let mut prune = node(&names.prune, spec::PRUNE.name, DOMAIN, inputs, layer.cache.present.to_vec());
    for node in [&mut attention, &mut prune] {
        set_attribute(node, "num_heads", Attribute::Int(layer.query_heads as i64));
        set_attribute(node, "kv_num_heads", Attribute::Int(layer.kv_heads as i64));
        if let Some(rotary) = layer.rotary_inside() {
            set_attribute(node, "do_rotary", Attribute::Int(1));
            set_attribute(node, "rotary_interleaved", Attribute::Int(rotary.interleaved.into()));
        }
    }
    set_attribute(&mut attention, "scale", Attribute::Float(layer.scale));
    set_attribute(&mut attention, "softcap", Attribute::Float(layer.softcap));
    set_attribute(&mut attention, "local_window_size", Attribute::Int(layer.window));
    set_attribute(&mut attention, "causal", Attribute::Int(layer.causal.into()));
    builder.nodes.extend([attention, prune]);
    if let Some(shape) = &layer.output_shape {
        let target = builder.int64s(format!("{}/SparkAttention/shape", layer.name), &[shape.len() as i64], shape);
        let name = builder.unique(format!("{}/SparkAttention/Reshape", layer.name));
        builder.nodes.push(node(&name, "Reshape", "", vec![output, target], vec![layer.output.clone()]));
    }
}

/// The declaration of the result of `layer`, for tools that only know ONNX's operators, such as quantisers.
fn result_info(layer: &Layer) -> ValueInfoProto {
    let mut info = ValueInfoProto::new();
    info.set_name(layer.output.clone());
    let tensor = info.type_.mut_or_insert_default().mut_tensor_type();
    tensor.set_elem_type(layer.element);
    let (heads, size) = (layer.query_heads as i64, layer.head_dim as i64);
    let sizes = match (&layer.output_shape, layer.token_axis) {
        (Some(shape), _) => shape.iter().map(|&d| (d > 0).then_some(d)).collect(),
        (None, 1) => vec![None, None, Some(heads * size)],
        _ => vec![None, Some(heads), None, Some(size)],
    };
    tensor.shape.mut_or_insert_default().dim = sizes
        .into_iter()
        .map(|size| {
            let mut dim = Dimension::new();
            size.into_iter().for_each(|size| dim.set_dim_value(size));
            dim
        })
        .collect();
    info
}

/// Caches of rows keep their batch, heads and tokens; nothing else may be read from their shapes.
fn only_lengths_are_read(graph: &GraphProto, layers: &[Layer]) -> Result<(), Refusal> {
    let index = Index::new(graph).map_err(|e| Refusal::new("the graph", "nodes in order", e.to_string()))?;
    let mut queue: Vec<&str> =
        layers.iter().flat_map(|l| l.cache.past.iter().chain(&l.cache.present)).map(|t| &**t).collect();
    while let Some(tensor) = queue.pop() {
        for &reader in index.readers(tensor) {
            let reader = &graph.node[reader];
            if reader.domain() == DOMAIN || reader.is_onnx("Shape") && reads_lengths(&index, reader) {
                continue;
            }
            if let Some(same) = reader.output_at(0).filter(|same| passes_on(reader) && !index.is_output(same)) {
                queue.push(same);
                continue;
            }
            let expected = format!("only the attention, and lengths, to read '{tensor}'");
            let found = if reader.is_onnx("Shape") { "its last dimension is read" } else { "it reads elements" };
            return Err(Refusal::new(reader.title(), expected, found));
        }
    }
    Ok(())
}

/// Moves the nodes that store rows and have no readers to the end, the first layer's last. ONNX Runtime orders nodes
/// by a backward search from the ends of the graph, starting at the last node, so each layer's keys and values are
/// then stored before the next layer runs. Otherwise they would be stored after everything else, and the keys and
/// values of all layers kept until then.
fn store_early(graph: &mut GraphProto) {
    let read: HashSet<String> = graph.node.iter().flat_map(reads).map(str::to_string).collect();
    let stores = |node: &NodeProto| node.is(DOMAIN, spec::PRUNE.name) && node.output.iter().all(|o| !read.contains(o));
    let (stores, mut nodes): (Vec<_>, Vec<_>) = std::mem::take(&mut graph.node).into_iter().partition(stores);
    nodes.extend(stores.into_iter().rev());
    graph.node = nodes;
}

/// Every tensor that is read must still exist after attention is removed.
fn nothing_is_missing(graph: &GraphProto) -> Result<(), Refusal> {
    let made = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let given = graph.input.iter().map(|i| i.name()).chain(graph.initializer.iter().map(|i| i.name()));
    let sparse = graph.sparse_initializer.iter().map(|s| s.values.name());
    let there: HashSet<&str> = made.chain(given).chain(sparse).collect();
    for node in &graph.node {
        if let Some(name) = reads(node).into_iter().find(|name| !there.contains(name)) {
            let found = format!("it reads '{name}'");
            return Err(Refusal::new(node.title(), "only the attention to read what goes away with it", found));
        }
    }
    Ok(())
}

/// Whether only the first three of the four dimensions that `shape` returns are used.
fn reads_lengths(index: &Index<'_>, shape: &NodeProto) -> bool {
    let place = |i: i64| if i < 0 { i + 4 } else { i };
    if place(shape.int("start").unwrap_or(0)) >= 3 && shape.int("end").is_none() {
        return false;
    }
    if shape.int("end").is_some_and(|end| place(end) <= 3) {
        return true;
    }
    let output = shape.output_at(0).unwrap_or_default();
    let numbers = |name: Option<&str>| -> Option<Vec<i64>> {
        let name = name?;
        let constant = index.initializer(name).or_else(|| index.maker(name)?.tensor("value"))?;
        crate::onnx::evaluate::Value::constant(constant).ok()?.ints().ok()
    };
    !index.is_output(output)
        && index.readers(output).iter().all(|&n| {
            let reader = &index.graph.node[n];
            let second = numbers(reader.input_at(if reader.is_onnx("Slice") { 2 } else { 1 }));
            let below = |v: Vec<i64>| v.into_iter().map(place);
            match reader.op_type() {
                "Gather" => second.is_some_and(|v| below(v).all(|i| (0..3).contains(&i))),
                "Slice" => second.is_some_and(|v| below(v).all(|i| (0..=3).contains(&i))),
                _ => false,
            }
        })
}

/// Declares the dimension `axis` of `info` as `size`, or by `name` if `size` is `None`.
pub fn set_dim(info: &mut ValueInfoProto, axis: usize, size: Option<usize>, name: &str) {
    if rank(info).is_none_or(|r| axis >= r) || static_dim(info, axis).is_some() && static_dim(info, axis) == size {
        return;
    }
    let dim = &mut info.type_.mut_or_insert_default().mut_tensor_type().shape.mut_or_insert_default().dim[axis];
    match size {
        Some(size) => dim.set_dim_value(size as i64),
        None => dim.set_dim_param(name.into()),
    }
}

/// The declaration of the graph input or output `name`, a copy of `like` in all but the name.
pub fn declare_like(like: &ValueInfoProto, name: &str) -> ValueInfoProto {
    let mut info = ValueInfoProto::new();
    info.set_name(name.into());
    info.type_ = MessageField(like.type_.0.clone());
    info
}
