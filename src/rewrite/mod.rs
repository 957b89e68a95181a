//! Rewriting exported LLaMA-family models so that their cache is stored as SparK rows.
//!
//! `find` looks for attention by its `source`s, which follow keys and values (`heads`) and masks (`mask`) through a
//! `context` of sample sizes. `apply` puts the operators in place of the layers, with nodes made by `build`, `bias`
//! and `front`; `configure` sets what follows from the options and `layer_rows`, which a `recipe` may state;
//! `calibrate` measures query saliency; `folder` and `publish` handle files; `workbench` sets the rows of one model
//! again and again. Knows graphs and the row format's sizes, but no kernels.

mod apply;
mod basis;
mod bias;
mod build;
mod cache;
mod calibrate;
mod causality;
mod configure;
mod context;
mod diagnosis;
mod error;
mod find;
mod folder;
mod front;
mod heads;
mod inspect;
mod layer;
mod layer_rows;
mod mask;
mod operator;
mod options;
mod progress;
mod providers;
mod publish;
mod recent;
mod recipe;
mod recipe_entry;
mod report;
mod rewritten;
mod roundings;
mod rows;
mod sizes;
mod source;
mod trial;
mod warnings;
mod workbench;

use std::path::{Path, PathBuf};

pub use basis::{Basis, Covariance};
pub use error::{Refusal, RewriteError};
pub use find::find_layers;
pub use folder::{BESIDE, LIBRARY, find_library};
pub use inspect::Inspection;
pub use layer::{Layer, Source};
pub use options::{CacheType, Calibration, Options, RecentIn};
pub use progress::Progress;
pub use publish::{contains, same_file};
pub use recent::{MOST as MOST_RECENT, RECENT_OF_FOLDERS};
pub use recipe::{LayerSetting, Recipe, RecipeModel};
pub use report::Report;
pub use rows::Rows;
pub use source::GROUP_QUERY_ATTENTION;

pub use crate::method::Recovery;
use crate::onnx::proto::ModelProto;
use crate::onnx::{self, DataFile, FileError, Index, Placement};
use configure::{Version, configure};
use folder::GenAiFolder;
use layer_rows::layer_rows;
use publish::{PlacedData, Stage, parent};
use rewritten::{Rewritten, operator_version};
use roundings::remove_roundings;
use trial::trial;
pub use trial::{NO_RUNTIME, TrialError, run_one_token};
pub use workbench::{Bases, Lossless, Workbench};

/// Rewrites the model `input`, an .onnx file or an ONNX Runtime GenAI folder, to `output` of the same kind. External
/// data is linked or copied, never read. Memory use is about the size of the .onnx file, plus calibration, which runs
/// the model.
///
/// # Errors
/// The model, an option or a file is not valid; then nothing is written.
pub fn rewrite(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Report, RewriteError> {
    check_options(input, output, options)?;
    // Once: an input without metadata is not a file.
    let is_folder = std::fs::metadata(input).map_err(FileError::io(input))?.is_dir();
    let stage = match options.dry_run {
        true => None,
        false => Some(Stage::new(input, output, options.force)?),
    };
    let folder = is_folder.then(|| GenAiFolder::open(input, options.provider.as_deref())).transpose()?;
    if folder.is_none() && options.provider.is_some() {
        return Err(RewriteError::option("provider", "only a GenAI folder names providers"));
    }
    let path = folder.as_ref().map_or_else(|| input.to_path_buf(), |folder| input.join(&folder.model));
    let mut model = onnx::read(&path)?;
    let data = onnx::data_files(&model, &path)?;
    check_report(&path, output, &data, options)?;
    let roundings = prepare(&mut model)?;
    let layers = find_layers(&model)?;
    let noticed = warnings::of_model(&model, &layers, roundings);
    let (rows, recent) = layer_rows(options, &model, &layers, folder.is_some())?;
    folder.iter().try_for_each(|folder| folder.check_sizes(&layers))?;
    let tokens = calibrate::tokens(&path, options, (&layers, &rows))?;
    let positions = calibrate::positions(&model, &layers);
    let names = apply::apply(&mut model, &layers, recent, operator_version(&rows))?;
    let mut graph = Rewritten { model, layers, names, rows };

    let mut data_plan = Vec::new();
    let (saliency, uncalibrated) = match &stage {
        Some(stage) => {
            let width = configure::row_width(&graph.layers[0], &graph.rows[0]);
            let folder = folder.as_ref().map(|folder| (folder, width));
            data_plan = place_files(stage, &path, output, folder, &data, options)?;
            match tokens {
                Some(tokens) => {
                    // Beside its data, and beside the settings of a folder.
                    let place = folder.map_or(Path::new(""), |(folder, _)| folder.beside());
                    let copy = stage.unused(place, "calibration.onnx");
                    graph.calibrate(&copy, (tokens, positions), false, options, progress)?
                }
                None => (None, None),
            }
        }
        None => (None, None),
    };
    let Rewritten { mut model, layers, names, rows } = graph;
    let version = Version { rows: &rows, static_rows: folder.is_some(), saliency: saliency.as_ref(), observe: None };
    configure(&mut model, &layers, &names, &version);
    let inspection = Inspection::new(&model)?;
    let mut warnings = warnings::of_options(options, &rows, folder.as_ref(), saliency.is_some());
    warnings.extend(folder.iter().flat_map(GenAiFolder::provider_warnings));
    warnings.extend(warnings::whole_caches(&layers, &inspection));
    warnings.extend(noticed);
    warnings.extend(uncalibrated.map(|problem| format!("calibration failed: {problem}")));
    let host = host_line(&rows[0], folder.is_some());
    let Some(stage) = stage else { return Ok(Report { warnings, host, model: inspection, output: None }) };
    if progress.cancelled() {
        return Err(RewriteError::Cancelled);
    }
    progress.step("writing", 0, 1);
    let written = match &folder {
        Some(folder) => stage.made().join(&folder.model),
        // Beside its data, as long as the data has the names that the model uses.
        None => stage.unused(Path::new(""), "trial.onnx"),
    };
    onnx::write(&model, &written)?;
    let bytes = std::fs::metadata(&written).map_err(FileError::io(&written))?.len();
    let bytes = data.iter().fold(bytes, |sum, file| sum.saturating_add(file.bytes));
    warnings.extend(trial(options.trial.as_deref(), &written, &path, bytes, progress)?.warning());
    warnings.extend(match &folder {
        Some(_) => stage.publish_folder()?,
        None => publish_file(stage, model, &written, &data_plan)?,
    });
    Ok(Report { warnings, host, model: inspection, output: Some(output.into()) })
}

/// Puts `model`, which is at `written` for its trial, and its data in place. Reports what cannot be removed of an old
/// model.
fn publish_file(
    stage: Stage,
    mut model: ModelProto,
    written: &Path,
    data: &[PlacedData],
) -> Result<Option<String>, RewriteError> {
    let moved: Vec<&PlacedData> = data.iter().filter(|file| file.from != file.to).collect();
    if moved.is_empty() {
        std::fs::rename(written, stage.file()).map_err(FileError::io(written))?;
    } else {
        std::fs::remove_file(written).map_err(FileError::io(written))?;
        moved.iter().for_each(|file| onnx::move_data(&mut model, &file.from, &file.to.to_string_lossy()));
        onnx::write(&model, &stage.file())?;
    }
    stage.publish_file(data)
}

/// Sorts nodes that are out of order, inlines functions that contain attention, and removes quantisation from
/// attention; returns how many roundings were removed.
fn prepare(model: &mut ModelProto) -> Result<usize, Refusal> {
    in_order(model)?;
    if !model.functions.is_empty() && find_layers(model).is_err() {
        onnx::inline_functions(model);
        in_order(model)?;
    }
    Ok(remove_roundings(model.graph.mut_or_insert_default(), source::OPERATORS))
}

fn in_order(model: &mut ModelProto) -> Result<(), Refusal> {
    let graph = model.graph.mut_or_insert_default();
    if Index::new(graph).is_ok() {
        return Ok(());
    }
    onnx::sort_nodes(graph).map_err(|tensor| {
        Refusal::new("the graph", "nodes that can be put in order", format!("a circle through '{tensor}'"))
    })
}

/// The .onnx file of `model`, which is that file or a GenAI folder.
///
/// # Errors
/// It is neither.
pub fn model_file(model: &Path) -> Result<PathBuf, RewriteError> {
    match model.is_dir() {
        true => Ok(model.join(GenAiFolder::open_any(model)?)),
        false => Ok(model.to_path_buf()),
    }
}

/// Describes the cache of `model`, an .onnx file or a GenAI folder.
///
/// # Errors
/// It cannot be read, or is neither rewritten nor rewritable.
pub fn inspect(model: &Path) -> Result<Inspection, RewriteError> {
    inspection_of(onnx::read(&model_file(model)?)?)
}

/// As [`inspect`], of a model that is to be run: its external data is there too, which is looked for but not read.
///
/// # Errors
/// As [`inspect`]; or a file of external data is missing or cut short.
pub fn inspect_whole(model: &Path) -> Result<Inspection, RewriteError> {
    let file = model_file(model)?;
    let model = onnx::read(&file)?;
    onnx::check_data(&model, &file)?;
    inspection_of(model)
}

fn inspection_of(mut model: ModelProto) -> Result<Inspection, RewriteError> {
    prepare(&mut model)?;
    Ok(Inspection::new(&model)?)
}

/// Places all files but the model itself in the stage, and returns where the data of a single file goes. `folder`: of
/// GenAI, and the width of its cache rows.
fn place_files(
    stage: &Stage,
    path: &Path,
    output: &Path,
    folder: Option<(&GenAiFolder, usize)>,
    data: &[DataFile],
    options: &Options,
) -> Result<Vec<PlacedData>, RewriteError> {
    let Some((folder, row_width)) = folder else {
        let from = parent(path);
        let plan = publish::plan(&from, output, data, options.force)?;
        // In the folder of the original the data stays there, and is linked beside the stage for calibration only.
        let how = if same_file(&from, &parent(output)) { Placement::Link } else { options.data };
        data.iter().try_for_each(|file| file.place(&from, &stage.made(), how))?;
        return Ok(plan);
    };
    folder.fill(&stage.made(), output, data, row_width, options)?;
    Ok(Vec::new())
}

/// Refuses to replace an output that contains files named by options, and to write a report over any file that is
/// read, or into the input or output.
fn check_options(input: &Path, output: &Path, options: &Options) -> Result<(), RewriteError> {
    let text = match &options.calibrate {
        Calibration::File(path) => Some(path),
        _ => None,
    };
    let named = [("recipe", &options.recipe), ("tokenizer", &options.tokenizer), ("library", &options.library)];
    let named = named.into_iter().map(|(option, path)| (option, path.as_ref()));
    let read: Vec<_> = named.chain([("calibrate", text)]).collect();
    for (option, path) in read.iter().filter_map(|(option, path)| path.map(|path| (*option, path))) {
        if contains(output, path) {
            let problem = format!("{} lies in the output, which is replaced; copy it elsewhere", path.display());
            return Err(RewriteError::option(option, problem));
        }
    }
    let Some(report) = &options.report else { return Ok(()) };
    let files = read.into_iter().filter_map(|(_, path)| path.map(PathBuf::as_path));
    if contains(input, report) || contains(output, report) || files.into_iter().any(|file| same_file(file, report)) {
        return Err(report_in_the_way(report));
    }
    Ok(())
}

/// The same for the model's data, where it is and where it goes, and for what programs read beside the model.
fn check_report(path: &Path, output: &Path, data: &[DataFile], options: &Options) -> Result<(), RewriteError> {
    let Some(report) = &options.report else { return Ok(()) };
    let places = [parent(path), parent(output)];
    let data = places.iter().flat_map(|folder| data.iter().map(|file| folder.join(&file.location)));
    let mut files = data.chain(BESIDE.map(|name| parent(path).join(name)));
    match files.any(|file| contains(&file, report)) || same_file(path, report) {
        true => Err(report_in_the_way(report)),
        false => Ok(()),
    }
}

fn report_in_the_way(report: &Path) -> RewriteError {
    let problem = format!("{} is a file that is read or made; name another one", report.display());
    RewriteError::option("report", problem)
}

fn host_line(rows: &Rows, folder: bool) -> String {
    if folder {
        return format!("nothing to add: genai_config.json names {}, which lies in the folder", folder::LIBRARY);
    }
    let line = format!("session_options.register_custom_ops_library(\"{}\")", folder::LIBRARY);
    match rows.recent_window {
        0 => line,
        _ => format!("{line}; feed present.*.key_recent back as past_key_values.*.key_recent, at first without rows"),
    }
}
