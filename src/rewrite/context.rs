//! A model under examination: its index, its cache inputs, and evaluators at a few sizes.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use ndarray::{ArrayD, IxDyn};

use super::error::Refusal;
use super::mask::Causality;
use crate::onnx::evaluate::{Constants, Evaluator, Value, kinds};
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

    fn of(self, length: Length) -> usize {
        match length {
            Length::Batch => self.batch,
            Length::Past => self.past,
            Length::New => self.new,
            Length::Total => self.total(),
        }
    }
}

/// What a dimension counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Batch,
    Past,
    New,
    Total,
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
    /// The Identity that gives the graph output its name, where the Concat does not.
    pub naming: Option<usize>,
}

impl Appended {
    /// The nodes that make the graph output.
    pub fn nodes(&self) -> impl Iterator<Item = usize> {
        [self.node].into_iter().chain(self.naming)
    }
}

/// What is known of a model while its layers are looked for.
pub struct Context<'g> {
    /// The graph.
    pub index: &'g Index<'g>,
    /// Version of ONNX's own operators.
    pub opset: i64,
    /// Graph inputs that are caches, by name.
    pub caches: HashMap<String, CacheInput>,
    /// Caches that a Concat appends to, by the name of its output.
    pub appended: HashMap<String, Appended>,
    /// What is known of masks: by tensor, and whether true hides.
    pub causalities: HashMap<(String, bool), Causality>,
    /// Constants read so far.
    pub constants: Constants,
    /// Dimensions that inputs and outputs of known meaning name.
    named: HashMap<&'g str, Length>,
    evaluators: HashMap<(Sizes, bool), Evaluator<'g>>,
}

/// Most elements of a cache for one token that are followed.
const MOST_PER_TOKEN: usize = 1 << 18;

/// Most elements of caches of different shapes in one evaluator.
const MOST_LABELS: usize = 8 << 20;

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
    /// Looks at the inputs of the graph, of operators of version `opset`, and at what is appended to them.
    ///
    /// # Errors
    /// A cache has more heads, or larger ones, than there can be.
    pub fn new(index: &'g Index<'g>, opset: i64) -> Result<Self, Refusal> {
        let mut caches = HashMap::new();
        for input in index.graph.input.iter().filter(|i| index.input(i.name()).is_some() && is_cache(index, i)) {
            let element = input.type_.tensor_type().elem_type();
            let cache = CacheInput { element, kv_heads: static_dim(input, 1), head_dim: static_dim(input, 3) };
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
        if !joins_tokens(node) || !self.caches.contains_key(past) || self.caches.contains_key(new) {
            return None;
        }
        let output = node.output.first()?;
        // Exporters name the output itself, or let an Identity do it.
        let names = |n: &usize| {
            let node = &self.index.graph.node[*n];
            node.is_onnx("Identity") && node.output_at(0).is_some_and(|o| self.index.is_output(o))
        };
        let naming = match self.index.is_output(output) {
            true => None,
            false => Some(self.index.readers(output).iter().copied().find(names)?),
        };
        let present = naming.map_or(output, |n| &self.index.graph.node[n].output[0]).clone();
        Some(Appended { node: n, past: past.clone(), new: new.clone(), present, naming })
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

    /// An evaluator as [`Self::evaluator`] gives, which is not kept.
    pub fn new_evaluator(&self, sizes: Sizes, mask_known: bool) -> Evaluator<'g> {
        let mut evaluator = Evaluator::new(self.index, &self.constants);
        // The caches of most models are all alike.
        let mut labelled: HashMap<(i32, Vec<usize>), Rc<Value>> = HashMap::new();
        let mut left = MOST_LABELS;
        for input in &self.index.graph.input {
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

    /// An input of which nothing is known but its shape, where that follows from `sizes`.
    fn of_known_shape(&self, input: &ValueInfoProto, sizes: Sizes) -> Option<Value> {
        let tensor = input.type_.tensor_type();
        let size = |axis: usize| {
            let named = || self.named.get(tensor.shape.dim[axis].dim_param()).map(|&length| sizes.of(length));
            static_dim(input, axis).or_else(named)
        };
        let shape = (0..rank(input)?).map(size).collect::<Option<_>>()?;
        Some(Value::shaped(tensor.elem_type(), shape))
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

/// Whether a graph input of this name is a cache, as exporters name them.
pub fn is_cache_name(name: &str) -> bool {
    name.contains("past") || name.contains("cache")
}

/// Whether `input` is a cache: by its name, or by what reads it, as there are masks of four dimensions too.
fn is_cache(index: &Index<'_>, input: &ValueInfoProto) -> bool {
    let name = input.name();
    let as_past = |&n: &usize| {
        let node = &index.graph.node[n];
        let places = match node.op_type() {
            "Attention" => [4, 5],
            "GroupQueryAttention" => [3, 4],
            "MultiHeadAttention" => [6, 7],
            _ if joins_tokens(node) => [0, 0],
            _ => return false,
        };
        places.iter().any(|&i| node.input_at(i) == Some(name))
    };
    let floating = matches!(input.type_.tensor_type().elem_type(), 1 | 10 | 11 | 16);
    floating && rank(input) == Some(4) && (is_cache_name(name) || index.readers(name).iter().any(as_past))
}

/// The names that inputs and outputs of known meaning give their dimensions, unless one name stands for several.
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

/// Whether `node` puts tensors `[B,H,tokens,D]` one behind the other.
fn joins_tokens(node: &NodeProto) -> bool {
    node.is_onnx("Concat") && matches!(node.int("axis"), Some(2 | -2))
}

/// A tensor that numbers its elements from 1; `None` if there are too many.
pub fn labels(shape: &[usize]) -> Option<ArrayD<f64>> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= 16 * MOST_PER_TOKEN)?;
    ArrayD::from_shape_vec(IxDyn(shape), (1..=count).map(|i| i as f64).collect()).ok()
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
