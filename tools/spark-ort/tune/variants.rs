//! The settings that layers may have.

use anyhow::{Context, Result, bail};
use spark_ort::rewrite::{LayerSetting, RewriteError, Rows, Workbench};

use super::args::Args;
use crate::eval::setting::{name, of_option};

/// Larger shares of pruned channels are no match for fewer bits.
const MOST_PRUNED: f64 = 0.9;

/// A setting, and the rows that it gives.
#[derive(Clone)]
pub struct Variant {
    pub setting: LayerSetting,
    pub rows: Rows,
}

impl Variant {
    fn new(workbench: &Workbench, setting: LayerSetting) -> Result<Self, RewriteError> {
        let rows = workbench.rows(std::slice::from_ref(&setting))?.swap_remove(0);
        Ok(Self { setting, rows })
    }

    pub fn name(&self) -> String {
        name(&self.setting)
    }

    /// Bytes of a token in layers with so many KV heads altogether.
    pub fn bytes(&self, kv_heads: usize) -> usize {
        kv_heads * (self.rows.key_row_bytes + self.rows.value_row_bytes)
    }

    /// Whether its rows lose nothing but a rounding to float16.
    pub fn is_lossless(&self) -> bool {
        self.rows.kept_channels == self.rows.head_dim && self.rows.key_bits == 16 && self.rows.value_bits == 16
    }

    fn is_like(&self, other: &Self) -> bool {
        let of = |rows: &Rows| {
            let bytes = rows.key_row_bytes + rows.value_row_bytes;
            // In a basis, planes fill the row.
            (rows.kept_channels, rows.key_bits, rows.value_bits, rows.row_format, bytes)
        };
        of(&self.rows) == of(&other.rows)
    }
}

/// What layers may choose from.
pub struct Variants {
    /// From the fewest bytes to the most.
    pub all: Vec<Variant>,
    /// Those that use the budget in all layers, one for each pair of bits.
    pub uniform: Vec<Variant>,
}

/// The variants for a `budget` of bytes per token, in a model with so many KV heads over all layers. `uniform_rows`:
/// `workbench` makes rows of one size.
///
/// # Errors
/// A candidate is no setting, or the budget is too small or too large.
pub fn variants(
    workbench: &Workbench,
    args: &Args,
    uniform_rows: bool,
    (budget, kv_heads): (usize, usize),
) -> Result<Variants> {
    let lossless = LayerSetting { ratio: 0.0, key_bits: 16, value_bits: 16, row_format: 1, key_bytes: None };
    let mut settings = vec![lossless];
    settings.extend(args.candidates.iter().map(|candidate| candidate.rows.clone()));
    let mut given = Vec::new();
    for setting in settings {
        let variant = Variant::new(workbench, setting.clone());
        given.push(variant.map_err(|error| of_option("--candidates", name(&setting), error))?);
    }
    if given[0].bytes(kv_heads) <= budget {
        let needed = given[0].bytes(kv_heads);
        bail!(
            "--budget: {budget} bytes per token are enough for rows without loss, which take {needed}: rewrite with \
             --ratio 0 --key-bits 16 --value-bits 16"
        );
    }
    let mut kinds: Vec<LayerSetting> = given.iter().map(|variant| variant.setting.clone()).collect();
    if workbench.has_bases() {
        let value_bits = args.candidates.iter().map(|candidate| candidate.rows.value_bits);
        kinds.extend(value_bits.map(|bits| LayerSetting::in_basis(0, bits)));
    }
    let (mut uniform, mut smallest) = (Vec::new(), given.clone());
    for kind in &kinds {
        let fillings = fillings(workbench, kind)?;
        smallest.extend(fillings.iter().min_by_key(|variant| variant.bytes(kv_heads)).cloned());
        uniform.extend(fillings.into_iter().find(|variant| variant.bytes(kv_heads) <= budget));
    }
    let smallest = smallest.iter().min_by_key(|variant| variant.bytes(kv_heads)).context("no variant")?;
    if smallest.bytes(kv_heads) > budget {
        bail!(
            "--budget: {budget} bytes per token are too few: the smallest setting that is tried, {}, takes {}; add \
             smaller ones with --candidates",
            smallest.name(),
            smallest.bytes(kv_heads)
        );
    }
    let mut all = [given, uniform.clone()].concat();
    if uniform_rows {
        // That of the largest in the budget, with as many channels as they have room for.
        all.retain(|variant| variant.bytes(kv_heads) <= budget);
        let widest = all.iter().max_by_key(|variant| variant.rows.key_row_bytes).context("no variant")?.clone();
        for variant in all.iter_mut().chain(&mut uniform) {
            variant.rows = workbench.rows(&[variant.setting.clone(), widest.setting.clone()])?.swap_remove(0);
            let rows = &variant.rows;
            // So that the recipe says what was measured, whatever the other layers' rows are.
            variant.setting.ratio = ratio(rows.head_dim - rows.kept_channels, rows.head_dim);
        }
    }
    all.sort_by_key(|variant| variant.bytes(kv_heads));
    Ok(Variants { all: distinct(all), uniform: distinct(uniform) })
}

fn distinct(variants: Vec<Variant>) -> Vec<Variant> {
    let mut kept: Vec<Variant> = Vec::new();
    for variant in variants {
        if !kept.iter().any(|other| other.is_like(&variant)) {
            kept.push(variant);
        }
    }
    kept
}

/// What can fill a budget: the bits of `kind` with each ratio, from the least, or its basis with keys of each size,
/// from the longest.
fn fillings(workbench: &Workbench, kind: &LayerSetting) -> Result<Vec<Variant>> {
    let head_dim = workbench.head_dim();
    let settings: Vec<LayerSetting> = match kind.key_bytes {
        None => {
            let most = (MOST_PRUNED * head_dim as f64) as usize;
            (0..=most).map(|pruned| LayerSetting { ratio: ratio(pruned, head_dim), ..kind.clone() }).collect()
        }
        Some(_) => {
            let sizes = Rows::basis_key_bytes(head_dim).rev();
            sizes.map(|bytes| LayerSetting::in_basis(bytes, kind.value_bits)).collect()
        }
    };
    let variants = settings.into_iter().map(|setting| Ok(Variant::new(workbench, setting)?));
    variants.collect()
}

/// A ratio of few digits that prunes so many of `head_dim` channels.
fn ratio(pruned: usize, head_dim: usize) -> f64 {
    // Rounded up: the product with the head size is rounded down.
    let digits = (pruned as f64 / head_dim as f64 * 1e4 - 1e-6).ceil().max(0.0);
    let prunes = |digits: f64| (digits / 1e4 * head_dim as f64).floor() as usize;
    // The nearest float to 0.29 is less than it.
    let digits = if prunes(digits) < pruned { digits + 1.0 } else { digits };
    digits.abs() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_prunes_what_it_was_made_for() {
        for head_dim in (32..=256).step_by(8) {
            for pruned in 0..head_dim {
                assert_eq!((ratio(pruned, head_dim) * head_dim as f64).floor() as usize, pruned, "of {head_dim}");
            }
        }
        assert_eq!([ratio(32, 64), ratio(29, 64), ratio(0, 64)].map(|x| x.to_string()), ["0.5", "0.4532", "0"]);
    }
}
