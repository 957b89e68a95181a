//! Data files beside the output, for a model that is a single file.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::super::error::RewriteError;
use super::check::{is_there, parent, same_file};
use crate::onnx::{self, DataFile, FileError};

/// Where a data file goes.
#[derive(Debug)]
pub struct PlacedData {
    /// The input's file.
    pub source: PathBuf,
    /// Its location in the model, relative to the model's folder.
    pub from: PathBuf,
    /// Its new location, relative to the output's folder.
    pub to: PathBuf,
}

/// Decides where each of the `data` files of the model in the folder `from` goes. A file that is already in place is
/// used as it is. If another file is in its place, `force` is needed; the data then gets a new name, so that the
/// replaced model keeps its data until the new one is complete.
///
/// # Errors
/// Another file is in the way, or the output is in the place of a data file.
pub fn plan(from: &Path, output: &Path, data: &[DataFile], force: bool) -> Result<Vec<PlacedData>, RewriteError> {
    let folder = parent(output);
    let mut taken: BTreeSet<PathBuf> = data.iter().map(|file| file.location.clone()).collect();
    let mut plan = Vec::new();
    for file in data {
        let (source, to) = (from.join(&file.location), folder.join(&file.location));
        let in_its_place = output.file_name().is_some_and(|name| file.location.starts_with(name));
        if in_its_place || same_file(&source, output) {
            let text = "is where the model's data goes, or lies; name another output".into();
            return Err(RewriteError::Output(output.into(), text));
        }
        let mut location = file.location.clone();
        if is_there(&to) && !same_content(&source, &to).map_err(FileError::io(&to))? {
            if !force {
                let text = "exists, and the model's data would replace it; --force gives the data another name, or \
                            name another folder";
                return Err(RewriteError::Output(to, text.into()));
            }
            location = free_name(&folder, output, &file.location, &taken);
            taken.insert(location.clone());
        }
        plan.push(PlacedData { source, from: file.location.clone(), to: location });
    }
    Ok(plan)
}

/// `location` followed by the first number that makes it unused.
fn free_name(folder: &Path, output: &Path, location: &Path, taken: &BTreeSet<PathBuf>) -> PathBuf {
    let numbered = (2u64..).map(|number| {
        let mut name = OsString::from(location);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    let free = |name: &PathBuf| {
        !taken.contains(name) && !is_there(&folder.join(name)) && output.file_name() != Some(name.as_os_str())
    };
    numbered.into_iter().find(free).expect("there are more numbers than files")
}

/// Whether `name` is `location` or derived from it by [`free_name`].
fn is_made_of(name: &Path, location: &Path) -> bool {
    let text = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
    let (name, location) = (text(name), text(location));
    match name.strip_prefix(&location[..]) {
        Some([]) => true,
        Some([b'.', number @ ..]) => !number.is_empty() && number.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// Whether both paths lead to files with the same bytes.
pub fn same_content(a: &Path, b: &Path) -> io::Result<bool> {
    let (left, right) = (std::fs::metadata(a)?, std::fs::metadata(b)?);
    if same_file(a, b) {
        return Ok(true);
    }
    if !left.is_file() || !right.is_file() || left.len() != right.len() {
        return Ok(false);
    }
    let [mut left, mut right] = [BufReader::new(File::open(a)?), BufReader::new(File::open(b)?)];
    loop {
        let (x, y) = (left.fill_buf()?, right.fill_buf()?);
        let count = x.len().min(y.len());
        if count == 0 {
            return Ok(x.len() == y.len());
        }
        if x[..count] != y[..count] {
            return Ok(false);
        }
        left.consume(count);
        right.consume(count);
    }
}

/// Data files of the model at `output`, which is to be replaced, that have a name of `plan` or one with a number after
/// it, and that the new model will not need.
pub fn outdated(output: &Path, plan: &[PlacedData]) -> Vec<PathBuf> {
    let Ok(model) = onnx::read(output) else { return Vec::new() };
    let folder = parent(output);
    let is_kept =
        |name: &PathBuf| plan.iter().any(|file| file.to == *name || same_file(&file.source, &folder.join(name)));
    let is_ours = |name: &PathBuf| plan.iter().any(|file| is_made_of(name, &file.from));
    onnx::data_locations(&model).into_iter().filter(|name| is_ours(name) && !is_kept(name)).collect()
}

/// Removes those `outdated` files in `folder` that no model in it uses as data.
///
/// # Errors
/// Which files remain, and why.
pub fn remove(folder: &Path, outdated: &[PathBuf]) -> Result<(), String> {
    if outdated.is_empty() {
        return Ok(());
    }
    let stays = |why: String| format!("data of the model that was replaced stays ({why}): {}", list(outdated));
    let entries = std::fs::read_dir(folder).map_err(|e| stays(e.to_string()))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "onnx")) {
        let model = onnx::read(&path).map_err(|e| stays(e.to_string()))?;
        if onnx::data_locations(&model).iter().any(|location| outdated.contains(location)) {
            return Err(stays(format!("{} needs it", path.display())));
        }
    }
    outdated.iter().try_for_each(|file| std::fs::remove_file(folder.join(file))).map_err(|e| stays(e.to_string()))
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
