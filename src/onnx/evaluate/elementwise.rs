//! Operators that work element by element.

use ndarray::ArrayD;

use super::arrays::{bounded, broadcast_to};
use super::shapes::broadcast;
use super::value::{Inputs, Value, kinds, need};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub(super) type Binary = fn(f64, f64) -> f64;

/// The function that an operator with two or more inputs applies to elements.
pub(super) fn binary(operator: &str, integer: bool) -> Option<Binary> {
    Some(match operator {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" if integer => |a, b| (a / b).trunc(),
        "Div" => |a, b| a / b,
        "Mod" => |a, b| a - b * (a / b).floor(),
        "Pow" => f64::powf,
        "Min" => f64::min,
        "Max" => f64::max,
        "And" => |a, b| f64::from(a != 0.0 && b != 0.0),
        "Or" => |a, b| f64::from(a != 0.0 || b != 0.0),
        "Xor" => |a, b| f64::from((a != 0.0) != (b != 0.0)),
        "Equal" => |a, b| f64::from(a == b),
        "Less" => |a, b| f64::from(a < b),
        "LessOrEqual" => |a, b| f64::from(a <= b),
        "Greater" => |a, b| f64::from(a > b),
        "GreaterOrEqual" => |a, b| f64::from(a >= b),
        _ => return None,
    })
}

pub(super) fn elementwise(operator: &str, inputs: &Inputs<'_>, f: Binary) -> Result<Option<Value>, String> {
    let compares = matches!(operator, "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual");
    let first = need(inputs, 0)?;
    let kind = if compares { kinds::BOOL } else { first.kind };
    let all: Vec<&Value> = inputs.iter().copied().flatten().collect();
    let shape = broadcast(&all.iter().map(|v| v.shape.as_slice()).collect::<Vec<_>>())?;
    if all.len() > 2 {
        // Max and the like take any number of inputs.
        bounded([shape.as_slice(), &[all.len() / 2]].concat())?;
    }
    let Some(data) = all.iter().map(|v| v.data.as_ref()).collect::<Option<Vec<_>>>() else {
        return Ok(Some(Value::shaped(kind, shape)));
    };
    let mut result = broadcast_to(data[0], &shape)?;
    for other in &data[1..] {
        let other = broadcast_to(other, &shape)?;
        result.zip_mut_with(&other, |a, &b| *a = f(*a, b));
    }
    Ok(Some(Value::known(kind, result)))
}

/// The output of an operator with one input, `None` for any other operator.
pub(super) fn unary(operator: &str, kind: i32, data: &ArrayD<f64>) -> Option<Value> {
    let f: fn(f64) -> f64 = match operator {
        "Identity" | "Dropout" => |x| x,
        "Not" => |x| f64::from(x == 0.0),
        "Neg" => |x| -x,
        "Abs" => f64::abs,
        "Sqrt" => f64::sqrt,
        "Reciprocal" => |x| 1.0 / x,
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Sign" => f64::signum,
        "IsNaN" => |x| f64::from(x.is_nan()),
        _ => return None,
    };
    let kind = if operator == "IsNaN" { kinds::BOOL } else { kind };
    Some(Value::known(kind, data.mapv(f)))
}

pub(super) fn cast(node: &NodeProto, data: &ArrayD<f64>) -> Value {
    let kind = node.int("to").unwrap_or(0) as i32;
    let data = match kind {
        kinds::BOOL => data.mapv(|x| f64::from(x != 0.0)),
        k if kinds::is_integer(k) => data.mapv(f64::trunc),
        _ => data.clone(),
    };
    Value::known(kind, data)
}

/// The operator Where, by the elements of its condition.
pub(super) fn choose(condition: &ArrayD<f64>, inputs: &Inputs<'_>) -> Result<Option<Value>, String> {
    let (a, b) = (need(inputs, 1)?, need(inputs, 2)?);
    let (Some(yes), Some(no)) = (&a.data, &b.data) else { return Ok(None) };
    let shape = broadcast(&[condition.shape(), &a.shape, &b.shape])?;
    let (c, yes, no) = (broadcast_to(condition, &shape)?, broadcast_to(yes, &shape)?, broadcast_to(no, &shape)?);
    let data = ndarray::Zip::from(&c).and(&yes).and(&no).map_collect(|&c, &y, &n| if c != 0.0 { y } else { n });
    Ok(Some(Value::known(a.kind, data)))
}
