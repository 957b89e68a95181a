//! The rows of each layer, as options or a recipe ask for them.

use std::collections::HashMap;
use std::path::Path;

use super::error::RewriteError;
use super::layer::Layer;
use super::options::Options;
use super::recent::Recent;
use super::recipe::{LayerSetting, Recipe, RecipeModel};
use super::rows::Rows;
use crate::onnx::proto::ModelProto;

/// The rows of `layers`, in this order, and the recent keys among them, in a GenAI `folder` or not.
///
/// # Errors
/// An option or a recipe cannot be honoured.
pub fn layer_rows(
    options: &Options,
    model: &ModelProto,
    layers: &[Layer],
    folder: bool,
) -> Result<(Vec<Rows>, Recent), RewriteError> {
    let numbers = numbers(model, layers);
    let mut options = options.clone();
    let recipe = options.recipe.take().map(|path| Recipe::read(&path).map(|recipe| (path, recipe))).transpose()?;
    let mut settings = vec![LayerSetting::of(&options); layers.len()];
    if let Some((path, recipe)) = &recipe {
        let first = numbers.iter().position(|&number| number == 0).map_or(&layers[0], |first| &layers[first]);
        let found = RecipeModel { layers: layers.len(), head_dim: first.head_dim, kv_heads: first.kv_heads };
        recipe.check(&found).map_err(|problem| of_recipe(path, &problem))?;
        settings.clone_from(&recipe.layers);
        options.uniform_rows |= recipe.uniform_rows;
    }
    let gains = settings.iter().any(LayerSetting::loses_of_keys);
    let recent = Recent::new(&options, gains, folder, layers.iter().all(|l| l.lengths.is_some()))?;
    let padded = options.uniform_rows;
    options.uniform_rows |= folder;
    let name = |(layer, error): (usize, RewriteError)| match &recipe {
        Some((path, _)) => of_recipe(path, &format!("layer {layer}: {error}")),
        None => error,
    };
    let by_number = rows_by_layer(&options, &settings, layers[0].head_dim).map_err(name)?;
    if let (true, false, Some((path, _))) = (folder, padded, &recipe) {
        let own = rows_of(&options, &settings, layers[0].head_dim, 0).map_err(name)?;
        one_size(&own).map_err(|problem| of_recipe(path, &problem))?;
    }
    let with_recent = |rows: Rows| Rows { recent_window: recent.inputs, tail_window: recent.buffer, ..rows };
    Ok((numbers.iter().map(|&number| with_recent(by_number[number].clone())).collect(), recent))
}

fn of_recipe(path: &Path, problem: &str) -> RewriteError {
    RewriteError::option("recipe", format!("{}: {problem}", path.display()))
}

/// Places in `layers`, in the order of their cache inputs.
pub fn cache_order(model: &ModelProto, layers: &[Layer]) -> Vec<usize> {
    let inputs = model.graph.iter().flat_map(|graph| &graph.input);
    let places: HashMap<&str, usize> = inputs.enumerate().map(|(n, input)| (input.name(), n)).collect();
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&layer| places.get(layers[layer].cache.past[0].as_str()));
    order
}

/// The number of each of `layers`: they are counted in the order of their cache inputs.
pub fn numbers(model: &ModelProto, layers: &[Layer]) -> Vec<usize> {
    let mut numbers = vec![0; layers.len()];
    for (number, layer) in cache_order(model, layers).into_iter().enumerate() {
        numbers[layer] = number;
    }
    numbers
}

/// The rows of each layer with these `settings`, without recent keys; of `options`, `recovery`, `cache_type`,
/// `uniform_rows` and `exact_ratio` count. Uniform rows have one size in all layers.
///
/// # Errors
/// The number of the layer whose setting cannot be, and why.
pub fn rows_by_layer(
    options: &Options,
    settings: &[LayerSetting],
    head_dim: usize,
) -> Result<Vec<Rows>, (usize, RewriteError)> {
    let rows = rows_of(options, settings, head_dim, 0)?;
    match options.uniform_rows {
        true => rows_of(options, settings, head_dim, rows.iter().map(|rows| rows.key_row_bytes).max().unwrap_or(0)),
        false => Ok(rows),
    }
}

/// As [`rows_by_layer`], where uniform rows have at least `row_bytes` bytes, and may differ by layer.
fn rows_of(
    options: &Options,
    settings: &[LayerSetting],
    head_dim: usize,
    row_bytes: usize,
) -> Result<Vec<Rows>, (usize, RewriteError)> {
    let rows = settings
        .iter()
        .enumerate()
        .map(|(layer, setting)| Rows::at_least(&setting.options(options), head_dim, row_bytes).map_err(|e| (layer, e)));
    rows.collect()
}

/// Refuses layers with rows of several sizes in a GenAI folder.
fn one_size(rows: &[Rows]) -> Result<(), String> {
    let Some(other) = rows.iter().position(|r| r.key_row_bytes != rows[0].key_row_bytes) else { return Ok(()) };
    let [first, second] = [0, other].map(|layer| rows[layer].key_row_bytes);
    Err(format!(
        "layer 0 needs rows of {first} bytes and layer {other} rows of {second}, but ONNX Runtime GenAI allocates the \
         key and value caches of all layers alike. `spark-ort tune` makes a recipe with rows of one size for a GenAI \
         folder; \"uniform_rows\": true in this one pads all rows to the largest; other hosts take it as it is, with \
         the folder's .onnx file in place of the folder"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_rows_have_the_size_of_the_largest() {
        let sizes = |uniform_rows| {
            let options = Options { uniform_rows, ..Options::default() };
            let of = |rows: &Rows| (rows.kept_channels, rows.key_row_bytes, rows.value_row_bytes);
            let setting =
                |bits| LayerSetting { ratio: 0.5, key_bits: bits, value_bits: bits, row_format: 1, key_bytes: None };
            rows_by_layer(&options, &[setting(8), setting(4)], 64).unwrap().iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(sizes(false), [(32, 56, 68), (32, 40, 40)]);
        // 8 + 8 + 6 bytes and 64 channels of 4 bits fit in 68.
        assert_eq!(sizes(true), [(46, 68, 68), (64, 68, 68)]);
    }

    #[test]
    fn a_setting_that_cannot_be_is_named() {
        let mut settings = vec![LayerSetting::of(&Options::default()); 2];
        settings[1].key_bits = 5;
        let (layer, error) = rows_by_layer(&Options::default(), &settings, 64).unwrap_err();
        assert_eq!((layer, error.to_string()), (1, "key_bits: 5 is not 16, 8 or 4".into()));
    }
}
