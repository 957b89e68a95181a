//! Files that are written whole or not at all.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes `bytes` to `path`, which is replaced when they are on disk and not before; a link stays a link.
///
/// # Errors
/// If it cannot be written; then what was there before is still there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    put(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let present = std::fs::metadata(path).ok();
    // A pipe or a device cannot be replaced, and is written to.
    if present.as_ref().is_some_and(|present| !present.is_file()) {
        return std::fs::write(path, bytes);
    }
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = folder_of(&target);
    // Less what the user's mask takes away.
    let permissions = present.map_or(PermissionsExt::from_mode(0o666), |present| present.permissions());
    let mut file = tempfile::Builder::new().prefix(".spark-ort-").permissions(permissions).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&target)?;
    Ok(())
}

/// The folder of the file `path`.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("recipe.json"), folder.path().join("link.json"));
        write(&file, b"old").unwrap();
        std::os::unix::fs::symlink("recipe.json", &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(link.is_symlink());

        assert!(write(&file.join("nested"), b"never").unwrap_err().to_string().contains("cannot write"));
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_device_is_written_to() {
        write(Path::new("/dev/null"), b"text").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    }
}
