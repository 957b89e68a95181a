//! Finding all attention layers of a model.

use std::collections::HashSet;

use super::apply::DOMAIN;
use super::cache::is_cache_name;
use super::context::{Context, rank, static_dim};
use super::diagnosis::{no_caches, why_unknown};
use super::error::Refusal;
use super::layer::Layer;
use super::source;
use crate::onnx::proto::{GraphProto, ModelProto, ValueInfoProto};
use crate::onnx::{Index, NodeExt, onnx_opset};

/// All attention layers of `model` that read cache inputs.
///
/// # Errors
/// There are no layers, or one cannot be rewritten.
pub fn find_layers(model: &ModelProto) -> Result<Vec<Layer>, Refusal> {
    let graph = model.graph.as_ref().ok_or_else(|| Refusal::new("the model", "a graph", "none"))?;
    if let Some(node) = graph.node.iter().find(|n| n.domain() == DOMAIN) {
        return Err(Refusal::new(node.title(), "a model as it was exported", "one that is already rewritten"));
    }
    whole_model(graph)?;
    let index = Index::new(graph).map_err(|e| Refusal::new("the graph", "nodes in order", e.to_string()))?;
    let mut context = Context::new(&index, onnx_opset(model), source::OPERATORS)?;
    let mut layers = Vec::new();
    for n in 0..graph.node.len() {
        layers.extend(source::layer_at(&mut context, n)?);
    }
    all_caches_are_claimed(&context, &layers)?;
    if let Some(other) = layers.iter().find(|l| l.head_dim != layers[0].head_dim) {
        let expected = format!("head size {}, as the first layer has", layers[0].head_dim);
        let found = format!("{}; models whose head size differs by layer cannot be rewritten yet", other.head_dim);
        return Err(Refusal::new(&other.title, expected, found));
    }
    for layer in &layers {
        let d = layer.head_dim;
        if !d.is_multiple_of(8) || !(32..=256).contains(&d) {
            return Err(Refusal::new(&layer.title, "a head size of 32 to 256, divisible by 8", d.to_string()));
        }
        if !matches!(layer.element, 1 | 10) {
            let found = if layer.element == 16 { "bfloat16".into() } else { format!("element type {}", layer.element) };
            return Err(Refusal::new(&layer.title, "a float32 or float16 cache", found));
        }
    }
    Ok(layers)
}

/// Refuses models that their inputs show to be unsupported.
fn whole_model(graph: &GraphProto) -> Result<(), Refusal> {
    let of_encoder = |name: &str| name.starts_with("encoder_") || name.contains(".encoder.");
    if let Some(input) = graph.input.iter().find(|i| of_encoder(i.name())) {
        let place = format!("input '{}'", input.name());
        return Err(Refusal::new(place, "a decoder-only model", "an encoder-decoder model"));
    }
    if let Some(input) = graph.input.iter().find(|i| i.name().contains("past") && rank(i) == Some(5)) {
        let found = "five dimensions: several caches in one tensor";
        return Err(Refusal::new(
            format!("input '{}'", input.name()),
            "past keys and values as tensors of their own",
            found,
        ));
    }
    if let Some(input) = graph.input.iter().find(|i| is_cache_name(i.name()) && rank(i) == Some(4))
        && matches!(input.type_.tensor_type().elem_type(), 2 | 3 | 17..=20)
    {
        let found = format!("a quantised cache, element type {}", input.type_.tensor_type().elem_type());
        return Err(Refusal::new(format!("input '{}'", input.name()), "a cache of floating point numbers", found));
    }
    Ok(())
}

fn all_caches_are_claimed(context: &Context<'_>, layers: &[Layer]) -> Result<(), Refusal> {
    let mut claimed = HashSet::new();
    for layer in layers {
        for past in &layer.cache.past {
            if !claimed.insert(past.as_str()) {
                return Err(Refusal::new(
                    &layer.title,
                    "a cache input of its own",
                    format!("'{past}', which another layer reads"),
                ));
            }
        }
    }
    let graph = context.index.graph;
    let is_claimed = |name: &str| claimed.contains(name);
    // States of other kinds do not grow, nor do the caches of a model of fixed sizes.
    let fixed = graph.input.iter().any(|i| is_claimed(i.name()) && static_dim(i, 2).is_some()) || layers.is_empty();
    let unclaimed = |i: &&ValueInfoProto| {
        context.caches.contains_key(i.name()) && !is_claimed(i.name()) && (fixed || static_dim(i, 2).is_none())
    };
    if let Some(input) = graph.input.iter().find(unclaimed) {
        let place = format!("input '{}'", input.name());
        let expected = "an attention layer that appends to it and reads it";
        return Err(Refusal::new(place, expected, why_unknown(context.index, input.name())));
    }
    if layers.is_empty() {
        return Err(Refusal::new("the model", "attention layers that read past keys and values", no_caches(graph)));
    }
    Ok(())
}
