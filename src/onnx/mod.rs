//! ONNX models as files and graphs. Reading and writing preserves unknown fields, and weights stay in their files.
//!
//! Knows ONNX, but nothing of attention or caches.

mod cleanup;
pub mod evaluate;
mod external;
mod file;
mod functions;
mod index;
mod measure;
mod node;

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/onnx/mod.rs"));
}

/// The messages of onnx.proto.
pub mod proto {
    pub use super::generated::onnx::*;
}

/// The version of ONNX's own operators that `model` imports, 0 if none.
pub fn onnx_opset(model: &proto::ModelProto) -> i64 {
    model.opset_import.iter().find(|o| matches!(o.domain(), "" | "ai.onnx")).map_or(0, |o| o.version())
}

pub use cleanup::{remove_nodes, sort_nodes};
pub use external::{DataFile, Placement, check_data, data_files, data_locations, move_data};
pub(crate) use external::{Homes, place};
pub(crate) use file::write_text;
pub use file::{FileError, MOST_BYTES, read, write};
pub use functions::inline_functions;
pub(crate) use index::reads;
pub use index::{Index, OrderError};
pub use node::NodeExt;
