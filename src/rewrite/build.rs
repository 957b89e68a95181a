//! Making nodes and initializers.

use std::collections::HashSet;

use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// ONNX's number for the type.
pub const FLOAT16: i32 = 10;

/// New parts of a graph.
pub struct Builder {
    taken: HashSet<String>,
    /// Nodes so far.
    pub nodes: Vec<NodeProto>,
    /// Initializers so far.
    pub initializers: Vec<TensorProto>,
}

impl Builder {
    /// An empty builder; all names of `graph` are taken.
    pub fn new(graph: &GraphProto) -> Self {
        let tensors = graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input)).cloned();
        let declared = graph.input.iter().chain(&graph.output).map(|v| v.name().to_string());
        let nodes = graph.node.iter().map(|n| n.name().to_string());
        let initializers = graph.initializer.iter().map(|i| i.name().to_string());
        let taken = tensors.chain(declared).chain(nodes).chain(initializers).collect();
        Self { taken, nodes: Vec::new(), initializers: Vec::new() }
    }

    /// An unused name, `wanted` if possible.
    pub fn unique(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }

    /// Adds a node of ONNX's own domain, named after `base`, and returns the name of its output.
    pub fn add(&mut self, base: &str, operator: &str, inputs: &[&str]) -> String {
        let name = self.unique(format!("{base}/{operator}"));
        let output = self.unique(format!("{name}/output"));
        let inputs = inputs.iter().map(|i| i.to_string()).collect();
        self.nodes.push(node(&name, operator, "", inputs, vec![output.clone()]));
        output
    }

    /// The node added last.
    pub fn last(&mut self) -> &mut NodeProto {
        self.nodes.last_mut().expect("a node was added")
    }

    /// Adds an initializer of type `element`, float32 or float16, without dimensions.
    pub fn scalar(&mut self, wanted: String, element: i32, value: f32) -> String {
        let raw = match element {
            FLOAT16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        self.initializer(wanted, element, &[], raw)
    }

    /// Adds an initializer of int64.
    pub fn int64s(&mut self, wanted: String, dims: &[i64], values: &[i64]) -> String {
        self.initializer(wanted, 7, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn initializer(&mut self, wanted: String, element: i32, dims: &[i64], raw: Vec<u8>) -> String {
        let name = self.unique(wanted);
        self.initializers.push(tensor(&name, element, dims, raw));
        name
    }
}

/// A new node.
pub fn node(name: &str, operator: &str, domain: &str, inputs: Vec<String>, outputs: Vec<String>) -> NodeProto {
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

/// A tensor from the bytes of its elements.
pub fn tensor(name: &str, element: i32, dims: &[i64], raw: Vec<u8>) -> TensorProto {
    let mut tensor = TensorProto::new();
    tensor.set_name(name.into());
    tensor.set_data_type(element);
    tensor.dims = dims.to_vec();
    tensor.set_raw_data(raw);
    tensor
}

/// A float32 initializer.
pub fn float32s(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    tensor(name, 1, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}
