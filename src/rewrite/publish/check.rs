//! What an output may not touch: the input, by whatever path it is reached, and existing files.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::error::RewriteError;

/// The folder that `path` lies in.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if p != Path::new("") => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Whether anything is at `path`, even a dangling link.
pub fn is_there(path: &Path) -> bool {
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

/// Where `path` lies after following links on the way to it, and its target if it is a link itself.
fn places(path: &Path) -> Vec<PathBuf> {
    let itself = canonical(&parent(path)).zip(path.file_name()).map(|(folder, name)| folder.join(name));
    itself.into_iter().chain(fs::canonicalize(path)).collect()
}

/// `path` without links, as far as it exists.
fn canonical(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok().or_else(|| {
        // The working folder, if it was removed, has no name and no parent.
        let name = path.file_name()?;
        Some(canonical(&parent(path))?.join(name))
    })
}

/// Whether the folder or file `outer` is or contains `inner`, through any links.
pub fn contains(outer: &Path, inner: &Path) -> bool {
    let outer = places(outer);
    places(inner).iter().any(|inner| outer.iter().any(|outer| inner.starts_with(outer)))
}

/// Whether `output` may be made from `input`.
///
/// # Errors
/// Something exists there and `force` is not given; one is or contains the other; they are of different kinds.
pub fn check(input: &Path, output: &Path, force: bool) -> Result<(), RewriteError> {
    let problem = |text: &str| Err(RewriteError::Output(output.into(), text.into()));
    if same_file(input, output) {
        return problem("is the input, which is never overwritten; name another output");
    }
    if output.file_name().is_none() {
        return problem("is not a name for an output");
    }
    if input.is_dir() && contains(input, output) {
        return problem("lies inside the input folder; name another output");
    }
    if input.is_file() && output.is_dir() {
        return problem("is a folder, the input is a file; name a file");
    }
    if input.is_dir() && output.is_file() {
        return problem("is a file, the input is a folder; name a folder");
    }
    if contains(output, input) {
        return problem("has the input inside it, which would be removed; name another output");
    }
    if is_there(output) && !force {
        return problem("exists; --force replaces it");
    }
    Ok(())
}
