//! Output that appears whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::error::RewriteError;
use crate::onnx::{DataFile, FileError};

/// A folder beside the output, on the same file system, in which the output is made.
pub struct Stage {
    folder: TempDir,
    output: PathBuf,
}

impl Stage {
    /// Prepares to make `output`, a file or a folder, from the model at `input`.
    ///
    /// # Errors
    /// Something is there and `force` is not given; it is the input itself; its folder is missing or read-only.
    pub fn new(input: &Path, output: &Path, force: bool) -> Result<Self, RewriteError> {
        check(input, output, force)?;
        let name = output.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let parent = parent(output);
        if !parent.is_dir() {
            return Err(RewriteError::Output(parent, "is no folder to write to; create it first".into()));
        }
        let folder = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".partial").tempdir_in(&parent);
        Ok(Self { folder: folder.map_err(FileError::io(&parent))?, output: output.to_path_buf() })
    }

    /// Where to make the output.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts the folder in place as the output.
    ///
    /// # Errors
    /// The file system says no; nothing is changed then.
    pub fn publish_folder(self) -> Result<(), RewriteError> {
        let made = self.folder.path();
        // Temporary folders are their owner's alone.
        let like = fs::metadata(parent(&self.output)).map_err(FileError::io(&self.output))?;
        fs::set_permissions(made, like.permissions()).map_err(FileError::io(made))?;
        if is_there(&self.output) {
            let old = tempfile::Builder::new().prefix(".old.").tempdir_in(parent(&self.output));
            let old = old.map_err(FileError::io(&self.output))?;
            let aside = old.path().join("replaced");
            fs::rename(&self.output, &aside).map_err(FileError::io(&self.output))?;
            if let Err(e) = fs::rename(made, &self.output) {
                fs::rename(&aside, &self.output).map_err(FileError::io(&self.output))?;
                return Err(FileError::io(&self.output)(e).into());
            }
        } else {
            fs::rename(made, &self.output).map_err(FileError::io(&self.output))?;
        }
        drop(self.folder.keep());
        sync(&parent(&self.output));
        Ok(())
    }

    /// Puts the file `model` and its `data` files in place beside each other, the model last; if `in_place`, the data is
    /// there already.
    ///
    /// # Errors
    /// The file system says no; nothing is changed then.
    pub fn publish_file(self, model: &str, data: &[DataFile], in_place: bool) -> Result<(), RewriteError> {
        let folder = parent(&self.output);
        let mut placed = Vec::new();
        let result = (|| {
            for file in data {
                let to = folder.join(&file.location);
                let from = self.folder.path().join(&file.location);
                if same_file(&from, &to) || in_place {
                    continue;
                }
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent).map_err(FileError::io(parent))?;
                }
                let is_new = !is_there(&to);
                fs::rename(&from, &to).map_err(FileError::io(&to))?;
                if is_new {
                    placed.push(to);
                }
            }
            let from = self.folder.path().join(model);
            fs::rename(&from, &self.output).map_err(FileError::io(&self.output))
        })();
        if result.is_err() {
            placed.iter().for_each(|p| drop(fs::remove_file(p)));
        }
        sync(&folder);
        Ok(result?)
    }
}

/// The folder that `path` lies in.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if p != Path::new("") => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Whether there is anything at `path`, be it a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether both paths lead to one file or folder.
pub fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn check(input: &Path, output: &Path, force: bool) -> Result<(), RewriteError> {
    let problem = |text: &str| Err(RewriteError::Output(output.into(), text.into()));
    if same_file(input, output) {
        return problem("is the input, which is never overwritten; name another output");
    }
    if output.file_name().is_none() {
        return problem("is not a name for an output");
    }
    if input.is_dir() {
        let inside = fs::canonicalize(parent(output)).ok().zip(fs::canonicalize(input).ok());
        if inside.is_some_and(|(o, i)| o.starts_with(i)) {
            return problem("lies inside the input folder; name another output");
        }
    }
    if input.is_file() && output.is_dir() {
        return problem("is a folder, the input is a file; name a file");
    }
    if input.is_dir() && output.is_file() {
        return problem("is a file, the input is a folder; name a folder");
    }
    if is_there(output) && !force {
        return problem("exists; --force replaces it");
    }
    Ok(())
}

/// Refuses data files that would replace others, and an output in the place of one.
pub fn check_data(from: &Path, output: &Path, data: &[DataFile], force: bool) -> Result<(), RewriteError> {
    for file in data {
        let (from, to) = (from.join(&file.location), parent(output).join(&file.location));
        let in_its_place = output.file_name().is_some_and(|name| Path::new(name) == file.location);
        if in_its_place || same_file(&from, output) {
            let text = "is where the model's data goes, or lies; name another output".into();
            return Err(RewriteError::Output(output.into(), text));
        }
        if is_there(&to) && !same_file(&from, &to) && !force {
            let text = "exists, and the model's data would replace it; --force does so, or name another folder".into();
            return Err(RewriteError::Output(to, text));
        }
    }
    Ok(())
}

/// Makes the folder's entries durable, where the file system can.
fn sync(folder: &Path) {
    if let Ok(folder) = fs::File::open(folder) {
        folder.sync_all().ok();
    }
}
