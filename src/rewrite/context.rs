//! A model under examination: its index, its cache inputs, and evaluators at a few sizes.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use ndarray::{ArrayD, IxDyn};

use super::error::Refusal;
use crate::onnx::evaluate::{Evaluator, Value, kinds};
use crate::onnx::proto::{NodeProto, ValueInfoProto};
use crate::onnx::{Index, NodeExt};

/// Sizes of a call at which a graph is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// B
    pub batch: usize,
    /// P
    pub past: usize,
    /// L
    pub new: usize,
}

impl Sizes {
    /// S
    pub fn total(self) -> usize {
        self.past + self.new
    }
}

/// All numbers differ, so that no two dimensions can be taken for each other; and one decoded token.
pub const USUAL: [Sizes; 2] = [Sizes { batch: 2, past: 3, new: 4 }, Sizes { batch: 1, past: 5, new: 1 }];

/// A graph input that is a cache.
#[derive(Clone, Debug)]
pub struct CacheInput {
    /// Element type.
    pub element: i32,
    /// Hk, where declared.
    pub kv_heads: Option<usize>,
    /// D, where declared.
    pub head_dim: Option<usize>,
}

/// `Concat` of a cache input and new rows.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The Concat, by its place in the graph.
    pub node: usize,
    /// The cache input.
    pub past: String,
    /// The new rows, `[B,Hk,L,D]`.
    pub new: String,
    /// The graph output.
    pub present: String,
}

/// What is known of a model while its layers are looked for.
pub struct Context<'g> {
    /// The graph.
    pub index: &'g Index<'g>,
    /// Graph inputs that are caches, by name.
    pub caches: HashMap<String, CacheInput>,
    /// Caches that a Concat appends to, by the name of its output.
    pub appended: HashMap<String, Appended>,
    evaluators: HashMap<(Sizes, bool), Evaluator<'g>>,
}

/// Dimension `axis` of a declared tensor, where it is a number.
pub fn static_dim(info: &ValueInfoProto, axis: usize) -> Option<usize> {
    let dim = info.type_.tensor_type().shape.dim.get(axis)?;
    dim.has_dim_value().then(|| usize::try_from(dim.dim_value()).ok()).flatten()
}

/// Number of dimensions of a declared tensor.
pub fn rank(info: &ValueInfoProto) -> Option<usize> {
    info.type_.tensor_type().shape.as_ref().map(|s| s.dim.len())
}

impl<'g> Context<'g> {
    /// Looks at the inputs of the graph and at what is appended to them.
    pub fn new(index: &'g Index<'g>) -> Self {
        let caches = index.graph.input.iter().filter(|i| index.input(i.name()).is_some() && is_cache(i));
        let caches: HashMap<_, _> = caches
            .map(|i| {
                let element = i.type_.tensor_type().elem_type();
                let cache = CacheInput { element, kv_heads: static_dim(i, 1), head_dim: static_dim(i, 3) };
                (i.name().to_string(), cache)
            })
            .collect();
        let mut context = Self { index, caches, appended: HashMap::new(), evaluators: HashMap::new() };
        for (n, node) in index.graph.node.iter().enumerate() {
            if let Some(appended) = context.append(n, node) {
                context.appended.insert(node.output[0].clone(), appended);
            }
        }
        context
    }

    fn append(&self, n: usize, node: &NodeProto) -> Option<Appended> {
        let [past, new] = node.input.as_slice() else { return None };
        let along_tokens = node.is_onnx("Concat") && matches!(node.int("axis"), Some(2 | -2));
        if !along_tokens || !self.caches.contains_key(past) || self.caches.contains_key(new) {
            return None;
        }
        let output = node.output.first()?;
        // Exporters name the output itself, or let an Identity do it.
        let readers = self.index.readers(output).iter().map(|&r| &self.index.graph.node[r]);
        let mut named = readers.filter(|r| r.is_onnx("Identity")).filter_map(|r| r.output.first());
        let present = match self.index.is_output(output) {
            true => output,
            false => named.find(|o| self.index.is_output(o))?,
        };
        Some(Appended { node: n, past: past.clone(), new: new.clone(), present: present.clone() })
    }

    /// The evaluator for calls of `sizes`, with an attention mask of ones, or with one that may be anything. Appended
    /// caches hold [`labels`].
    pub fn evaluator(&mut self, sizes: Sizes, mask_known: bool) -> &mut Evaluator<'g> {
        let (index, caches, appended) = (self.index, &self.caches, &self.appended);
        self.evaluators.entry((sizes, mask_known)).or_insert_with(|| {
            let mut evaluator = Evaluator::new(index);
            for input in &index.graph.input {
                if let Some(value) = given(input, caches.get(input.name()), sizes, mask_known) {
                    evaluator.give(input.name(), value);
                }
            }
            for (output, a) in appended {
                if let CacheInput { element, kv_heads: Some(h), head_dim: Some(d) } = caches[&a.past] {
                    let shape = [sizes.batch, h, sizes.total(), d];
                    let value = match USUAL.contains(&sizes) {
                        true => Value::known(element, labels(&shape)),
                        false => Value::shaped(element, shape.to_vec()),
                    };
                    evaluator.give(output, value);
                }
            }
            evaluator
        })
    }

    /// The value of `tensor` in a call of `sizes`.
    pub fn value(&mut self, tensor: &str, sizes: Sizes) -> Result<Rc<Value>, Rc<str>> {
        self.evaluator(sizes, true).value(tensor)
    }

    /// The shape of `tensor` in a usual call.
    pub fn shape(&mut self, tensor: &str) -> Result<Vec<usize>, Rc<str>> {
        Ok(self.value(tensor, USUAL[0])?.shape.clone())
    }

    /// The only element of `tensor`, if it is the same in all calls.
    pub fn constant(&mut self, tensor: &str) -> Option<f64> {
        let values = USUAL.map(|sizes| self.value(tensor, sizes).ok().and_then(|v| v.scalar().ok()));
        values[0].filter(|_| values[0] == values[1])
    }

    /// The cache input `name`, which `title` reads as `role`.
    ///
    /// # Errors
    /// It is none.
    pub fn cache(&self, title: &str, role: &str, name: Option<&str>) -> Result<&CacheInput, Refusal> {
        let expected = || format!("a cache input of the model as {role}");
        let name =
            name.ok_or_else(|| Refusal::new(title, expected(), "no such input: it reads no past keys and values"))?;
        self.caches.get(name).ok_or_else(|| {
            let found = match self.index.maker(name) {
                Some(node) => format!("'{name}', made by {}", node.title()),
                None => format!("'{name}', which is none"),
            };
            Refusal::new(title, expected(), found)
        })
    }

    /// The caches that the elements of `tensor` come from by way of nodes that only move or scale them.
    pub fn origins(&self, tensor: &str) -> Vec<&Appended> {
        let moves = [
            "Transpose",
            "Reshape",
            "Expand",
            "Unsqueeze",
            "Squeeze",
            "Flatten",
            "Tile",
            "Slice",
            "Gather",
            "Concat",
            "Split",
            "Mul",
            "Div",
            "Cast",
            "Identity",
        ];
        let (mut found, mut seen, mut queue) = (Vec::new(), HashSet::new(), vec![tensor]);
        while let Some(name) = queue.pop() {
            if !seen.insert(name) {
                continue;
            }
            if let Some(appended) = self.appended.get(name) {
                found.push(appended);
            } else if let Some(node) = self.index.maker(name).filter(|n| moves.iter().any(|m| n.is_onnx(m))) {
                queue.extend(node.input.iter().map(String::as_str).filter(|i| !i.is_empty()));
            }
        }
        found
    }
}

fn is_cache(input: &ValueInfoProto) -> bool {
    let floating = matches!(input.type_.tensor_type().elem_type(), 1 | 10 | 11 | 16);
    floating && rank(input) == Some(4)
}

/// A tensor that numbers its elements from 1.
pub fn labels(shape: &[usize]) -> ArrayD<f64> {
    let count = shape.iter().product::<usize>();
    ArrayD::from_shape_vec(IxDyn(shape), (1..=count).map(|i| i as f64).collect()).expect("as many as the shape says")
}

/// The value of a graph input in a call of `sizes`, where that is known.
fn given(input: &ValueInfoProto, cache: Option<&CacheInput>, sizes: Sizes, mask_known: bool) -> Option<Value> {
    let Sizes { batch, past, new } = sizes;
    let kind = input.type_.tensor_type().elem_type();
    if let Some(cache) = cache {
        return Some(Value::shaped(kind, vec![batch, cache.kv_heads?, past, cache.head_dim?]));
    }
    let filled = |shape: &[usize], at: &dyn Fn(usize) -> f64| {
        Value::known(kind, ArrayD::from_shape_fn(IxDyn(shape), |i| at(i[shape.len() - 1])))
    };
    let position = |i: usize| (past + i) as f64;
    let value = match input.name() {
        "input_ids" => Value::shaped(kind, vec![batch, new]),
        "inputs_embeds" => Value::shaped(kind, vec![batch, new, static_dim(input, 2)?]),
        "attention_mask" if rank(input) == Some(2) => filled(&[batch, past + new], &|_| 1.0),
        "position_ids" if rank(input) == Some(2) => filled(&[batch, new], &position),
        "cache_position" if rank(input) == Some(1) => filled(&[new], &position),
        _ => return None,
    };
    let fixed = matches!(kind, kinds::INT64 | 6 | kinds::BOOL) && (mask_known || input.name() == "cache_position");
    Some(if fixed { value } else { Value::shaped(kind, value.shape) })
}
