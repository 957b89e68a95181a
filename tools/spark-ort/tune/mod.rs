//! `spark-ort tune`: ratio and bits of each layer for the least error within a budget.

mod args;
mod layers;
mod report;
mod variants;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use spark_ort::eval::tune::{LayerProbe, choose};
use spark_ort::eval::{Passage, passages};
use spark_ort::rewrite::{
    Bases, LayerSetting, Options, RECENT_OF_FOLDERS, RecentIn, Recipe, RecipeModel, RewriteError, Workbench,
};
use spark_ort::runtime::{FolderSettings, Options as RunOptions};

use crate::eval::candidate::{Candidate, Kind, Shown};
use crate::eval::is_cancelled;
use crate::eval::setting::of_option;
use crate::eval::texts::{encoded, tokenizer};
use crate::interrupt::{self, Interrupt};
use crate::model_files::model_files;
use crate::report::write_json;
use crate::terminal::{note, show};
use crate::whole_file;
pub use args::Args;
use layers::Group;
use report::{Outcome, Verification};
use variants::{Variants, variants};

/// What layers are measured on, and what the recipe is verified on.
struct Texts {
    measured: Vec<Passage>,
    verified: Vec<Passage>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    args.check()?;
    let original = Candidate::given(&args.original, Kind::Original)?;
    if original.inspection.rows.is_some() {
        bail!("{} is rewritten already: tune takes the original", args.original.display());
    }
    let head_dim = original.inspection.heads().1;
    args.candidates.iter().try_for_each(|setting| setting.rows("--candidates", head_dim).map(drop))?;
    args.check_places(model_files([&original.file])?)?;
    let texts = texts(args, &original)?;
    let interrupt = Interrupt::install()?;
    let outcome = match tune(args, &original, texts, &interrupt) {
        Err(error) if interrupt.is_set() && error.chain().any(is_cancelled) => {
            note("interrupted, nothing was measured\n");
            return Ok(interrupt::status(true));
        }
        outcome => outcome?,
    };
    let json = args.json.as_deref();
    if ![json, Some(&args.output)].into_iter().flatten().any(whole_file::is_stdout) {
        show(&outcome.lines(args))?;
    }
    json.map_or(Ok(()), |path| write_json(path, &outcome))?;
    if outcome.written.is_none() && whole_file::is_stdout(&args.output) {
        // Nothing else says why there is no recipe.
        note(&outcome.lines(args));
    }
    Ok(interrupt::status(outcome.interrupted))
}

fn texts(args: &Args, original: &Candidate) -> Result<Texts> {
    let tokenizer = tokenizer(args.temporary.tokenizer.as_deref(), &original.file)?;
    let longest = args.decode.max(if args.verify > 0 { args.verify_decode } else { 0 });
    let (limit, needed) = (FolderSettings::beside(&original.file)?.context_length, args.context + longest);
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        bail!("--context {} and {longest} decoded tokens need {needed}, the model's context is {limit}", args.context);
    }
    let (prefix, tokens) = encoded(&tokenizer, &args.text)?;
    let wanted = args.passages + args.verify;
    let found = passages(&tokens, &prefix, args.context, longest, wanted);
    if found.len() < wanted {
        bail!(
            "{} has {} tokens, enough for {} passages of {needed}; --passages {} and --verify {} need {wanted}: take a \
             longer text, or shorter prompts (--context)",
            args.text.display(),
            tokens.len(),
            found.len(),
            args.passages,
            args.verify
        );
    }
    let (mut measured, verified) = verify::split(found, args.passages);
    measured.iter_mut().for_each(|passage| passage.next.truncate(args.decode + 1));
    Ok(Texts { measured, verified })
}

/// The model that is measured.
fn workbench(
    args: &Args,
    original: &Candidate,
    folder: &Path,
    options: &Options,
    shown: &mut Shown<'_>,
) -> Result<Workbench> {
    let in_basis = args.candidates.iter().find(|setting| setting.rows.key_bytes.is_some());
    let bases = match (in_basis, args.no_basis) {
        (Some(setting), true) => bail!("--candidates {setting}: --no-basis is given too"),
        (Some(_), false) => Bases::Needed,
        (None, true) => Bases::None,
        (None, false) => Bases::IfPossible,
    };
    match (Workbench::new(&original.file, folder, options, bases, shown), in_basis) {
        (Err(error @ RewriteError::Option { option: "basis", .. }), Some(setting)) => {
            Err(of_option("--candidates", setting, error))
        }
        (workbench, _) => Ok(workbench?),
    }
}

fn tune(args: &Args, original: &Candidate, texts: Texts, interrupt: &Interrupt) -> Result<Outcome> {
    let folder = args.original.join("genai_config.json").is_file();
    let uniform_rows = args.uniform_rows || folder;
    let in_buffer = folder && original.inspection.interface.shares_buffer;
    let recent = args.recent.unwrap_or(if in_buffer { RECENT_OF_FOLDERS } else { 0 });
    let options = Options {
        // The same keys are dense wherever they are kept, and inputs are there in every model.
        recent: Some(recent),
        recent_in: RecentIn::Inputs,
        uniform_rows,
        ..args.temporary.options()
    };
    let place = tempfile::tempdir().context("cannot create a temporary folder")?;
    let mut shown = Shown::new(interrupt);
    let mut workbench = workbench(args, original, place.path(), &options, &mut shown)?;
    drop(shown);
    let kv_heads: Vec<usize> = original.inspection.interface.layers.iter().map(|layer| layer.kv_heads).collect();
    let budget = args.budget.bytes(original.inspection.original_bytes_per_token);
    let Variants { all, uniform } = variants(&workbench, args, uniform_rows, (budget, kv_heads.iter().sum()))?;

    let lossless = workbench.lossless("lossless.onnx")?;
    let mut probe = LayerProbe::open(&lossless, &RunOptions { threads: args.temporary.threads })?;
    let mut groups = Group::all(&kv_heads, args.group, all.len());
    let complete = layers::measure(&mut probe, &texts.measured, &all, &mut groups, interrupt)?;
    drop(probe);
    let mut outcome = Outcome::new(args, original, (budget, recent, uniform_rows), &all, &groups, complete);
    outcome.no_basis = workbench.no_bases().map(String::from);
    if complete > 0 {
        let choices: Vec<_> = groups.iter().map(|group| group.choices(&all)).collect();
        let chosen = choose(&choices, budget).context("no variants are within the budget")?;
        let settings = groups.iter().zip(&chosen);
        let settings = settings.flat_map(|(group, &index)| vec![all[index].setting.clone(); group.layers.len()]);
        let settings: Vec<LayerSetting> = settings.collect();
        outcome.choose(&choices, &chosen);
        if !texts.verified.is_empty() && !interrupt.is_set() {
            let models = (&settings[..], &uniform[..]);
            let verified = verify::verify(args, &mut workbench, original, models, texts.verified, interrupt)?;
            outcome.verification = Some(Verification::new(verified, &uniform));
        }
        let better = outcome.better_uniform().map(|index| vec![uniform[index].setting.clone(); kv_heads.len()]);
        let recipe = Recipe {
            about: outcome.about(args),
            model: Some(RecipeModel {
                layers: kv_heads.len(),
                head_dim: original.inspection.heads().1,
                kv_heads: kv_heads[0],
            }),
            uniform_rows,
            layers: better.unwrap_or(settings),
        };
        let path = &args.output;
        whole_file::write_or_show(path, &recipe.to_json())?;
        outcome.written = Some(path.clone());
    }
    outcome.interrupted = interrupt.is_set();
    Ok(outcome)
}
