//! Files that are written whole or not at all.

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, access};
use rustix::process::geteuid;
use spark_ort::files;
use spark_ort::rewrite::{contains, same_file};

use crate::terminal::pass_on;

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
    let target = target(path);
    let folder = folder_of(&target);
    // Less what the user's mask takes away.
    let permissions = present.map_or(PermissionsExt::from_mode(0o666), |present| present.permissions());
    let mut file = tempfile::Builder::new().prefix(".spark-ort-").permissions(permissions).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&target)?;
    Ok(())
}

/// Refuses, before long work, a `path` of `option` that cannot be written or is one of the files that are `read`.
///
/// # Errors
/// It is such a file or a folder, or its folder is not there or lets nothing be made in it. `-`, standard output, is
/// fine.
pub fn check(option: &str, path: &Path, read: &[PathBuf]) -> Result<()> {
    if is_stdout(path) {
        return Ok(());
    }
    let (shown, folder, made) = (path.display(), folder_of(path), target(path));
    if read.iter().any(|file| same_file(file, path) || contains(file, path) || contains(file, &made)) {
        bail!("{option} {shown} is a file that is read or made; name another one");
    }
    let refused = || format!("{option} {shown} cannot be written");
    if !files::kind(folder).with_context(refused)?.is_some_and(|kind| kind.is_dir()) {
        bail!("{option} {shown}: there is no folder {}", folder.display());
    }
    match files::kind(path).with_context(refused)? {
        Some(kind) if kind.is_dir() => bail!("{option} {shown} is a folder; name a file"),
        Some(kind) if !kind.is_file() => access(path, Access::WRITE_OK).with_context(refused),
        present => {
            let beside = folder_of(&made);
            if present.is_some() {
                let (folder, file) = (beside.metadata().with_context(refused)?, made.metadata().with_context(refused)?);
                if !is_replaceable(&folder, &file, geteuid().as_raw()) {
                    bail!("{option} {shown} is another user's, in a folder where only its owner may replace it");
                }
            }
            // As it is written: beside what it replaces. This file has no name and is gone at once.
            tempfile::tempfile_in(beside).map(drop).with_context(refused)
        }
    }
}

/// Writes `text` to `path` as [`write`] does, or to stdout where it is `-`.
///
/// # Errors
/// As [`write`], or stdout is closed or full.
pub fn write_or_show(path: &Path, text: &str) -> Result<()> {
    match is_stdout(path) {
        true => pass_on(text),
        false => write(path, text.as_bytes()),
    }
}

/// Whether `path` stands for standard output. A file that it is directed to must not be replaced: what is printed too
/// would be lost.
pub fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path.as_os_str() == *name)
}

/// Whether user `user` may replace `file`: in a folder such as /tmp, only its owner and the folder's may.
fn is_replaceable(folder: &Metadata, file: &Metadata, user: u32) -> bool {
    folder.mode() & 0o1000 == 0 || user == 0 || [folder.uid(), file.uid()].contains(&user)
}

/// The file that is replaced, or made, when `path` is written.
fn target(path: &Path) -> PathBuf {
    let mut target = match std::fs::canonicalize(path) {
        Ok(target) => return target,
        Err(_) => path.to_path_buf(),
    };
    // A link to what is not there yet has no canonical path.
    if std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        while let Ok(next) = std::fs::read_link(&target) {
            target = folder_of(&target).join(next);
        }
    }
    target
}

/// Checks the files that are written, each with its option, one after the other: none is one that is `read`, or written
/// before.
pub fn check_all<const N: usize>(written: [(&str, Option<&Path>); N], mut read: Vec<PathBuf>) -> Result<()> {
    for (option, path) in written {
        let Some(path) = path else { continue };
        check(option, path, &read)?;
        read.push(target(path));
    }
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
        std::fs::remove_file(&file).unwrap();
        write(&link, b"again").unwrap();
        assert!(link.is_symlink() && std::fs::read(&file).unwrap() == b"again");

        assert!(write(&file.join("nested"), b"never").unwrap_err().to_string().contains("cannot write"));
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn what_is_read_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, new] = ["text", "link", "new"].map(|name| folder.path().join(name));
        write(&file, b"text").unwrap();
        std::os::unix::fs::symlink("text", &link).unwrap();
        let problem = |path: &Path| check("--json", path, &[file.clone(), folder.path().join("./made")]).err();
        for wrong in [&file, &link, &folder.path().join("made"), folder.path(), &folder.path().join("no/such")] {
            assert!(problem(wrong).is_some(), "{wrong:?}");
        }
        assert!(problem(&new).is_none() && problem(Path::new("-")).is_none());
        assert!(is_stdout(Path::new("/dev/stdout")) && !is_stdout(&new));

        let dangling = folder.path().join("dangling");
        std::os::unix::fs::symlink("new", &dangling).unwrap();
        assert!(problem(&dangling).is_none());
        for [first, second] in [[&new, &dangling], [&dangling, &new]] {
            let both = [("--output", Some(first.as_path())), ("--json", Some(second.as_path()))];
            assert!(check_all(both, vec![]).unwrap_err().to_string().contains("--json"), "{first:?}");
        }
    }

    #[test]
    fn what_the_file_system_refuses_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let [circle, file] = ["circle", "file"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        write(&file, b"text").unwrap();
        // Nobody can make a file in /proc, not even root.
        for (path, reason) in [
            (circle.as_path(), "symbolic links"),
            (&circle.join("report"), "symbolic links"),
            (&file.join("report"), "there is no folder"),
            (Path::new("/proc/report.json"), "cannot be written"),
        ] {
            let error = format!("{:#}", check("--json", path, &[]).unwrap_err());
            assert!(error.contains(reason) && error.contains("--json"), "{error}");
        }
        check("--json", &file, &[]).unwrap();
        check("--json", Path::new("/dev/null"), &[]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn files_of_others_are_not_replaced_in_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.json");
        write(&file, b"text").unwrap();
        let metadata = || [folder.path(), &file].map(|path| path.metadata().unwrap());
        let [open, own] = metadata();
        let (owner, other) = (own.uid(), own.uid() + 1);
        assert!(is_replaceable(&open, &own, other));
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777)).unwrap();
        let [sticky, own] = metadata();
        assert!(is_replaceable(&sticky, &own, owner) && is_replaceable(&sticky, &own, 0));
        assert!(!is_replaceable(&sticky, &own, other));
    }

    #[test]
    fn a_device_is_written_to() {
        write(Path::new("/dev/null"), b"text").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    }
}
