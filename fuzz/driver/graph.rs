//! Mutants of ONNX models that are still models: nodes, their wires and attributes, shapes and small constants.

use protobuf::Message;
use spark_ort::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

use super::mutate;
use crate::common::Random;

/// What a mutant may have that its seed lacks.
struct Changes {
    /// Sizes, axes and counts.
    numbers: &'static [i64],
    floats: &'static [f32],
    /// Nodes of a chain at most.
    chain: usize,
}

/// What should not be.
const HOSTILE: Changes = Changes {
    numbers: &[-2, -1, 0, 1, 2, 3, 7, 64, 4096, 1 << 20, 1 << 31, 1 << 62, i64::MAX, i64::MIN],
    floats: &[0.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, 1e-45],
    chain: 80,
};

/// What ONNX Runtime can often run, in little memory.
const GENTLE: Changes = Changes { numbers: &[-2, -1, 0, 1, 2, 3], floats: &[0.0, -1.0, 0.5, 2.0], chain: 3 };

/// Operators that are put in the place of others; those that make large tensors above all.
const OPERATORS: [&str; 22] = [
    "Identity",
    "ConstantOfShape",
    "Tile",
    "Expand",
    "Range",
    "Concat",
    "Gather",
    "GatherND",
    "ScatterND",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Transpose",
    "Slice",
    "Split",
    "Where",
    "Trilu",
    "CumSum",
    "Shape",
    "Flatten",
    "ReduceSum",
    "Softmax",
];

/// A mutant of one of the models `seeds`; one in eight of bytes alone.
pub fn model(r: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let parsed = ModelProto::parse_from_bytes(&seeds[r.below(seeds.len())]);
    let (Ok(mut model), false) = (parsed, r.below(8) == 0) else { return mutate::bytes(r, seeds) };
    for _ in 0..=r.below(4) {
        match r.below(20) {
            0 => model.opset_import.iter_mut().for_each(|o| o.set_version(r.pick(HOSTILE.numbers))),
            1 => model.metadata_props.clear(),
            _ => graph(r, model.graph.mut_or_insert_default(), &HOSTILE),
        }
    }
    model.write_to_bytes().expect("a model")
}

/// One of the models `seeds` as it is or with few changes, so that it may still compute something.
pub fn gentle(r: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut model = ModelProto::parse_from_bytes(&seeds[r.below(seeds.len())]).expect("seeds are models");
    for _ in 0..r.below(4) {
        graph(r, model.graph.mut_or_insert_default(), &GENTLE);
    }
    model.write_to_bytes().expect("a model")
}

fn graph(r: &mut Random, graph: &mut GraphProto, new: &Changes) {
    if graph.node.is_empty() {
        return;
    }
    let at = r.below(graph.node.len());
    match r.below(14) {
        0 => drop(graph.node.remove(at)),
        1 => {
            let copy = graph.node[at].clone();
            graph.node.insert(at, copy);
        }
        2 => {
            let to = r.below(graph.node.len());
            graph.node.swap(at, to);
        }
        3 | 4 => rewire(r, graph, at),
        5 => graph.node[at].set_op_type(r.pick(&OPERATORS).into()),
        6 => attribute(r, &mut graph.node[at], new),
        7 => shape(r, graph, new),
        8 => initializer(r, graph, new),
        9 => chain(r, graph, at, new),
        10 => {
            let node = &mut graph.node[at];
            match r.coin() {
                true => drop(node.input.pop()),
                false => node.output.push(format!("extra{}", r.below(9))),
            }
        }
        11 => nest(r, graph, at),
        12 => {
            let lists = [&mut graph.input, &mut graph.output];
            let list = &mut lists.into_iter().nth(r.below(2)).expect("two lists")[..];
            if !list.is_empty() {
                let at = r.below(list.len());
                list[at].set_name(format!("renamed{at}"));
            }
        }
        _ => {
            let node = &mut graph.node[at];
            node.set_domain(r.pick(&["", "com.microsoft", "ai.spark", "ai.onnx"]).into());
        }
    }
}

/// Lets an input read any tensor, often one that makes a circle.
fn rewire(r: &mut Random, graph: &mut GraphProto, at: usize) {
    let from = r.below(graph.node.len());
    let node = &graph.node[from];
    let any = [node.output.first(), node.input.first()].into_iter().flatten().nth(r.below(2)).cloned();
    let (name, inputs) = (any.unwrap_or_default(), &mut graph.node[at].input);
    if !inputs.is_empty() {
        let input = r.below(inputs.len());
        inputs[input] = name;
    }
}

fn attribute(r: &mut Random, node: &mut NodeProto, new: &Changes) {
    if node.attribute.is_empty() {
        let mut added = AttributeProto::new();
        added.set_name(r.pick(&["axis", "perm", "axes", "value_ints", "to", "num_heads", "scale"]).into());
        added.ints = vec![r.pick(new.numbers)];
        added.set_i(r.pick(new.numbers));
        node.attribute.push(added);
        return;
    }
    let at = r.below(node.attribute.len());
    let attribute = &mut node.attribute[at];
    match r.below(6) {
        0 => drop(node.attribute.remove(at)),
        1 => attribute.set_i(r.pick(new.numbers)),
        2 => attribute.set_f(r.pick(new.floats)),
        3 => attribute.ints.push(r.pick(new.numbers)),
        4 => attribute.ints.iter_mut().for_each(|n| *n = r.pick(new.numbers)),
        _ => attribute.t.as_mut().into_iter().for_each(|t| tensor(r, t, new)),
    }
}

fn shape(r: &mut Random, graph: &mut GraphProto, new: &Changes) {
    let lists = [&mut graph.input, &mut graph.output, &mut graph.value_info];
    let list = lists.into_iter().nth(r.below(3)).expect("three lists");
    if list.is_empty() {
        return;
    }
    let at = r.below(list.len());
    let info = list[at].type_.mut_or_insert_default().mut_tensor_type();
    let dims = &mut info.shape.mut_or_insert_default().dim;
    match r.below(4) {
        0 => info.set_elem_type(r.below(30) as i32),
        1 => drop(dims.pop()),
        2 => dims.push(dims.first().cloned().unwrap_or_default()),
        _ if dims.is_empty() => {}
        _ => {
            let at = r.below(dims.len());
            dims[at].set_dim_value(r.pick(new.numbers));
        }
    }
}

fn initializer(r: &mut Random, graph: &mut GraphProto, new: &Changes) {
    // Small ones say shapes and axes.
    let small = |t: &&mut TensorProto| t.raw_data().len() <= 256;
    let count = graph.initializer.iter_mut().filter(small).count();
    if count > 0 {
        let at = r.below(count);
        tensor(r, graph.initializer.iter_mut().filter(small).nth(at).expect("counted"), new);
    }
}

fn tensor(r: &mut Random, tensor: &mut TensorProto, new: &Changes) {
    match r.below(5) {
        0 => tensor.set_data_type(r.below(30) as i32),
        1 => tensor.dims.push(r.pick(new.numbers)),
        2 => tensor.dims.iter_mut().for_each(|d| *d = r.pick(new.numbers)),
        3 => tensor.int64_data = vec![r.pick(new.numbers); r.below(5)],
        _ => {
            let mut raw = tensor.raw_data().to_vec();
            for number in raw.chunks_exact_mut(8) {
                number.copy_from_slice(&r.pick(new.numbers).to_le_bytes());
            }
            tensor.set_raw_data(raw);
        }
    }
}

/// A chain of one operator behind an input of a node: of a tensor with itself, which grows.
fn chain(r: &mut Random, graph: &mut GraphProto, at: usize, new: &Changes) {
    let Some(first) = graph.node[at].input.first().cloned() else { return };
    let operator = r.pick(&["Concat", "Gather", "Add", "Identity", "Unsqueeze", "Mul"]);
    let (length, number) = (1 + r.below(new.chain), r.below(1000));
    let name = |n: usize| if n == 0 { first.clone() } else { format!("chain{number}.{n}") };
    let nodes: Vec<NodeProto> = (0..length)
        .map(|n| {
            let mut node = NodeProto::new();
            node.set_op_type(operator.into());
            node.input = vec![name(n), name(n)];
            node.output = vec![name(n + 1)];
            let mut axis = AttributeProto::new();
            axis.set_name("axis".into());
            axis.set_i(0);
            node.attribute.push(axis);
            node
        })
        .collect();
    graph.node[at].input[0] = name(length);
    graph.node.splice(at..at, nodes);
}

/// Graphs within graphs within an attribute of a node.
fn nest(r: &mut Random, graph: &mut GraphProto, at: usize) {
    let mut inner = GraphProto::new();
    inner.node.push(graph.node[r.below(graph.node.len())].clone());
    for _ in 0..r.below(60) {
        let mut attribute = AttributeProto::new();
        attribute.set_name("then_branch".into());
        attribute.g = Some(inner).into();
        let mut node = NodeProto::new();
        node.set_op_type("If".into());
        node.attribute.push(attribute);
        inner = GraphProto::new();
        inner.node.push(node);
    }
    let mut attribute = AttributeProto::new();
    attribute.set_name("body".into());
    attribute.g = Some(inner).into();
    graph.node[at].attribute.push(attribute);
}
