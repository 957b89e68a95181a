//! QuantizeLinear and DequantizeLinear with one scale for all elements.

use super::value::{Inputs, Value, kinds, need};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// The output of `node`, one of the two, whose first input is known; `None` if only its shape can be known.
pub(super) fn evaluate(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Option<Value>, String> {
    let (x, scale) = (need(inputs, 0)?, need(inputs, 1)?);
    let zero = inputs.get(2).copied().flatten();
    let (Some(data), Ok(factor), Some(Ok(offset))) =
        (&x.data, scale.scalar(), zero.map_or(Some(Ok(0.0)), |zero| zero.data.is_some().then(|| zero.scalar())))
    else {
        return Ok(None);
    };
    if node.op_type() == "DequantizeLinear" {
        return Ok(Some(Value::known(scale.kind, data.mapv(|x| (x - offset) * factor))));
    }
    let kind = zero.map_or(node.int("output_dtype").map_or(kinds::UINT8, |kind| kind as i32), |zero| zero.kind);
    let Some((lowest, highest)) = kinds::range(kind) else { return Ok(None) };
    let rounded = |x: f64| ((x / factor).round_ties_even() + offset).clamp(lowest, highest);
    Ok(Some(Value::known(kind, data.mapv(rounded))))
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;

    fn run(operator: &str, x: Value, scale: f64, zero: Option<(i32, f64)>) -> Value {
        let mut node = NodeProto::new();
        node.set_op_type(operator.into());
        let scalar = |kind, x| Value::known(kind, ndarray::arr0(x).into_dyn());
        let (scale, zero) = (scalar(kinds::FLOAT, scale), zero.map(|(kind, zero)| scalar(kind, zero)));
        evaluate(&node, &[Some(&x), Some(&scale), zero.as_ref()]).unwrap().unwrap()
    }

    #[test]
    fn rounds_to_even_and_saturates() {
        let x = Value::known(kinds::FLOAT, arr1(&[0.0, 0.25, 0.75, -100.0, 1e9]).into_dyn());
        let signed = run("QuantizeLinear", x.clone(), 0.5, Some((kinds::INT8, 3.0)));
        assert_eq!(
            (signed.kind, signed.elements().unwrap()),
            (kinds::INT8, &arr1(&[3.0, 3.0, 5.0, -128.0, 127.0]).into_dyn())
        );
        let unsigned = run("QuantizeLinear", x, 0.5, None);
        assert_eq!(
            (unsigned.kind, unsigned.elements().unwrap()),
            (kinds::UINT8, &arr1(&[0.0, 0.0, 2.0, 0.0, 255.0]).into_dyn())
        );
        let back = run("DequantizeLinear", signed, 0.5, Some((kinds::INT8, 3.0)));
        assert_eq!(
            (back.kind, back.elements().unwrap()),
            (kinds::FLOAT, &arr1(&[0.0, 0.0, 1.0, -65.5, 62.0]).into_dyn())
        );
    }
}
