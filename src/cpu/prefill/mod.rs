//! Attention of many queries, as in prompts: tiles of keys and values are decoded to float32 and multiplied with many
//! queries.

pub(super) mod driver;
mod gemm;
mod tile;
mod tile_softmax;
