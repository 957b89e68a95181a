//! Inlining of model-local functions.

use std::collections::{HashMap, HashSet};

use super::NodeExt;
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};

/// Deepest nesting of function calls.
const DEEPEST: usize = 16;

/// Most nodes that a graph may grow to.
const MOST_NODES: usize = 1 << 20;

/// Inlines function calls in the main graph of `model`. Calls stay where a function imports another version of ONNX's
/// operators than the model, and in subgraphs of nodes.
pub fn inline_functions(model: &mut ModelProto) {
    if model.functions.is_empty() {
        return;
    }
    let functions = std::mem::take(&mut model.functions);
    let opset = super::onnx_opset(model);
    let fits = |function: &&FunctionProto| {
        let version = function.opset_import.iter().find(|o| matches!(o.domain(), "" | "ai.onnx"));
        version.is_none_or(|version| version.version() == opset)
    };
    let known: HashMap<(&str, &str), &FunctionProto> =
        functions.iter().filter(fits).map(|f| ((f.domain(), f.name()), f)).collect();
    let graph = model.graph.mut_or_insert_default();
    let mut names = Names::new(graph);
    for _ in 0..DEEPEST {
        if !graph.node.iter().any(|n| known.contains_key(&(n.domain(), n.op_type()))) || graph.node.len() > MOST_NODES {
            break;
        }
        for node in std::mem::take(&mut graph.node) {
            match known.get(&(node.domain(), node.op_type())) {
                Some(function) => {
                    let title = if node.name().is_empty() { node.op_type() } else { node.name() };
                    let base = names.unique(title);
                    graph.node.extend(body(&node, function, &base, &mut names));
                }
                None => graph.node.push(node),
            }
        }
    }
    for import in functions.iter().flat_map(|f| &f.opset_import) {
        if !model.opset_import.iter().any(|o| o.domain() == import.domain()) {
            model.opset_import.push(import.clone());
        }
    }
    // Functions that are still called, also by one another.
    let mut called: HashSet<(String, String)> = HashSet::new();
    nodes_within(&graph.node, &mut |n| {
        called.insert((n.domain().into(), n.op_type().into()));
    });
    let is_called = functions.iter().any(|f| called.contains(&(f.domain().to_string(), f.name().to_string())));
    if is_called {
        model.functions = functions;
    }
}

/// Names that are taken.
struct Names(HashSet<String>);

impl Names {
    /// Names of tensors and nodes in `graph`.
    fn new(graph: &GraphProto) -> Self {
        let nodes = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str).chain([n.name()]));
        let given = graph.input.iter().map(|i| i.name()).chain(graph.initializer.iter().map(|i| i.name()));
        Self(nodes.chain(given).map(str::to_string).collect())
    }

    /// An unused name, `wanted` if possible.
    fn unique(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        let mut number = 1;
        while !self.0.insert(name.clone()) {
            number += 1;
            name = format!("{wanted}_{number}");
        }
        name
    }
}

/// The nodes of `function` for the call `call`, with names that begin with `base`.
fn body(call: &NodeProto, function: &FunctionProto, base: &str, taken: &mut Names) -> Vec<NodeProto> {
    let mut names: HashMap<String, String> = HashMap::new();
    for (i, input) in function.input.iter().enumerate() {
        names.insert(input.clone(), call.input_at(i).unwrap_or_default().to_string());
    }
    for (i, output) in function.output.iter().enumerate() {
        if let Some(given) = call.output_at(i) {
            names.insert(output.clone(), given.to_string());
        }
    }
    let defaults = function.attribute_proto.iter();
    let given = |name: &str| call.attribute_named(name).or_else(|| defaults.clone().find(|a| a.name() == name));
    let mut nodes = function.node.clone();
    for node in &mut nodes {
        let own = if node.name().is_empty() { node.op_type() } else { node.name() };
        let own = taken.unique(&format!("{base}/{own}"));
        rename(node, &mut |name| {
            let inside = || taken.unique(&format!("{base}/{name}"));
            names.entry(name.to_string()).or_insert_with(inside).clone()
        });
        node.set_name(own);
        resolve(node, &given);
    }
    nodes
}

/// Renames the tensors of `node` and of its subgraphs, and the node itself.
fn rename(node: &mut NodeProto, new: &mut dyn FnMut(&str) -> String) {
    let mut change = |name: &mut String| {
        if !name.is_empty() {
            *name = new(name);
        }
    };
    node.input.iter_mut().chain(&mut node.output).for_each(&mut change);
    if let Some(name) = &mut node.name {
        change(name);
    }
    for graph in node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs)) {
        rename_graph(graph, new);
    }
}

fn rename_graph(graph: &mut GraphProto, new: &mut dyn FnMut(&str) -> String) {
    for info in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        let name = new(info.name());
        info.set_name(name);
    }
    for tensor in &mut graph.initializer {
        let name = new(tensor.name());
        tensor.set_name(name);
    }
    graph.node.iter_mut().for_each(|node| rename(node, new));
}

/// Replaces attributes of `node` that refer to attributes of the call by their values; one that the call lacks is
/// removed.
fn resolve<'a>(node: &mut NodeProto, given: &dyn Fn(&str) -> Option<&'a AttributeProto>) {
    let attributes = std::mem::take(&mut node.attribute).into_iter();
    node.attribute = attributes
        .filter_map(|attribute| match attribute.ref_attr_name() {
            "" => Some(attribute),
            reference => {
                let mut value = given(reference)?.clone();
                value.set_name(attribute.name().into());
                Some(value)
            }
        })
        .collect();
    for graph in node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs)) {
        graph.node.iter_mut().for_each(|node| resolve(node, given));
    }
}

fn nodes_within(nodes: &[NodeProto], see: &mut dyn FnMut(&NodeProto)) {
    for node in nodes {
        see(node);
        for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            nodes_within(&graph.node, see);
        }
    }
}
