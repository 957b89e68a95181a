//! A model under examination: its index, its cache inputs, and evaluators at a few sizes.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use ndarray::{ArrayD, IxDyn};

pub use super::cache::CacheInput;
use super::cache::{joins_tokens, origin, passes_on};
use super::error::Refusal;
use super::operator::{self, Operator};
use super::sizes::{Length, MOST_PER_TOKEN, of_known_shape};
pub use super::sizes::{Sizes, USUAL, labels, rank, static_dim};
use crate::onnx::evaluate::{Constants, Evaluator, Fallback, Value, kinds};
use crate::onnx::proto::{NodeProto, ValueInfoProto};
use crate::onnx::{Index, NodeExt};

/// What a mask hides, in all calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Causality {
    /// All keys behind the query's own.
    pub hides_later: bool,
    /// Exactly those, whatever attention_mask contains.
    pub only_later: bool,
}

/// Added values at or below this one hide a key.
pub const HIDDEN: f64 = -1e4;

/// `Concat` of a cache input and new rows.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Position of the Concat in the graph.
    pub node: usize,
    /// The cache input.
    pub past: String,
    /// The new rows, `[B,Hk,L,D]`.
    pub new: String,
    /// The graph output.
    pub present: String,
    /// The Identity or Cast that gives the graph output its name, where the Concat does not.
    pub naming: Option<usize>,
}

impl Appended {
    /// The nodes that make the graph output.
    pub fn nodes(&self) -> impl Iterator<Item = usize> {
        [self.node].into_iter().chain(self.naming)
    }
}

/// What is known of a model during the search for its layers.
pub struct Context<'g> {
    /// The graph.
    pub index: &'g Index<'g>,
    /// Version of ONNX's own operators.
    pub opset: i64,
    /// Graph inputs that are caches, by name.
    pub caches: HashMap<String, CacheInput>,
    /// Caches that a Concat appends to, by the name of its output.
    pub appended: HashMap<String, Appended>,
    /// What masks hide, by tensor and by whether true hides.
    pub causalities: HashMap<(String, bool), Causality>,
    /// Constants read so far.
    pub constants: Constants,
    /// Dimensions named by inputs and outputs of known meaning.
    named: HashMap<&'g str, Length>,
    operators: &'static [Option<Operator>],
    evaluators: HashMap<(Sizes, bool), Evaluator<'g>>,
}

/// Most elements of caches of different shapes in one evaluator.
const MOST_LABELS: usize = 8 << 20;

impl<'g> Context<'g> {
    /// Examines the inputs of the graph, whose ONNX operators have version `opset`, the `operators` of attention, and
    /// what is appended to caches.
    ///
    /// # Errors
    /// A cache has more heads, or larger ones, than are supported.
    pub fn new(index: &'g Index<'g>, opset: i64, operators: &'static [Option<Operator>]) -> Result<Self, Refusal> {
        let mut caches = HashMap::new();
        for input in index.graph.input.iter().filter(|i| index.input(i.name()).is_some()) {
            let Some(cache) = CacheInput::of(index, input, operators) else { continue };
            let sizes = [cache.kv_heads, cache.head_dim].map(|size| size.unwrap_or(1));
            if !sizes[0].checked_mul(sizes[1]).is_some_and(|n| (1..=MOST_PER_TOKEN).contains(&n)) {
                let found = format!("{} heads of size {}", sizes[0], sizes[1]);
                return Err(Refusal::new(format!("input '{}'", input.name()), "a cache of keys or values", found));
            }
            caches.insert(input.name().to_string(), cache);
        }
        let mut context = Self {
            index,
            named: named_dimensions(index, &caches),
            opset,
            caches,
            appended: HashMap::new(),
            causalities: HashMap::new(),
            constants: Constants::default(),
            operators,
            evaluators: HashMap::new(),
        };
        for (n, node) in index.graph.node.iter().enumerate() {
            if let Some(appended) = context.append(n, node) {
                context.appended.insert(node.output[0].clone(), appended);
            }
        }
        Ok(context)
    }

    fn append(&self, n: usize, node: &NodeProto) -> Option<Appended> {
        let [past, new] = node.input.as_slice() else { return None };
        let past = origin(self.index, past);
        if !joins_tokens(node) || !self.caches.contains_key(past) || self.caches.contains_key(new) {
            return None;
        }
        let (present, naming) = self.as_output(node.output.first()?)?;
        Some(Appended { node: n, past: past.into(), new: new.clone(), present, naming })
    }

    /// The graph output that `tensor` is, and the Identity or Cast that gives it that name if it has another.
    pub fn as_output(&self, tensor: &str) -> Option<(String, Option<usize>)> {
        if self.index.is_output(tensor) {
            return Some((tensor.into(), None));
        }
        self.index.readers(tensor).iter().find_map(|&n| {
            let node = &self.index.graph.node[n];
            let output = node.output_at(0).filter(|output| passes_on(node) && self.index.is_output(output))?;
            Some((output.into(), Some(n)))
        })
    }

    /// The evaluator for calls of `sizes`, with an attention mask of ones, or with one that may be anything. Appended
    /// caches hold [`labels`].
    pub fn evaluator(&mut self, sizes: Sizes, mask_known: bool) -> &mut Evaluator<'g> {
        if !self.evaluators.contains_key(&(sizes, mask_known)) {
            let new = self.new_evaluator(sizes, mask_known);
            self.evaluators.insert((sizes, mask_known), new);
        }
        self.evaluators.get_mut(&(sizes, mask_known)).expect("just inserted")
    }

    /// An evaluator like that of [`Self::evaluator`], but not kept.
    pub fn new_evaluator(&self, sizes: Sizes, mask_known: bool) -> Evaluator<'g> {
        let mut evaluator = self.blank_evaluator().with_fallback(self.fallback(sizes));
        // The caches of most models all have the same shape.
        let mut labelled: HashMap<(i32, Vec<usize>), Rc<Value>> = HashMap::new();
        let mut left = MOST_LABELS;
        // An input with a default takes its initializer's value.
        for input in self.index.graph.input.iter().filter(|i| self.index.input(i.name()).is_some()) {
            let known = given(input, self.caches.get(input.name()), sizes, mask_known);
            if let Some(value) = known.or_else(|| self.of_known_shape(input, sizes)) {
                evaluator.give(input.name(), value);
            }
        }
        for (output, a) in &self.appended {
            if let CacheInput { element, kv_heads: Some(h), head_dim: Some(d) } = self.caches[&a.past] {
                let shape = vec![sizes.batch, h, sizes.total(), d];
                if !USUAL.contains(&sizes) {
                    evaluator.give(output, Value::shaped(element, shape));
                    continue;
                }
                let value = labelled.entry((element, shape)).or_insert_with_key(|(element, shape)| {
                    let known = labels(shape).filter(|data| {
                        left = left.saturating_sub(data.len());
                        left > 0
                    });
                    let known = known.map(|data| Value::known(*element, data));
                    Rc::new(known.unwrap_or_else(|| Value::shaped(*element, shape.clone())))
                });
                evaluator.give(output, value.clone());
            }
        }
        evaluator
    }

    /// An evaluator without any inputs.
    pub fn blank_evaluator(&self) -> Evaluator<'g> {
        let operators = self.operators;
        Evaluator::new(
            self.index,
            &self.constants,
            Rc::new(move |node, inputs| operator::infer(operators, node, inputs)),
        )
    }

    /// What is known of a tensor after nodes that cannot be evaluated: its declared shape, or the heads per token that
    /// the Reshape that makes it gives.
    fn fallback(&self, sizes: Sizes) -> Fallback<'g> {
        let (index, named) = (self.index, self.named.clone());
        let constants = self.constants.clone();
        let float = self.caches.values().next().map_or(1, |cache| cache.element);
        Rc::new(move |tensor| {
            if let Some(value) = index.declared(tensor).and_then(|info| of_known_shape(&named, info, sizes)) {
                return Some(value);
            }
            let node = index.maker(tensor).filter(|node| node.is_onnx("Reshape"))?;
            let wanted = constants.get(index, node.input_at(1)?)?.ok()?.ints().ok()?;
            match wanted[..] {
                [-1..=1, -1 | 0, heads, size] if heads > 0 && size > 0 => {
                    let [heads, size] = [heads, size].map(|d| usize::try_from(d).unwrap_or(0));
                    Some(Value::shaped(float, vec![sizes.batch, sizes.new, heads, size]))
                }
                _ => None,
            }
        })
    }

    /// An input of which only the shape is known, where that follows from `sizes`.
    fn of_known_shape(&self, input: &ValueInfoProto, sizes: Sizes) -> Option<Value> {
        of_known_shape(&self.named, input, sizes)
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

    /// The cache input `name`, which `title` reads as `role`, with its name.
    ///
    /// # Errors
    /// It is not a cache.
    pub fn cache(&self, title: &str, role: &str, name: Option<&'g str>) -> Result<(&CacheInput, String), Refusal> {
        let expected = || format!("a cache input of the model as {role}");
        let name =
            name.ok_or_else(|| Refusal::new(title, expected(), "no such input: it reads no past keys and values"))?;
        let name = origin(self.index, name);
        let cache = self.caches.get(name).ok_or_else(|| {
            let found = match (self.index.maker(name), self.index.input(name)) {
                (Some(node), _) => format!("'{name}', made by {}", node.title()),
                (None, Some(input)) => match rank(input) {
                    None => format!("'{name}', which declares no shape; declare [batch, heads, tokens, head size]"),
                    Some(4) => format!("'{name}' of element type {}", input.type_.tensor_type().elem_type()),
                    Some(rank) => format!("'{name}' of {rank} dimensions, not [batch, heads, tokens, head size]"),
                },
                (None, None) => format!("'{name}', which is none"),
            };
            Refusal::new(title, expected(), found)
        })?;
        Ok((cache, name.into()))
    }

    /// The graph input of four dimensions that the elements of `tensor` come from, following each node's first input.
    pub fn behind<'t>(&'t self, tensor: &'t str) -> Option<&'t str> {
        let mut tensor = tensor;
        loop {
            if self.index.input(tensor).is_some_and(|input| rank(input) == Some(4)) {
                return Some(tensor);
            }
            tensor = self.index.maker(tensor)?.input_at(0)?;
        }
    }

    /// The caches that the elements of `tensor` come from through nodes that only move or scale them.
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
            if !self.constants.may_follow(1) || !seen.insert(name) {
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

/// The dimension names used by inputs and outputs of known meaning, except names with several meanings.
fn named_dimensions<'g>(index: &Index<'g>, caches: &HashMap<String, CacheInput>) -> HashMap<&'g str, Length> {
    use Length::{Batch, New, Past, Total};
    let mut named = HashMap::new();
    for info in index.graph.input.iter().chain(&index.graph.output) {
        let lengths = match (info.name(), rank(info)) {
            ("input_ids" | "position_ids", Some(2)) | ("inputs_embeds", Some(3)) => [(0, Batch), (1, New)],
            ("attention_mask", Some(2)) => [(0, Batch), (1, Total)],
            (name, Some(4)) if caches.contains_key(name) => [(0, Batch), (2, Past)],
            (name, Some(4)) if name.contains("present") => [(0, Batch), (2, Total)],
            _ => continue,
        };
        for (axis, length) in lengths {
            let name = info.type_.tensor_type().shape.dim[axis].dim_param();
            let known = named.entry(name).or_insert(Some(length));
            *known = known.filter(|&known| known == length);
        }
    }
    named.into_iter().filter(|(name, _)| !name.is_empty()).filter_map(|(name, l)| Some((name, l?))).collect()
}

/// The value of a graph input in a call of `sizes`, where it is known.
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
