//! What one call of an operator asks for: settings from attributes, sizes from input shapes, lengths and positions from
//! small integer inputs. Everything that comes from a host is validated here, before any kernel uses it as a size, an
//! offset or a divisor. Knows nothing of ONNX Runtime, nor of where tensors lie.

mod geometry;
mod input;
mod lengths;
mod settings;

pub use geometry::{Geometry, MOST_CHANNELS_A_TOKEN, QueryLayout, Shapes};
pub use input::{CallError, Input};
pub use lengths::{Lengths, channel_scales, check_bias_columns, positions};
pub use settings::{AttentionSettings, Attribute, Attributes, PruneSettings, Rotary, Settings};
