//! Weights for the graphs of the project, which are kept without them.

use anyhow::Result;
use protobuf::Message;
use spark_ort::onnx::proto::tensor_proto::DataLocation;
use spark_ort::onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};

use crate::targets::WEIGHTS;

/// ONNX's number of float32.
const FLOAT: i32 = 1;

/// `model` with random weights, out of a file that all its weights share, where it has none. `None`: its weights have other
/// types.
pub fn lend(model: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut model = ModelProto::parse_from_bytes(model)?;
    let Some(graph) = model.graph.as_mut() else { return Ok(None) };
    let lacking = |t: &TensorProto| t.data_location() == DataLocation::EXTERNAL || is_empty(t);
    let mut given = 0;
    for (number, tensor) in graph.initializer.iter_mut().filter(|t| lacking(t)).enumerate() {
        let count = tensor.dims.iter().product::<i64>().unsigned_abs() as usize;
        if tensor.data_type() != FLOAT || 4 * count > WEIGHTS.1 {
            return Ok(None);
        }
        // Weights of one size are not all alike.
        let offset = (4096 * number) % (WEIGHTS.1 - 4 * count + 1) / 4096 * 4096;
        let entries =
            [("location", WEIGHTS.0.to_string()), ("offset", offset.to_string()), ("length", (4 * count).to_string())];
        tensor.external_data = entries.map(|(key, value)| entry(key, value)).into();
        tensor.set_data_location(DataLocation::EXTERNAL);
        given += 1;
    }
    Ok(if given > 0 { Some(model.write_to_bytes()?) } else { None })
}

/// Whether a tensor that should have elements has none.
fn is_empty(tensor: &TensorProto) -> bool {
    let lists = tensor.float_data.len() + tensor.int32_data.len() + tensor.int64_data.len() + tensor.double_data.len();
    tensor.raw_data().is_empty() && lists == 0 && !tensor.dims.contains(&0)
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    let mut entry = StringStringEntryProto::new();
    entry.set_key(key.into());
    entry.set_value(value);
    entry
}
