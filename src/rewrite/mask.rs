//! What an attention mask is: causal and thus not needed, or a bias to keep.

use ndarray::{ArrayD, Ix4, IxDyn};

use super::context::{Context, Sizes, USUAL};
use super::layer::Bias;
use crate::onnx::evaluate::kinds;
use crate::onnx::{Index, NodeExt};

/// A mask as an exported graph has it.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'m> {
    /// The tensor: true where a key is seen, or what is added to scores.
    pub tensor: &'m str,
    /// What is added where a boolean mask is false.
    pub masked: f32,
}

/// What replaces a mask.
#[derive(Clone, Debug, PartialEq)]
pub struct Masking {
    /// Attribute `causal`.
    pub causal: bool,
    /// attention_bias
    pub bias: Option<Bias>,
}

/// Added values from here on hide a key.
const HIDDEN: f64 = -1e4;

/// Calls that tell causal masks from others.
const CALLS: [Sizes; 4] =
    [USUAL[0], USUAL[1], Sizes { batch: 1, past: 0, new: 5 }, Sizes { batch: 2, past: 7, new: 2 }];

/// What becomes of `mask` over the keys of a layer whose query has type `element`. A causal mask that nothing else
/// goes into is dropped, any other stays as attention_bias; in a mask that hides all later keys, and more, the attribute
/// `causal` repeats what is hidden anyway, so that the kernel need not look there.
pub fn replace(context: &mut Context<'_>, mask: Mask<'_>, element: i32) -> Masking {
    let (tensor, masked) = simplify(context, mask);
    let hides_later = CALLS.iter().all(|&sizes| hides(context, &tensor, sizes, |key, last| key > last, false));
    if hides_later && is_causal(context, &tensor) {
        return Masking { causal: true, bias: None };
    }
    let value = context.value(&tensor, USUAL[0]).ok();
    let boolean = value.as_ref().map_or(masked.is_some(), |v| v.kind == kinds::BOOL);
    let Sizes { new, .. } = USUAL[0];
    let whole = |shape: &[usize]| shape.len() == 4 && shape[2] == new;
    let bias = Bias {
        masked: boolean.then(|| masked.unwrap_or(f32::NEG_INFINITY)),
        cast: !boolean && value.as_ref().is_none_or(|v| v.kind != element),
        expand: !value.is_some_and(|v| whole(&v.shape)),
        tensor,
    };
    Masking { causal: hides_later, bias: Some(bias) }
}

/// The tensor that `mask` is made from, before it is cut to the number of keys (a bias may have more columns) and
/// before false becomes a number; layers then share it.
fn simplify(context: &mut Context<'_>, mask: Mask<'_>) -> (String, Option<f32>) {
    let mut tensor = mask.tensor.to_string();
    let mut masked = None;
    let boolean = |context: &mut Context<'_>, t: &str| context.value(t, USUAL[0]).is_ok_and(|v| v.kind == kinds::BOOL);
    if boolean(context, &tensor) {
        masked = Some(mask.masked);
    }
    while let Some(node) = context.index.maker(&tensor) {
        if node.is_onnx("Slice") && cuts_columns(context, node.input_at(0), &tensor) {
            tensor = node.input[0].clone();
        } else if let (true, Some([condition, zero, low])) = (node.is_onnx("Where"), node.input.first_chunk::<3>()) {
            match (context.constant(zero), context.constant(low)) {
                (Some(0.0), Some(low)) if low <= HIDDEN && boolean(context, condition) => {
                    (tensor, masked) = (condition.clone(), Some(low as f32));
                }
                _ => break,
            }
        } else {
            break;
        }
    }
    (tensor, masked)
}

/// Whether `cut` is the first columns of `whole`.
fn cuts_columns(context: &mut Context<'_>, whole: Option<&str>, cut: &str) -> bool {
    let Some(whole) = whole else { return false };
    USUAL.iter().all(|&sizes| {
        let (Ok(a), Ok(b)) = (context.value(whole, sizes), context.value(cut, sizes)) else { return false };
        let rank = a.shape.len();
        if rank != b.shape.len()
            || rank < 2
            || a.shape[..rank - 1] != b.shape[..rank - 1]
            || b.shape[rank - 1] != sizes.total()
        {
            return false;
        }
        match (&a.data, &b.data) {
            (Some(a), Some(b)) => {
                let first = ndarray::Slice::from(..sizes.total());
                a.slice_axis(ndarray::Axis(rank - 1), first) == b.view()
            }
            _ => false,
        }
    })
}

/// Whether `tensor` at `sizes` hides the keys for which `hidden(key, last key the query may see)`, and, if `only`, no
/// others.
fn hides(
    context: &mut Context<'_>,
    tensor: &str,
    sizes: Sizes,
    hidden: impl Fn(usize, usize) -> bool,
    only: bool,
) -> bool {
    let known = !only;
    let Ok(value) = context.evaluator(sizes, known).value(tensor) else { return false };
    let Some(data) = &value.data else { return false };
    let Some(data) = whole(data, sizes) else { return false };
    let boolean = value.kind == kinds::BOOL;
    data.indexed_iter().all(|((_, _, query, key), &x)| {
        if key >= sizes.total() {
            return true;
        }
        let hides = if boolean { x == 0.0 } else { x <= HIDDEN };
        let shows = if boolean { x != 0.0 } else { x == 0.0 };
        match hidden(key, sizes.past + query) {
            true => hides,
            false => !only || shows,
        }
    })
}

/// `[.., L, columns]`, as many dimensions as attention_bias has.
fn whole(data: &ArrayD<f64>, sizes: Sizes) -> Option<ndarray::Array4<f64>> {
    let rank = data.ndim();
    if rank > 4 || *data.shape().last()? < sizes.total() {
        return None;
    }
    let mut shape = vec![1; 4 - rank];
    shape.extend(data.shape());
    let data = data.to_shape(IxDyn(&shape)).ok()?.into_owned();
    shape[2] = sizes.new;
    data.broadcast(IxDyn(&shape))?.to_owned().into_dimensionality::<Ix4>().ok()
}

/// Whether `tensor` is exactly causal, whatever attention_mask says.
fn is_causal(context: &mut Context<'_>, tensor: &str) -> bool {
    let windows = constants(context.index, tensor);
    // A window shows only in calls longer than it.
    let longer = windows.into_iter().map(|w| Sizes { batch: 1, past: w + 3, new: 1 });
    let calls: Vec<Sizes> = CALLS.into_iter().chain(longer).collect();
    calls.into_iter().all(|sizes| hides(context, tensor, sizes, |key, last| key > last, true))
}

/// Lengths that stand as numbers in what `tensor` is made by.
fn constants(index: &Index<'_>, tensor: &str) -> Vec<usize> {
    use crate::onnx::evaluate::Value;
    let (mut seen, mut queue, mut found) = (std::collections::BTreeSet::new(), vec![tensor], Vec::new());
    while let Some(name) = queue.pop() {
        if !seen.insert(name) {
            continue;
        }
        let constant = match index.maker(name) {
            Some(node) if node.is_onnx("Constant") => node.tensor("value").and_then(|t| Value::constant(t).ok()),
            // Behind a shape are tokens, not lengths of masks.
            Some(node) if node.is_onnx("Shape") => None,
            Some(node) => {
                queue.extend(node.input.iter().map(String::as_str).filter(|i| !i.is_empty()));
                None
            }
            None => index.initializer(name).and_then(|t| Value::constant(t).ok()),
        };
        let lengths = constant.and_then(|c| c.ints().ok()).unwrap_or_default();
        found.extend(
            lengths.into_iter().map(i64::unsigned_abs).filter(|l| (8..=1 << 22).contains(l)).map(|l| l as usize),
        );
    }
    found.sort_unstable();
    found.dedup();
    // More than a few are no lengths but a table.
    found.truncate(8);
    found
}
