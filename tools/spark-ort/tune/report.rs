//! What tuning found, for people and as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use spark_ort::eval::Estimate;
use spark_ort::eval::tune::Choice;

use super::args::Args;
use super::layers::Group;
use super::variants::Variant;
use super::verify::{RECIPE, Verified, text_name};
use crate::eval::candidate::Candidate;
use crate::eval::report::{Report, interval};
use crate::report::Table;

/// All that was measured and decided.
#[derive(Serialize)]
pub struct Outcome {
    #[serde(serialize_with = "spark_ort::json_path::path")]
    pub original: PathBuf,
    #[serde(serialize_with = "spark_ort::json_path::path")]
    pub text: PathBuf,
    /// Bytes per token that the cache may have.
    pub budget: usize,
    pub original_bytes_per_token: usize,
    pub recent: usize,
    pub uniform_rows: bool,
    /// Why no keys in a calibrated basis were tried, unless that was asked for.
    pub no_basis: Option<String>,
    /// Tokens of each prompt, and tokens decoded after it.
    pub context: usize,
    pub decode: usize,
    /// Passages on which all layers were measured.
    pub passages: usize,
    pub candidates: Vec<Described>,
    pub layers: Vec<Measured>,
    /// Bytes per token of the choice.
    pub bytes_per_token: Option<usize>,
    /// Sum of the divergences of the layers as chosen, in nats.
    pub expected_divergence: Option<f64>,
    pub verification: Option<Verification>,
    /// The recipe, if one was written.
    #[serde(serialize_with = "spark_ort::json_path::any_path")]
    pub written: Option<PathBuf>,
    pub interrupted: bool,
}

/// A setting that layers could have.
#[derive(Serialize)]
pub struct Described {
    pub name: String,
    pub kept_channels: usize,
    pub key_row_bytes: usize,
    pub value_row_bytes: usize,
}

/// What was measured of layers that share a setting.
#[derive(Serialize)]
pub struct Measured {
    pub first_layer: usize,
    pub last_layer: usize,
    /// Mean KL divergence with each candidate in these layers alone, in nats.
    pub divergence: Vec<Option<f64>>,
    /// The chosen candidate.
    pub chosen: Option<usize>,
    #[serde(skip)]
    title: String,
}

/// The recipe beside uniform settings.
#[derive(Serialize)]
pub struct Verification {
    #[serde(flatten)]
    pub report: Report,
    /// The best setting for all layers.
    pub best_uniform: Option<String>,
    #[serde(skip)]
    index: usize,
    /// The recipe's divergence minus that one's, in nats.
    pub change: Option<Estimate>,
}

impl Verification {
    pub fn new(verified: Verified, uniform: &[Variant]) -> Self {
        let Verified { report, best } = verified;
        let best_uniform = best.as_ref().map(|(index, _)| uniform[*index].name());
        let index = best.as_ref().map_or(0, |(index, _)| *index);
        Self { report, best_uniform, index, change: best.map(|(_, change)| change) }
    }
}

impl Outcome {
    /// Before anything is chosen.
    pub fn new(
        args: &Args,
        original: &Candidate,
        (budget, recent, uniform_rows): (usize, usize, bool),
        variants: &[Variant],
        groups: &[Group],
        passages: usize,
    ) -> Self {
        let described = |variant: &Variant| Described {
            name: variant.name(),
            kept_channels: variant.rows.kept_channels,
            key_row_bytes: variant.rows.key_row_bytes,
            value_row_bytes: variant.rows.value_row_bytes,
        };
        let measured = |group: &Group| Measured {
            first_layer: group.layers.start,
            last_layer: group.layers.end - 1,
            divergence: (0..variants.len()).map(|index| group.cost(index)).collect(),
            chosen: None,
            title: group.title(),
        };
        Self {
            original: args.original.clone(),
            text: args.text.clone(),
            budget,
            original_bytes_per_token: original.inspection.original_bytes_per_token,
            recent,
            uniform_rows,
            no_basis: None,
            context: args.context,
            decode: args.decode,
            passages,
            candidates: variants.iter().map(described).collect(),
            layers: groups.iter().map(measured).collect(),
            bytes_per_token: None,
            expected_divergence: None,
            verification: None,
            written: None,
            interrupted: false,
        }
    }

    /// Records the choice of each group.
    pub fn choose(&mut self, choices: &[Vec<Choice>], chosen: &[usize]) {
        let picked = || choices.iter().zip(chosen).map(|(choices, &index)| choices[index]);
        self.bytes_per_token = Some(picked().map(|choice| choice.bytes).sum());
        self.expected_divergence = Some(picked().map(|choice| choice.cost).sum());
        self.layers.iter_mut().zip(chosen).for_each(|(layer, &index)| layer.chosen = Some(index));
    }

    /// The uniform variant that the recipe was not found to be better than.
    pub fn better_uniform(&self) -> Option<usize> {
        let verification = self.verification.as_ref()?;
        let change = verification.change.filter(|change| change.high >= 0.0)?;
        (!change.value.is_nan()).then_some(verification.index)
    }

    /// For people who find the recipe.
    pub fn about(&self, args: &Args) -> String {
        let recent = if self.recent > 0 { format!(", {} recent keys", self.recent) } else { String::new() };
        format!(
            "spark-ort tune: at most {} bytes per token; on {}, prompts of {} tokens{recent}; {}",
            self.budget,
            text_name(&args.text),
            self.context,
            self.verdict()
        )
    }

    /// What verification says.
    fn verdict(&self) -> String {
        let Some(verification) = &self.verification else { return "not verified".into() };
        let error = |name: &str| {
            let row = verification.report.rows.iter().find(|row| row.described.name == name);
            row.map_or("-".into(), |row| interval(&row.summary.divergence, 1.0, 4))
        };
        let recipe = error(RECIPE);
        let (Some(best), Some(change)) = (&verification.best_uniform, &verification.change) else {
            return match verification.report.interrupted {
                true => "verification was interrupted".into(),
                false => format!("KL {recipe} nats; no setting for all layers is within the budget"),
            };
        };
        let found = format!(
            "KL {recipe} nats; the best setting for all layers, {best}, has {}, a difference of {}",
            error(best),
            interval(change, 1.0, 4)
        );
        match self.better_uniform() {
            None => found,
            Some(_) => format!("{best} in all layers, which is as good: settings by layer have {found}"),
        }
    }

    /// Tables, the verdict, and what to do next.
    pub fn lines(&self, args: &Args) -> String {
        let mut text = String::new();
        let share = 100.0 * self.budget as f64 / self.original_bytes_per_token as f64;
        let before = self.original_bytes_per_token;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\nbudget       {} bytes per token, {share:.1} % of {before}", self.budget);
        if let Some(why) = &self.no_basis {
            let _ = writeln!(text, "no basis     {why}");
        }
        if self.passages > 0 {
            let _ = writeln!(
                text,
                "\nKL divergence in thousandths of a nat, if only this layer has the setting; {} passages, prompts of \
                 {} tokens, {} decoded; * chosen",
                self.passages, self.context, self.decode
            );
            text += &self.table();
        }
        if let (Some(bytes), Some(expected)) = (self.bytes_per_token, self.expected_divergence) {
            let _ = writeln!(text, "\nchosen       {bytes} bytes per token, KL {expected:.4} nats if errors add up");
        }
        if let Some(verification) = &self.verification {
            text += &verification.report.lines();
        }
        match &self.written {
            Some(path) => {
                let _ = writeln!(text, "\nwritten      {}: {}", path.display(), self.verdict());
                let recent = if self.recent > 0 { format!(" --recent {}", self.recent) } else { String::new() };
                let (original, path) = (args.original.display(), path.display());
                let _ = writeln!(text, "next         spark-ort rewrite {original} OUT --recipe {path}{recent}");
            }
            None => text += "\ninterrupted before all layers were measured on one passage: no recipe is written\n",
        }
        text
    }

    fn table(&self) -> String {
        let names: Vec<&str> = self.candidates.iter().map(|candidate| candidate.name.as_str()).collect();
        let mut table = Table::new(&names);
        let bytes = |candidate: &Described| (candidate.key_row_bytes + candidate.value_row_bytes).to_string();
        table.row("bytes per KV head", self.candidates.iter().map(bytes).collect());
        for layer in &self.layers {
            let cell = |(index, divergence): (usize, &Option<f64>)| {
                let mark = if layer.chosen == Some(index) { "*" } else { "" };
                divergence.map_or("-".into(), |divergence| format!("{mark}{:.3}", 1000.0 * divergence))
            };
            let name = format!("layer {}", layer.title);
            table.row(&name, layer.divergence.iter().enumerate().map(cell).collect());
        }
        table.lines()
    }
}
