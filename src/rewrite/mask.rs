//! Masks: causal ones are dropped, others are kept as a bias.

use super::causality::causality;
use super::context::{Context, HIDDEN, Sizes, USUAL, labels};
use super::error::Refusal;
use super::layer::Bias;
use crate::onnx::NodeExt;
use crate::onnx::evaluate::{Value, kinds};
use crate::onnx::proto::NodeProto;

/// A mask as an exported graph has it.
#[derive(Clone, Debug)]
pub struct Mask {
    /// The tensor: a boolean mask, or a mask added to scores.
    pub tensor: String,
    /// What a boolean mask adds to the score of a hidden key.
    pub low: f32,
    /// A boolean mask is true where a key is hidden, not where it is seen.
    pub hides: bool,
}

impl Mask {
    /// A mask that attention operators read.
    pub fn new(tensor: &str) -> Self {
        Self { tensor: tensor.into(), low: f32::NEG_INFINITY, hides: false }
    }
}

/// What replaces masks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Masking {
    /// Attribute `causal`.
    pub causal: bool,
    /// The terms of attention_bias.
    pub bias: Vec<Bias>,
}

/// A mask before conversion and slicing.
struct Origin {
    tensor: String,
    /// For a boolean tensor: the value added to the score of a hidden key.
    low: Option<f32>,
    hides: bool,
}

/// Replaces the `masks` of the scores of layer `title`, whose query has type `element`; `grouped` scores are
/// `[B,Hk,G,L,S]`. A mask that is only causal is dropped; any other stays in attention_bias. For a mask that hides all
/// later keys and others too, `causal` is set as well, so that the kernel skips the later keys.
///
/// # Errors
/// A mask of another shape, or of unknown element type.
pub fn replace(
    context: &mut Context<'_>,
    title: &str,
    masks: &[Mask],
    element: i32,
    grouped: bool,
) -> Result<Masking, Refusal> {
    let mut masking = Masking::default();
    for mask in masks {
        // Masks that are added up must have the same number of columns.
        let origin = origin(context, mask, masks.len() == 1);
        let found = causality(context, &origin.tensor, origin.hides);
        masking.causal |= found.hides_later;
        if !found.only_later {
            masking.bias.push(bias(context, title, origin, element, grouped)?);
        }
    }
    Ok(masking)
}

fn bias(context: &mut Context<'_>, title: &str, origin: Origin, element: i32, grouped: bool) -> Result<Bias, Refusal> {
    let Origin { tensor, low, hides } = origin;
    let kind = element_type(context, &tensor);
    if low.is_none() && kind.is_none() {
        let expected = "a mask that is known to be boolean, or of numbers";
        return Err(Refusal::new(title, expected, format!("'{tensor}', of which nothing says its type")));
    }
    let shape = context.shape(&tensor).ok();
    let refuse = |found: &str| {
        let expected = if grouped { "one mask for all heads" } else { "a mask of four dimensions at most" };
        Err(Refusal::new(title, expected, format!("'{tensor}', {found}")))
    };
    let mut drop_axis = false;
    match shape.as_deref() {
        Some([_, heads @ .., _, _]) if grouped && heads.len() == 2 => {
            if heads != [1, 1] {
                return refuse("which differs between heads");
            }
            drop_axis = true;
        }
        Some([heads @ .., _, _]) if grouped && heads.iter().any(|&d| d != 1) => {
            return refuse("which differs between heads");
        }
        Some(shape) if shape.len() > 4 => return refuse("of more"),
        None if grouped => return refuse("whose shape cannot be followed"),
        _ => {}
    }
    let whole = |shape: &[usize]| {
        shape.len() == if drop_axis { 5 } else { 4 } && shape.iter().nth_back(1) == Some(&USUAL[0].new)
    };
    Ok(Bias {
        masked: low,
        hides,
        cast: low.is_none() && kind != Some(element),
        drop_axis,
        expand: !shape.is_some_and(|shape| whole(&shape)),
        tensor,
    })
}

/// The tensor that `mask` is made from, before booleans become numbers and, if `cut`, before it is sliced to the
/// number of keys (a bias may have more columns). Layers can then share it.
fn origin(context: &mut Context<'_>, mask: &Mask, cut: bool) -> Origin {
    let (mut tensor, mut hides) = (mask.tensor.clone(), mask.hides);
    let mut low = (element_type(context, &tensor) == Some(kinds::BOOL)).then_some(mask.low);
    while let Some(node) = context.index.maker(&tensor).filter(|_| context.constants.may_follow(1)) {
        if node.is_onnx("Identity") || cut && node.is_onnx("Slice") && cuts_columns(context, node) {
            tensor = node.input[0].clone();
        } else if let (true, Some(input)) = (node.is_onnx("Not"), node.input_at(0)) {
            (tensor, hides) = (input.to_string(), !hides);
        } else if let (true, Some([condition, yes, no])) = (node.is_onnx("Where"), node.input.first_chunk::<3>()) {
            match (context.constant(yes), context.constant(no)) {
                (Some(0.0), Some(number)) if number <= HIDDEN => (low, hides) = (Some(number as f32), false),
                (Some(number), Some(0.0)) if number <= HIDDEN => (low, hides) = (Some(number as f32), true),
                _ => break,
            }
            tensor = condition.clone();
        } else {
            break;
        }
    }
    Origin { tensor, low, hides }
}

/// Whether `slice` takes the first columns of a tensor, one per key.
fn cuts_columns(context: &mut Context<'_>, slice: &NodeProto) -> bool {
    USUAL.iter().all(|&sizes| first_columns(context, slice, sizes).unwrap_or(false))
}

fn first_columns(context: &mut Context<'_>, slice: &NodeProto, sizes: Sizes) -> Option<bool> {
    let (whole, cut) = (slice.input_at(0)?, slice.output_at(0)?);
    let value = context.value(whole, sizes).ok()?;
    let numbered = labels(&value.shape)?;
    let mut evaluator = context.blank_evaluator();
    evaluator.give(whole, Value::known(value.kind, numbered.clone()));
    for limit in slice.input[1..].iter().filter(|i| !i.is_empty()) {
        evaluator.give(limit, (*context.value(limit, sizes).ok()?).clone());
    }
    let found = evaluator.value(cut).ok()?;
    let last = value.shape.len().checked_sub(1)?;
    let first = ndarray::Slice::from(..sizes.total());
    Some(value.shape[last] >= sizes.total() && found.data.as_ref()? == numbered.slice_axis(ndarray::Axis(last), first))
}

/// The element type of `tensor`: evaluated, declared, or derived from the nodes that make it.
fn element_type(context: &mut Context<'_>, tensor: &str) -> Option<i32> {
    let mut tensor = tensor.to_string();
    loop {
        if let Ok(value) = context.value(&tensor, USUAL[0]) {
            return Some(value.kind);
        }
        let declared = context.index.declared(&tensor).map(|info| info.type_.tensor_type().elem_type());
        if let Some(kind) = declared.filter(|&kind| kind != 0) {
            return Some(kind);
        }
        let follow = |n: &&NodeProto| n.is_onnx(n.op_type()) && context.constants.may_follow(1);
        let node = context.index.maker(&tensor).filter(follow)?;
        let like = match node.op_type() {
            "And" | "Or" | "Not" | "Xor" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual"
            | "IsNaN" | "IsInf" => return Some(kinds::BOOL),
            "Cast" => return node.int("to").map(|to| to as i32),
            "Where" => 1,
            "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand" | "Tile" | "Transpose"
            | "Slice" | "Gather" | "GatherND" | "Concat" | "Split" | "Trilu" | "ScatterND" | "Add" | "Sub" | "Mul"
            | "Div" | "Neg" | "Min" | "Max" | "Clip" | "Pow" => 0,
            _ => return None,
        };
        tensor = node.input_at(like)?.to_string();
    }
}
