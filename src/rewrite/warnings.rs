//! What a user should know after a successful rewrite.

use super::cache::is_cache_name;
use super::folder::GenAiFolder;
use super::inspect::Inspection;
use super::layer::Layer;
use super::options::Options;
use super::rows::Rows;
use super::sizes::rank;
use crate::onnx::proto::{ModelProto, ValueInfoProto};

/// About `model`, before its `layers` are replaced: states that are not attention caches, caches whose type differs
/// from attention's, and `roundings` that were removed from attention.
pub fn of_model(model: &ModelProto, layers: &[Layer], roundings: usize) -> Vec<String> {
    let inputs = model.graph.iter().flat_map(|graph| &graph.input);
    let layer = |input: &ValueInfoProto| layers.iter().find(|l| l.cache.past.iter().any(|past| past == input.name()));
    let (mut states, mut cast) = (Vec::new(), Vec::new());
    for input in inputs {
        let element = input.type_.tensor_type().elem_type();
        match layer(input) {
            Some(layer) if layer.element != element => cast.push(input.name()),
            None if is_cache_name(input.name()) && rank(input) > Some(2) => states.push(input.name()),
            _ => {}
        }
    }
    let states = (!states.is_empty())
        .then(|| format!("inputs that are no caches of attention stay as they are: {}", states.join(", ")));
    let cast = (!cast.is_empty()).then(|| {
        let element = if layers[0].element == 10 { "float16" } else { "float32" };
        format!(
            "the model casts its caches to {element}; they are {element} inputs and outputs now: {}",
            cast.join(", ")
        )
    });
    let rounded = (roundings > 0).then(|| {
        format!(
            "attention was quantised: its {roundings} roundings (QuantizeLinear, DequantizeLinear) of keys, scores, \
             probabilities and values are gone, it is computed in float now"
        )
    });
    states.into_iter().chain(cast).chain(rounded).collect()
}

/// Above this ratio decoding suffers without recent keys.
const RECENT_ABOVE: f64 = 0.6;

/// Warnings that follow from `options` and the resulting `rows` of each layer.
pub fn of_options(options: &Options, rows: &[Rows], folder: Option<&GenAiFolder>, calibrated: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let prunes_much = rows.iter().any(|rows| rows.ratio > RECENT_ABOVE);
    let rows = &rows[0];
    if prunes_much && rows.recent_window == 0 && rows.tail_window == 0 {
        warnings.push(format!(
            "above ratio {RECENT_ABOVE} decoded tokens need recent keys to stay accurate: --recent 16 does"
        ));
    }
    if rows.tail_window > 0 && folder.is_some_and(|folder| !folder.shares_buffer()) {
        let warning = "genai_config.json does not set search.past_present_share_buffer: caches that grow have no room \
                       for recent keys, and the error is several times as large";
        warnings.push(warning.into());
    }
    if !calibrated && !options.dry_run {
        warnings.push("not calibrated: models whose keys have outlier channels lose accuracy".into());
    }
    warnings
}

/// Warns that caches which held a window of tokens now hold all of them.
pub fn whole_caches(layers: &[Layer], rewritten: &Inspection) -> Option<String> {
    let windowed: Vec<&Layer> = layers.iter().filter(|l| l.windowed_cache).collect();
    let tokens = windowed.iter().map(|l| l.window).max()?;
    let before = rewritten.original_bytes_per_token / layers.len() * windowed.len() * tokens.max(0) as usize;
    let now = rewritten.bytes_per_token / layers.len() * windowed.len();
    Some(format!(
        "the caches of {} layers held the last {tokens} tokens only (sliding_window_cache), {before} bytes; they hold \
         all tokens now, {now} bytes each, and hosts must not cut them",
        windowed.len()
    ))
}
