//! Evaluation of the parts of a graph that depend on lengths only.
//!
//! How an exporter spells a mask, a repetition of heads or a scale does not matter here: the nodes are followed at a few
//! sizes, and what comes out is compared with what it should be. Weights and tokens stay unknown, of them only shapes
//! are known.

mod operators;
mod shapes;
mod value;

use std::collections::HashMap;
use std::rc::Rc;

use super::{Index, NodeExt};
pub use value::{Value, kinds};

type Answer = Result<Rc<Value>, Rc<str>>;

/// The tensors of a graph for given inputs, each evaluated once.
pub struct Evaluator<'g> {
    index: &'g Index<'g>,
    values: HashMap<String, Answer>,
}

impl<'g> Evaluator<'g> {
    /// Nothing given yet.
    pub fn new(index: &'g Index<'g>) -> Self {
        Self { index, values: HashMap::new() }
    }

    /// Gives the value of `tensor`, a graph input or any other. What was evaluated before stays as it was.
    pub fn give(&mut self, tensor: &str, value: Value) {
        self.values.insert(tensor.to_string(), Ok(Rc::new(value)));
    }

    /// The value of `tensor`.
    ///
    /// # Errors
    /// Which tensor or operator on the way to it is not understood.
    pub fn value(&mut self, tensor: &str) -> Answer {
        // A stack of its own: chains of nodes are as long as models are deep.
        let mut stack = vec![tensor.to_string()];
        while let Some(name) = stack.last() {
            if self.values.contains_key(name) {
                stack.pop();
                continue;
            }
            let Some((n, _)) = self.index.producer(name) else {
                let value = self.leaf(name);
                self.values.insert(stack.pop().expect("just seen"), value);
                continue;
            };
            let node = &self.index.graph.node[n];
            let missing = |i: &&String| !i.is_empty() && !self.values.contains_key(i.as_str());
            // Nodes are in order, so this ends.
            let needed: Vec<String> = node.input.iter().filter(missing).cloned().collect();
            if !needed.is_empty() {
                stack.extend(needed);
                continue;
            }
            let inputs: Result<Vec<Option<Rc<Value>>>, Rc<str>> = node
                .input
                .iter()
                .map(|i| if i.is_empty() { Ok(None) } else { self.values[i].clone().map(Some) })
                .collect();
            let outputs = inputs.and_then(|inputs| {
                let inputs: Vec<Option<&Value>> = inputs.iter().map(|i| i.as_deref()).collect();
                operators::evaluate(node, &inputs).map_err(|e| format!("{}: {e}", node.title()).into())
            });
            for (o, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let value = match &outputs {
                    Ok(values) => values
                        .get(o)
                        .cloned()
                        .map(Rc::new)
                        .ok_or_else(|| format!("{}: output {o}", node.title()).into()),
                    Err(e) => Err(e.clone()),
                };
                self.values.entry(name.clone()).or_insert(value);
            }
        }
        self.values[tensor].clone()
    }

    fn leaf(&self, name: &str) -> Answer {
        match self.index.initializer(name) {
            Some(tensor) => Value::constant(tensor).map(Rc::new).map_err(Into::into),
            None => Err(format!("'{name}' may be anything").into()),
        }
    }
}
