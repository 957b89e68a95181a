//! Places where ONNX Runtime's shared library may be.
//!
//! Only ORT_DYLIB_PATH if it is set; else the `onnxruntime` packages of the active virtual environment and of the
//! Pythons on the PATH; else the library found by the system's loader.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::files;

/// Names passed to the system's loader.
const SYSTEM: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

/// Prints the folder of the package without importing it, which would load another ONNX Runtime. The working folder is
/// removed from the search path: files there are not installed packages.
const FIND_PACKAGE: &str = "\
import sys
sys.path = [p for p in sys.path if p]
from importlib.util import find_spec
spec = find_spec('onnxruntime')
for folder in (spec.submodule_search_locations or []) if spec else []:
    print(folder)
";

/// Time limit for a Python to print the location of its package.
const PATIENCE: Duration = Duration::from_secs(20);

/// Most bytes of its output that are read.
const MOST_ANSWER: u64 = 1 << 16;

/// A place to search, and the library there or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Description of the place for a message.
    pub name: String,
    /// A file, or a name for the system's loader.
    pub library: Result<PathBuf, String>,
}

/// The places, best first, searched lazily. `variable` reads an environment variable.
pub(super) fn places(variable: impl Fn(&str) -> Option<OsString>) -> impl Iterator<Item = Place> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let named = variable("ORT_DYLIB_PATH").map(|path| {
        let path = PathBuf::from(path);
        let library = match files::is_file(&path) {
            Ok(true) => Ok(path.clone()),
            Ok(false) => Err("no such file".into()),
            Err(error) => Err(error.to_string()),
        };
        Place { name: format!("ORT_DYLIB_PATH ({})", path.display()), library }
    });
    // A library that is named explicitly must be used.
    let search = named.is_none();
    let active = variable("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("bin/python"));
    let path = variable("PATH").unwrap_or_default();
    let on_path = ["python3", "python"].map(|name| {
        std::env::split_paths(&path).filter(|folder| folder.is_absolute()).map(|f| f.join(name)).find(|f| f.is_file())
    });
    let pythons: Vec<PathBuf> = active.into_iter().chain(on_path.into_iter().flatten()).collect();
    let no_python = (search && pythons.is_empty())
        .then(|| Place { name: "Python".into(), library: Err("no python3 on the PATH".into()) });
    let mut seen = HashSet::new();
    let packages = pythons.into_iter().filter(move |_| search).filter_map(move |python| {
        let library = package(&python);
        // The same installation may be reached by several names.
        let is_new = library.as_ref().map_or(true, |file| seen.insert(file.clone()));
        is_new.then(|| Place { name: format!("onnxruntime of {}", python.display()), library })
    });
    let system = SYSTEM.into_iter().filter(move |_| search);
    let system = system.map(|name| Place { name: format!("the system's {name}"), library: Ok(name.into()) });
    named.into_iter().chain(packages).chain(no_python).chain(system)
}

/// The library in the `onnxruntime` package of a Python.
fn package(python: &Path) -> Result<PathBuf, String> {
    let mut command = Command::new(python);
    command.args(["-c", FIND_PACKAGE]).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("it cannot be run: {e}"))?;
    let (sender, receiver) = channel();
    let stdout = child.stdout.take();
    // Another process may hold the pipe open, so reading may never end.
    std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.map(|pipe| pipe.take(MOST_ANSWER).read_to_end(&mut text));
        sender.send(text).ok();
    });
    let answer = receiver.recv_timeout(PATIENCE);
    // The process has closed its output, or used up its time.
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| format!("it cannot be run: {e}"))? {
            Some(status) => break status,
            None if answer.is_err() || begin.elapsed() > PATIENCE => {
                child.kill().and_then(|()| child.wait()).ok();
                return Err(format!("it did not answer in {} s", PATIENCE.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    if !status.success() {
        return Err(format!("it failed with {status}"));
    }
    let answer = answer.map_err(|_| format!("it did not answer in {} s", PATIENCE.as_secs()))?;
    let line = answer.split(|&byte| byte == b'\n').next().filter(|line| !line.is_empty()).ok_or("not installed")?;
    library_in(&Path::new(OsStr::from_bytes(line)).join("capi"))
}

/// `libonnxruntime.so` or `libonnxruntime.so.1.2.3` in a folder.
fn library_in(folder: &Path) -> Result<PathBuf, String> {
    let files = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let named = |file: &PathBuf| {
        file.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("libonnxruntime.so")).is_some_and(
            |rest| {
                rest.is_empty() || rest.starts_with('.') && rest[1..].bytes().all(|b| b.is_ascii_digit() || b == b'.')
            },
        )
    };
    let found = files.flatten().map(|file| file.path()).filter(named).max();
    // Canonical, so that a package shared by two Pythons is recognised.
    let found = found.map(|file| file.canonicalize().unwrap_or(file));
    found.ok_or_else(|| format!("no libonnxruntime.so in {} (old wheels have none)", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, MutexGuard};

    /// One test at a time: a child process started by another thread briefly inherits the script that is being written
    /// here, and a file open for writing cannot be executed.
    fn alone() -> MutexGuard<'static, ()> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A fake "python" that prints the folder of a package, or nothing, or fails.
    fn python(folder: &Path, name: &str, script: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// A package folder with these files in `capi`.
    fn installed(folder: &Path, files: &[&str]) -> PathBuf {
        std::fs::create_dir_all(folder.join("capi")).unwrap();
        for file in files {
            std::fs::write(folder.join("capi").join(file), "").unwrap();
        }
        folder.into()
    }

    fn found(variables: &[(&str, &Path)]) -> Vec<Place> {
        places(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())).collect()
    }

    #[test]
    fn a_named_library_is_the_only_place() {
        let folder = folder();
        let file = folder.path().join("libonnxruntime.so");
        let missing = found(&[("ORT_DYLIB_PATH", &file), ("PATH", folder.path())]);
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].library, Err("no such file".into()));
        assert!(missing[0].name.contains(file.to_str().unwrap()));
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(found(&[("ORT_DYLIB_PATH", &circle)])[0].library.as_ref().unwrap_err().contains("symbolic links"));
        std::fs::write(&file, "").unwrap();
        assert_eq!(found(&[("ORT_DYLIB_PATH", &file)])[0].library, Ok(file));
    }

    #[test]
    fn the_virtual_environment_comes_before_the_path_and_the_system_last() {
        let (_guard, folder) = (alone(), folder());
        let at = |name: &str| folder.path().join(name);
        let capi = ["libonnxruntime_providers_shared.so", "libonnxruntime.so.1.22.2", "onnxruntime_pybind11_state.so"];
        let mine = installed(&at("mine"), &capi);
        let other = installed(&at("other"), &capi[..1]);
        python(folder.path(), "venv/bin/python", &format!("echo {}", mine.display()));
        python(folder.path(), "bin/python3", &format!("echo {}", other.display()));
        python(folder.path(), "bin/python", &format!("echo {}", mine.display()));
        let places = found(&[("VIRTUAL_ENV", &at("venv")), ("PATH", &at("bin"))]);
        let library = mine.join("capi/libonnxruntime.so.1.22.2").canonicalize().unwrap();
        assert_eq!(places[0].library.as_ref(), Ok(&library));
        assert!(places[0].name.contains("venv/bin/python"));
        assert!(places[1].library.as_ref().unwrap_err().contains("old wheels have none"), "{places:?}");
        // The third Python shares the first one's package.
        let system: Vec<_> = places[2..].iter().map(|p| p.library.clone().unwrap()).collect();
        assert_eq!(system, SYSTEM.map(PathBuf::from));
    }

    #[test]
    fn what_is_wrong_with_a_python_is_said() {
        let (_guard, folder) = (alone(), folder());
        for (script, problem) in [("true", "not installed"), ("exit 3", "it failed with exit status: 3")] {
            python(folder.path(), "python3", script);
            assert_eq!(found(&[("PATH", folder.path())])[0].library, Err(problem.into()));
        }
        let empty = folder.path().join("empty");
        assert_eq!(found(&[("PATH", &empty)])[0].library, Err("no python3 on the PATH".into()));
    }
}
