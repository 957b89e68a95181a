//! Putting the operators into a graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use protobuf::MessageField;

use super::context::{rank, static_dim};
use super::error::Refusal;
use super::layer::{Bias, Layer};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use crate::onnx::{Index, NodeExt, remove_nodes, sort_nodes};

/// ONNX's number of the type.
const FLOAT16: i32 = 10;

/// Domain of the operators.
pub const DOMAIN: &str = "ai.spark";

/// Tensors that one rewritten layer has beside those of the original.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// Name of the SparkAttention node.
    pub attention: String,
    /// Name of the SparkPrune node.
    pub prune: String,
    /// Initializer of calibrated saliency.
    pub query_saliency: String,
    /// Output for calibration.
    pub observed_saliency: String,
    /// Graph input and output of recent keys.
    pub key_recent: [String; 2],
}

/// Replaces `layers` in the graph of `model`. The new nodes have their inputs and outputs and those attributes that
/// follow from the layer; [`configure`](super::configure::configure) sets the rest.
///
/// # Errors
/// Something else than lengths is read from a cache, or names collide.
pub fn apply(model: &mut ModelProto, layers: &[Layer]) -> Result<Vec<Names>, Refusal> {
    let graph = model.graph.mut_or_insert_default();
    let mut taken = all_names(graph);
    let mut unique = |wanted: String| {
        let mut name = wanted.clone();
        let mut n = 1;
        while !taken.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    };
    let mut names = Vec::new();
    let mut added: BTreeMap<usize, Vec<NodeProto>> = BTreeMap::new();
    let mut biases: HashMap<(String, i32), String> = HashMap::new();
    let mut empty = None;
    for layer in layers {
        let recent = |name: &String| format!("{name}_recent");
        let new = Names {
            attention: unique(format!("{}/SparkAttention", layer.name)),
            prune: unique(format!("{}/SparkPrune", layer.name)),
            query_saliency: unique(format!("{}/query_saliency", layer.name)),
            observed_saliency: unique(format!("{}/observed_saliency", layer.name)),
            key_recent: [unique(recent(&layer.cache.past[0])), unique(recent(&layer.cache.present[0]))],
        };
        let nodes = added.entry(layer.doomed[0]).or_default();
        let bias = match &layer.bias {
            Some(bias) => {
                let key = (format!("{bias:?}, {}", layer.token_axis), layer.element);
                let made = biases.entry(key);
                made.or_insert_with(|| bias_nodes(layer, bias, &mut unique, nodes, &mut graph.initializer)).clone()
            }
            None => String::new(),
        };
        if layer.element == FLOAT16 && empty.is_none() {
            empty = Some(empty_tensor(layer, &mut unique, nodes));
        }
        let empty = empty.clone().filter(|_| layer.element == FLOAT16);
        spark_nodes(layer, &new, [bias, empty.unwrap_or_default()], &mut unique, nodes, &mut graph.initializer);
        names.push(new);
    }

    let doomed = insert(graph, added, layers.iter().flat_map(|l| &l.doomed).copied().collect());
    remove_nodes(graph, &doomed);
    sort_nodes(graph).map_err(|tensor| {
        Refusal::new(format!("tensor '{tensor}'"), "keys that do not depend on the cache that they go into", "a circle")
    })?;
    only_lengths_are_read(graph, layers)?;
    if !model.opset_import.iter().any(|o| o.domain() == DOMAIN) {
        let mut opset = OperatorSetIdProto::new();
        opset.set_domain(DOMAIN.into());
        opset.set_version(1);
        model.opset_import.push(opset);
    }
    Ok(names)
}

fn all_names(graph: &GraphProto) -> HashSet<String> {
    let tensors = graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input)).cloned();
    let declared = graph.input.iter().chain(&graph.output).map(|v| v.name().to_string());
    let nodes = graph.node.iter().map(|n| n.name().to_string());
    tensors.chain(declared).chain(nodes).chain(graph.initializer.iter().map(|i| i.name().to_string())).collect()
}

/// Inserts `added` nodes, each list before the node at its key, and gives the new places of `doomed`.
fn insert(graph: &mut GraphProto, added: BTreeMap<usize, Vec<NodeProto>>, doomed: Vec<usize>) -> Vec<usize> {
    let moved = |n: usize| n + added.range(..=n).map(|(_, nodes)| nodes.len()).sum::<usize>();
    let doomed = doomed.into_iter().map(moved).collect();
    let old = std::mem::take(&mut graph.node);
    let mut added = added;
    for (n, node) in old.into_iter().enumerate() {
        graph.node.extend(added.remove(&n).into_iter().flatten());
        graph.node.push(node);
    }
    doomed
}

fn node(name: &str, operator: &str, domain: &str, inputs: Vec<String>, outputs: Vec<String>) -> NodeProto {
    let mut node = NodeProto::new();
    node.set_name(name.into());
    node.set_op_type(operator.into());
    if !domain.is_empty() {
        node.set_domain(domain.into());
    }
    node.input = inputs;
    node.output = outputs;
    node
}

/// An attribute's value.
pub enum Attribute<'a> {
    Int(i64),
    Float(f32),
    Text(&'a str),
}

/// Sets attribute `name` of `node`.
pub fn set_attribute(node: &mut NodeProto, name: &str, value: Attribute<'_>) {
    let mut attribute = AttributeProto::new();
    attribute.set_name(name.into());
    match value {
        Attribute::Int(i) => {
            attribute.set_type(AttributeType::INT);
            attribute.set_i(i);
        }
        Attribute::Float(f) => {
            attribute.set_type(AttributeType::FLOAT);
            attribute.set_f(f);
        }
        Attribute::Text(s) => {
            attribute.set_type(AttributeType::STRING);
            attribute.set_s(s.as_bytes().to_vec());
        }
    }
    match node.attribute.iter_mut().find(|a| a.name() == name) {
        Some(old) => *old = attribute,
        None => node.attribute.push(attribute),
    }
}

/// An initializer.
fn tensor(name: &str, element: i32, dims: &[i64], raw: Vec<u8>) -> TensorProto {
    let mut tensor = TensorProto::new();
    tensor.set_name(name.into());
    tensor.set_data_type(element);
    tensor.dims = dims.to_vec();
    tensor.set_raw_data(raw);
    tensor
}

fn int64s(name: &str, values: &[i64]) -> TensorProto {
    tensor(name, 7, &[values.len() as i64], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A float32 initializer.
pub fn float32s(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    tensor(name, 1, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A scalar of type `element`, float32 or float16.
fn scalar(name: &str, element: i32, value: f32) -> TensorProto {
    let raw = match element {
        FLOAT16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    tensor(name, element, &[], raw)
}

/// Adds the nodes that make attention_bias from a mask, and gives its name.
fn bias_nodes(
    layer: &Layer,
    bias: &Bias,
    unique: &mut impl FnMut(String) -> String,
    nodes: &mut Vec<NodeProto>,
    initializers: &mut Vec<TensorProto>,
) -> String {
    let mut current = bias.tensor.clone();
    let mut add = |operator: &str, mut inputs: Vec<String>, current: &mut String| {
        let name = unique(format!("{}/attention_bias/{operator}", layer.name));
        let output = format!("{name}/output");
        inputs.iter_mut().filter(|i| i.is_empty()).for_each(|i| *i = current.clone());
        nodes.push(node(&name, operator, "", inputs, vec![output.clone()]));
        *current = output;
    };
    if let Some(low) = bias.masked {
        let (zero, masked) =
            (format!("{}/attention_bias/zero", layer.name), format!("{}/attention_bias/masked", layer.name));
        initializers.extend([scalar(&zero, layer.element, 0.0), scalar(&masked, layer.element, low)]);
        add("Where", vec![String::new(), zero, masked], &mut current);
    }
    if bias.cast {
        add("Cast", vec![String::new()], &mut current);
        set_attribute(nodes.last_mut().expect("just added"), "to", Attribute::Int(layer.element.into()));
    }
    if bias.expand {
        let base = format!("{}/attention_bias", layer.name);
        let (axis, ones) = (format!("{base}/token_axis"), format!("{base}/one"));
        initializers.extend([int64s(&axis, &[layer.token_axis as i64]), int64s(&ones, &[1])]);
        let mask = current.clone();
        let mut add = |operator: &str, inputs: Vec<String>| {
            let name = unique(format!("{base}/{operator}"));
            let output = format!("{name}/output");
            nodes.push(node(&name, operator, "", inputs, vec![output.clone()]));
            output
        };
        let shape = add("Shape", vec![layer.query.clone()]);
        let tokens = add("Gather", vec![shape, axis]);
        let target = add("Concat", vec![ones.clone(), ones.clone(), tokens, ones]);
        current = add("Expand", vec![mask, target]);
        let concat = nodes.len() - 2;
        set_attribute(&mut nodes[concat], "axis", Attribute::Int(0));
    }
    current
}

/// Adds the nodes that make a float16 tensor without elements, and gives its name.
///
/// Between nodes for which it has no float16 kernel on the CPU, ONNX Runtime converts a float16 node and all its inputs
/// to float32 - caches too, which hold bytes. It leaves alone a node with a float16 input from one that works as it is,
/// and only the elements of an optional input matter.
fn empty_tensor(layer: &Layer, unique: &mut impl FnMut(String) -> String, nodes: &mut Vec<NodeProto>) -> String {
    let mut add = |operator: &str, inputs: Vec<String>| {
        let name = unique(format!("{}/keep_float16/{operator}", layer.name));
        let output = format!("{name}/output");
        nodes.push(node(&name, operator, "", inputs, vec![output.clone()]));
        output
    };
    let shape = add("Shape", vec![layer.query.clone()]);
    let zeros = add("Sub", vec![shape.clone(), shape]);
    let output = add("ConstantOfShape", vec![zeros]);
    let mut value = AttributeProto::new();
    value.set_name("value".into());
    value.set_type(AttributeType::TENSOR);
    value.t = MessageField::some(tensor("", FLOAT16, &[1], vec![0; 2]));
    nodes.last_mut().expect("just added").attribute.push(value);
    output
}

/// Optional inputs of SparkAttention of the query's type: attention_bias, cos_cache, key.
const OPTIONAL: [usize; 3] = [12, 7, 1];

/// Adds the two operators of `layer`. The `empty` tensor goes to the first optional input that is not used.
fn spark_nodes(
    layer: &Layer,
    names: &Names,
    [bias, empty]: [String; 2],
    unique: &mut impl FnMut(String) -> String,
    nodes: &mut Vec<NodeProto>,
    initializers: &mut Vec<TensorProto>,
) {
    let optional = |o: Option<&String>| o.cloned().unwrap_or_default();
    let mut inputs = vec![layer.query.clone()];
    inputs.extend((0..2).map(|i| optional(layer.key_value.as_ref().map(|kv| &kv[i]))));
    inputs.extend(layer.cache.past.iter().cloned());
    inputs.extend((0..2).map(|i| optional(layer.lengths.as_ref().map(|l| &l[i]))));
    inputs.extend((0..2).map(|i| optional(layer.rotary.as_ref().map(|r| &r.caches[i]))));
    inputs.push(optional(layer.rotary.as_ref().and_then(|r| r.positions.as_ref())));
    inputs.extend([String::new(), String::new()]);
    let output = match layer.output_shape {
        Some(_) => unique(format!("{}/SparkAttention/output", layer.name)),
        None => layer.output.clone(),
    };
    let mut attention = node(&names.attention, "SparkAttention", DOMAIN, inputs.clone(), vec![output.clone()]);
    attention.input.push(bias);
    if let Some(&free) = OPTIONAL.iter().find(|&&i| attention.input[i].is_empty()) {
        attention.input[free] = empty;
    }
    let mut prune = node(&names.prune, "SparkPrune", DOMAIN, inputs, layer.cache.present.to_vec());
    for node in [&mut attention, &mut prune] {
        set_attribute(node, "num_heads", Attribute::Int(layer.query_heads as i64));
        set_attribute(node, "kv_num_heads", Attribute::Int(layer.kv_heads as i64));
        if let Some(rotary) = &layer.rotary {
            set_attribute(node, "do_rotary", Attribute::Int(1));
            set_attribute(node, "rotary_interleaved", Attribute::Int(rotary.interleaved.into()));
        }
    }
    set_attribute(&mut attention, "scale", Attribute::Float(layer.scale));
    set_attribute(&mut attention, "softcap", Attribute::Float(layer.softcap));
    set_attribute(&mut attention, "local_window_size", Attribute::Int(layer.window));
    set_attribute(&mut attention, "causal", Attribute::Int(layer.causal.into()));
    nodes.extend([attention, prune]);
    if let Some(shape) = &layer.output_shape {
        let target = unique(format!("{}/SparkAttention/shape", layer.name));
        initializers.push(int64s(&target, shape));
        let name = unique(format!("{}/SparkAttention/Reshape", layer.name));
        nodes.push(node(&name, "Reshape", "", vec![output, target], vec![layer.output.clone()]));
    }
}

/// Caches of rows still have their batch, heads and tokens; nothing else may be read of them.
fn only_lengths_are_read(graph: &GraphProto, layers: &[Layer]) -> Result<(), Refusal> {
    let index = Index::new(graph).map_err(|e| Refusal::new("the graph", "nodes in order", e.to_string()))?;
    for tensor in layers.iter().flat_map(|l| l.cache.past.iter().chain(&l.cache.present)) {
        for &reader in index.readers(tensor) {
            let reader = &graph.node[reader];
            if reader.domain() == DOMAIN || reader.is_onnx("Shape") && reads_lengths(&index, reader) {
                continue;
            }
            let expected = format!("only the attention, and lengths, to read '{tensor}'");
            let found = if reader.is_onnx("Shape") { "its last dimension is read" } else { "it reads elements" };
            return Err(Refusal::new(reader.title(), expected, found));
        }
    }
    Ok(())
}

/// Whether of the four dimensions that `shape` gives only the first three are used.
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

/// Declares the dimension `axis` of `info` as `size`, or by `name` where there is none.
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

/// The declaration of the graph input or output `name`, with a copy of what `like` says of all but its name.
pub fn declare_like(like: &ValueInfoProto, name: &str) -> ValueInfoProto {
    let mut info = ValueInfoProto::new();
    info.set_name(name.into());
    info.type_ = MessageField(like.type_.0.clone());
    info
}
