//! Producers and readers of each tensor of a graph.

use std::collections::{HashMap, HashSet};

use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// A graph, indexed by the names of its tensors.
pub struct Index<'g> {
    /// The graph.
    pub graph: &'g GraphProto,
    producers: HashMap<&'g str, (usize, usize)>,
    readers: HashMap<&'g str, Vec<usize>>,
    inputs: HashMap<&'g str, &'g ValueInfoProto>,
    outputs: HashSet<&'g str>,
    initializers: HashMap<&'g str, &'g TensorProto>,
    value_info: HashMap<&'g str, &'g ValueInfoProto>,
}

/// A node that reads a tensor made only after it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the graph is not in order: {reader} reads '{tensor}' before it is made")]
pub struct OrderError {
    /// The node.
    pub reader: String,
    /// The tensor.
    pub tensor: String,
}

impl<'g> Index<'g> {
    /// Indexes `graph`.
    ///
    /// # Errors
    /// The nodes are not in the order that ONNX requires. With that order checked here, following nodes always
    /// terminates.
    pub fn new(graph: &'g GraphProto) -> Result<Self, OrderError> {
        let mut producers = HashMap::new();
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (n, node) in graph.node.iter().enumerate() {
            for name in reads(node) {
                let reader = readers.entry(name).or_default();
                if reader.last() != Some(&n) {
                    reader.push(n);
                }
            }
            for (o, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                if readers.contains_key(name.as_str()) {
                    let reader = &graph.node[readers[name.as_str()][0]];
                    return Err(OrderError { reader: super::NodeExt::title(reader), tensor: name.clone() });
                }
                producers.insert(name.as_str(), (n, o));
            }
        }
        Ok(Self {
            graph,
            producers,
            readers,
            inputs: graph.input.iter().map(|i| (i.name(), i)).collect(),
            outputs: graph.output.iter().map(|o| o.name()).collect(),
            initializers: graph.initializer.iter().map(|i| (i.name(), i)).collect(),
            value_info: graph.value_info.iter().map(|v| (v.name(), v)).collect(),
        })
    }

    /// The producer of `tensor`: the node's position in the graph, and which of its outputs.
    pub fn producer(&self, tensor: &str) -> Option<(usize, usize)> {
        self.producers.get(tensor).copied()
    }

    /// The node that makes `tensor`.
    pub fn maker(&self, tensor: &str) -> Option<&'g NodeProto> {
        self.producer(tensor).map(|(n, _)| &self.graph.node[n])
    }

    /// The nodes that read `tensor`, themselves or in a subgraph.
    pub fn readers(&self, tensor: &str) -> &[usize] {
        self.readers.get(tensor).map_or(&[], Vec::as_slice)
    }

    /// The graph input `tensor`, unless an initializer is its default.
    pub fn input(&self, tensor: &str) -> Option<&'g ValueInfoProto> {
        self.inputs.get(tensor).copied().filter(|_| !self.initializers.contains_key(tensor))
    }

    /// Whether `tensor` is a graph output.
    pub fn is_output(&self, tensor: &str) -> bool {
        self.outputs.contains(tensor)
    }

    /// The initializer `tensor`.
    pub fn initializer(&self, tensor: &str) -> Option<&'g TensorProto> {
        self.initializers.get(tensor).copied()
    }

    /// The declared type of `tensor`: a graph input, or a tensor with value_info.
    pub fn declared(&self, tensor: &str) -> Option<&'g ValueInfoProto> {
        self.inputs.get(tensor).or_else(|| self.value_info.get(tensor)).copied()
    }
}

/// Names that `node` reads, including those that its subgraphs read from the outer graph.
pub(crate) fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
    for graph in node.attribute.iter().flat_map(graphs) {
        captured(graph, &mut names);
    }
    names
}

fn graphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

/// Adds the names that `graph` reads and does not make. A name made inside only hides later reads; counting one read
/// too many merely keeps a node.
fn captured<'g>(graph: &'g GraphProto, names: &mut Vec<&'g str>) {
    let made: HashSet<&str> = graph
        .node
        .iter()
        .flat_map(|n| n.output.iter().map(String::as_str))
        .chain(graph.input.iter().map(|i| i.name()))
        .chain(graph.initializer.iter().map(|i| i.name()))
        .collect();
    let read = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|o| o.name()));
    names.extend(read.filter(|name| !made.contains(name)));
}
