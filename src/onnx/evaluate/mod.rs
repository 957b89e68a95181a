//! Evaluation of the parts of a graph that depend only on lengths.
//!
//! How an exporter spells a mask, a repetition of heads or a scale does not matter here: the nodes are evaluated at a
//! few sizes, and the results are compared with the expected ones. Of weights and tokens, only the shapes are known.

mod arrays;
mod elementwise;
mod indexing;
mod operators;
mod quantised;
mod shapes;
mod value;
mod work;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::proto::NodeProto;
use super::{Index, NodeExt};
use value::MOST_DIMENSIONS;
pub use value::{Inputs, Value, kinds, need};
use work::Work;

/// A value, or why it is not known.
pub type Answer = Result<Rc<Value>, Rc<str>>;

/// The shape rule of operators outside ONNX's domain: the outputs, as far as they are known, or why they are not;
/// `None` for an operator that the rule does not know.
pub type ShapeRule = Rc<dyn Fn(&NodeProto, &Inputs<'_>) -> Option<Result<Vec<Value>, String>>>;

/// What is known of a tensor that cannot be evaluated.
pub type Fallback<'g> = Rc<dyn Fn(&str) -> Option<Value> + 'g>;

/// Most elements that an evaluator, or the constants of a graph, keeps: 128 MB.
const MOST_KEPT: usize = 16 << 20;

/// The constants of a graph that were read so far. Evaluators of one graph may share them, and with them the limit of
/// work.
#[derive(Clone, Default)]
pub struct Constants(Rc<RefCell<HashMap<String, Answer>>>, Rc<Cell<usize>>, Rc<Work>);

impl Constants {
    /// The value of `name`, `None` if it is neither an initializer nor a Constant with a tensor.
    pub fn get(&self, index: &Index<'_>, name: &str) -> Option<Answer> {
        if let Some(known) = self.0.borrow().get(name) {
            return Some(known.clone());
        }
        let tensor = match index.maker(name) {
            Some(node) => node.tensor("value").filter(|_| node.is_onnx("Constant"))?,
            None => index.initializer(name)?,
        };
        let mut value = Value::constant(tensor);
        if let Ok(value) = &mut value {
            let kept = self.1.get() + value.known_elements();
            match kept > MOST_KEPT {
                true => value.data = None,
                false => self.1.set(kept),
            }
        }
        let value: Answer = value.map(Rc::new).map_err(Into::into);
        self.0.borrow_mut().insert(name.to_string(), value.clone());
        Some(value)
    }

    /// Whether the work limit allows following that many more nodes; a graph with long chains of masks is given up.
    pub fn may_follow(&self, nodes: usize) -> bool {
        self.2.spend(nodes.saturating_mul(Work::NODE))
    }

    /// Drops those with more than `most` elements.
    pub fn forget(&self, most: usize) {
        let small = |v: &Answer| v.as_ref().map_or(true, |v| v.data.as_ref().is_none_or(|d| d.len() <= most));
        let mut known = self.0.borrow_mut();
        known.retain(|_, value| small(value));
        self.1.set(known.values().flatten().map(|value| value.known_elements()).sum());
    }
}

/// Evaluates tensors of a graph for given inputs, each once.
pub struct Evaluator<'g> {
    index: &'g Index<'g>,
    constants: Constants,
    values: HashMap<String, Answer>,
    /// Elements of `values`.
    kept: usize,
    rule: ShapeRule,
    fallback: Option<Fallback<'g>>,
}

impl<'g> Evaluator<'g> {
    /// An evaluator without values; `rule` is asked first for the outputs of a node.
    pub fn new(index: &'g Index<'g>, constants: &Constants, rule: ShapeRule) -> Self {
        Self { index, constants: constants.clone(), values: HashMap::new(), kept: 0, rule, fallback: None }
    }

    /// Uses `fallback` for tensors that cannot be evaluated.
    pub fn with_fallback(mut self, fallback: Fallback<'g>) -> Self {
        self.fallback = Some(fallback);
        self
    }

    /// Sets the value of `tensor`, a graph input or any other; of values too large to keep, only the shape. A shared
    /// value does not count as kept. What was evaluated before stays as it was.
    pub fn give(&mut self, tensor: &str, value: impl Into<Rc<Value>>) {
        let mut value: Rc<Value> = value.into();
        let more = if Rc::strong_count(&value) > 1 { 0 } else { value.known_elements() };
        match self.constants.2.spend(more + Work::NODE) && self.kept + more <= MOST_KEPT {
            true => self.kept += more,
            false => value = Rc::new(Value::shaped(value.kind, value.shape.clone())),
        }
        self.values.insert(tensor.to_string(), Ok(value));
    }

    /// The value of `tensor`.
    ///
    /// # Errors
    /// Names the tensor or operator on the way that is not understood.
    pub fn value(&mut self, tensor: &str) -> Answer {
        // An explicit stack: chains of nodes are as long as models are deep.
        let mut stack = vec![tensor.to_string()];
        while let Some(name) = stack.last() {
            if self.known(name).is_some() {
                stack.pop();
                continue;
            }
            let Some((n, _)) = self.index.producer(name) else {
                let value = Err(format!("'{name}' may be anything").into());
                self.values.insert(stack.pop().expect("just seen"), value);
                continue;
            };
            let node = &self.index.graph.node[n];
            let missing = |i: &&String| !i.is_empty() && self.known(i).is_none();
            // Nodes are in order, so this ends.
            let needed: Vec<String> = node.input.iter().filter(missing).cloned().collect();
            if !needed.is_empty() {
                stack.extend(needed);
                continue;
            }
            let inputs: Result<Vec<Option<Rc<Value>>>, Rc<str>> = node
                .input
                .iter()
                .map(|i| if i.is_empty() { Ok(None) } else { self.known(i).expect("not missing").map(Some) })
                .collect();
            let outputs = inputs.and_then(|inputs| {
                let inputs: Vec<Option<&Value>> = inputs.iter().map(|i| i.as_deref()).collect();
                let known =
                    self.constants.2.begin(node, &inputs).and_then(|()| {
                        (self.rule)(node, &inputs).unwrap_or_else(|| operators::evaluate(node, &inputs))
                    });
                let outputs = known.and_then(|values| self.affordable(values));
                outputs.map_err(|e| format!("{}: {e}", node.title()).into())
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
                let value = value.or_else(|e| {
                    let known = self.fallback.as_ref().and_then(|fallback| fallback(name));
                    known.map(Rc::new).ok_or(e)
                });
                self.values.entry(name.clone()).or_insert(value);
            }
        }
        self.known(tensor).expect("the stack is empty")
    }

    /// `values`, if they are small enough to be kept.
    fn affordable(&mut self, values: Vec<Value>) -> Result<Vec<Value>, String> {
        if let Some(value) = values.iter().find(|value| value.shape.len() > MOST_DIMENSIONS) {
            return Err(format!("a tensor of {} dimensions", value.shape.len()));
        }
        let more: usize = values.iter().map(Value::known_elements).sum();
        if !self.constants.2.spend(more) || self.kept + more > MOST_KEPT {
            return Err(format!("more than {MOST_KEPT} elements of masks and shapes in all"));
        }
        self.kept += more;
        Ok(values)
    }

    /// The value of `name` if it was set, evaluated, or is a constant.
    fn known(&self, name: &str) -> Option<Answer> {
        self.values.get(name).cloned().or_else(|| self.constants.get(self.index, name))
    }
}
