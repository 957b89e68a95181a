//! Output that appears complete or not at all, and never replaces anything unless told to.

mod check;
mod data;
mod rename;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::error::RewriteError;
use crate::onnx::FileError;
pub use check::{contains, parent, same_file};
pub use data::{PlacedData, plan};

/// A private folder beside the output, on the same file system, in which the output is made.
pub struct Stage {
    folder: TempDir,
    /// Dropped last.
    _around: MadeFolders,
    output: PathBuf,
    force: bool,
}

impl Stage {
    /// Prepares to make `output`, a file or a folder, from the model at `input`.
    ///
    /// # Errors
    /// Something exists there and `force` is not given; input and output are or contain one another; the output's
    /// folder is read-only or cannot be made.
    pub fn new(input: &Path, output: &Path, force: bool) -> Result<Self, RewriteError> {
        check::check(input, output, force)?;
        let parent = parent(output);
        let around = MadeFolders::make(&parent)?;
        // Not named after the output, whose name may already have the maximum length.
        let folder = tempfile::Builder::new().prefix(".spark-ort.").suffix(".partial").tempdir_in(&parent);
        let folder = folder.map_err(FileError::io(&parent))?;
        let stage = Self { folder, _around: around, output: output.to_path_buf(), force };
        // Has the usual mode of this user's folders; the folder around it is private.
        fs::create_dir(stage.made()).map_err(FileError::io(&stage.made()))?;
        Ok(stage)
    }

    /// The folder to fill: the output's, or that of the data of a single file.
    pub fn made(&self) -> PathBuf {
        self.folder.path().join("made")
    }

    /// The path of a new file with roughly this `name` in `folder` of [`Self::made`].
    pub fn unused(&self, folder: &Path, name: &str) -> PathBuf {
        let names = (0u64..).map(|number| self.made().join(folder).join(format!(".{number}.{name}")));
        names.into_iter().find(|path| !check::is_there(path)).expect("there are more numbers than files")
    }

    /// Where to make a single-file output.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("model.onnx")
    }

    /// Puts the folder in place as the output. Returns what could not be removed of the old one.
    ///
    /// # Errors
    /// The file system refuses, or something is there that must not be replaced; nothing is changed then. If a folder
    /// that was moved aside cannot be moved back, the error says where it is.
    pub fn publish_folder(mut self) -> Result<Option<String>, RewriteError> {
        let made = self.made();
        sync(&made);
        let replaced = match self.force {
            true => self.replace_folder(&made)?,
            false => {
                rename::move_new(&made, &self.output).map_err(|e| in_the_way(&self.output, e))?;
                false
            }
        };
        sync(&parent(&self.output));
        let stays = self.folder.path().display().to_string();
        let removed = self.folder.close();
        Ok(removed.err().filter(|_| replaced).map(|e| format!("the old folder is not removed whole ({e}): {stays}")))
    }

    /// Puts `made` at the output, whatever is there; returns whether something was.
    fn replace_folder(&mut self, made: &Path) -> Result<bool, RewriteError> {
        let output = self.output.clone();
        let failed = |e| RewriteError::from(FileError::io(&output)(e));
        match rename::exchange(made, &output) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return rename::move_new(made, &output).map(|()| false).map_err(|e| in_the_way(&output, e));
            }
            Err(e) if e.kind() == ErrorKind::Unsupported => {}
            Err(e) => return Err(failed(e)),
        }
        // If they cannot be exchanged, the old folder is moved aside, and back if the new one cannot take its place.
        let aside = self.folder.path().join("replaced");
        let was_there = match fs::rename(&output, &aside) {
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            moved => moved.map(|()| true).map_err(failed)?,
        };
        let Err(error) = fs::rename(made, &output) else { return Ok(was_there) };
        if was_there && fs::rename(&aside, &output).is_err() {
            self.folder.disable_cleanup(true);
            let text = format!("cannot be replaced ({error}), nor put back; what was there is {}", aside.display());
            return Err(RewriteError::Output(output, text));
        }
        Err(failed(error))
    }

    /// Puts the new file in place as the output, after the `data` files beside it; data already in place is not moved.
    /// Returns what could not be removed of the old model.
    ///
    /// # Errors
    /// The file system refuses, or something is there that must not be replaced; nothing is changed then. (If another
    /// rewrite to this output finished first, data that it may be using stays.)
    pub fn publish_file(self, data: &[PlacedData]) -> Result<Option<String>, RewriteError> {
        if !self.force && check::is_there(&self.output) {
            return Err(in_the_way(&self.output, ErrorKind::AlreadyExists.into()));
        }
        let folder = parent(&self.output);
        let outdated = if self.force { data::outdated(&self.output, data) } else { Vec::new() };
        let mut placed = Vec::new();
        let result = self.place_data(data, &mut placed).and_then(|()| {
            let file = self.file();
            match self.force {
                true => fs::rename(file, &self.output).map_err(|e| FileError::io(&self.output)(e).into()),
                false => rename::move_new(&file, &self.output).map_err(|e| in_the_way(&self.output, e)),
            }
        });
        if let Err(error) = result {
            // Another process that put a model here may use this model's data as its own.
            if !matches!(error, RewriteError::Output(..)) {
                placed.iter().for_each(|path| drop(fs::remove_file(path)));
            }
            return Err(error);
        }
        sync(&folder);
        let removed = data::remove(&folder, &outdated);
        // Leftovers are in a folder with a self-explanatory name.
        self.folder.close().ok();
        Ok(removed.err())
    }

    fn place_data(&self, data: &[PlacedData], placed: &mut Vec<PathBuf>) -> Result<(), RewriteError> {
        for file in data {
            let (from, to) = (self.made().join(&file.from), parent(&self.output).join(&file.to));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(FileError::io(parent))?;
            }
            match rename::move_new(&from, &to) {
                Ok(()) => placed.push(to),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    if !data::same_content(&from, &to).map_err(FileError::io(&to))? {
                        return Err(in_the_way(&to, e));
                    }
                }
                Err(e) => return Err(FileError::io(&to)(e).into()),
            }
        }
        Ok(())
    }
}

/// Folders created to hold an output. Those still empty at the end are removed.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes `folder` and its missing parents.
    fn make(folder: &Path) -> Result<Self, RewriteError> {
        let missing = folder.ancestors().take_while(|path| *path != Path::new("") && !check::is_there(path));
        let made = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(folder).map_err(FileError::io(folder))?;
        Ok(made)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        self.0.iter().take_while(|folder| fs::remove_dir(folder).is_ok()).for_each(drop);
    }
}

/// The error for a new file or folder that cannot be put at `path`.
fn in_the_way(path: &Path, error: std::io::Error) -> RewriteError {
    match error.kind() {
        ErrorKind::AlreadyExists => {
            RewriteError::Output(path.into(), "exists since this rewrite began; --force replaces it".into())
        }
        _ => FileError::io(path)(error).into(),
    }
}

/// Makes the folder's entries durable, if the file system supports it.
fn sync(folder: &Path) {
    if let Ok(folder) = fs::File::open(folder) {
        folder.sync_all().ok();
    }
}
