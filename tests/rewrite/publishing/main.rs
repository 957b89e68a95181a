//! Every system call of a rewrite that touches files fails once, and the process is killed after every one: the input
//! stays as it is, the output is the old one or the new one, and a second run works.
//!
//! The program runs under ptrace, one run for each call and each of the two. Skipped where ptrace is not allowed.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod tracer;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use spark_ort::onnx;
use tracer::{Fault, Outcome, run};

/// A file or folder to rewrite, and what is at the output before.
struct Case {
    name: &'static str,
    /// Rewrite the folder, or the file in it.
    folder: bool,
    /// A rewrite of another model is at the output, and is to be replaced.
    replace: bool,
    /// The file system has no renameat2.
    plain: bool,
}

const CASES: [Case; 8] = [
    Case { name: "new folder", folder: true, replace: false, plain: false },
    Case { name: "new folder, plain renames", folder: true, replace: false, plain: true },
    Case { name: "folder replaced", folder: true, replace: true, plain: false },
    Case { name: "folder replaced, plain renames", folder: true, replace: true, plain: true },
    Case { name: "new file", folder: false, replace: false, plain: false },
    Case { name: "new file, plain renames", folder: false, replace: false, plain: true },
    Case { name: "file replaced", folder: false, replace: true, plain: false },
    Case { name: "file replaced, plain renames", folder: false, replace: true, plain: true },
];

/// Everything in a folder.
type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

fn snapshot(folder: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => drop(found.insert(entry.path(), fs::read(entry.path()).unwrap())),
            }
        }
    }
    found
}

/// Copies what is in a folder.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            }
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Lets all weights begin at the same byte, so that their file is small: what is rewritten does not depend on them.
/// Returns the bytes of the longest.
fn share_data(model: &mut onnx::proto::ModelProto) -> usize {
    let weights = model.graph.as_mut().unwrap().initializer.iter_mut();
    let mut most = 0;
    for entry in weights.flat_map(|tensor| &mut tensor.external_data) {
        match entry.key() {
            "offset" => entry.set_value("0".into()),
            "length" => most = most.max(entry.value().parse().unwrap()),
            _ => {}
        }
    }
    most
}

struct Place {
    root: tempfile::TempDir,
    input: PathBuf,
    /// The folder around the output.
    around: PathBuf,
}

impl Place {
    fn empty() -> Self {
        let root = tempfile::tempdir().unwrap();
        let [input, around] = ["in", "to"].map(|name| root.path().join(name));
        Self { root, input, around }
    }

    /// The bundled model, small, and room for an output.
    fn new(case: &Case) -> Self {
        let place = Self::empty();
        let (root, input) = (&place.root, &place.input);
        fs::create_dir(input).unwrap();
        fs::create_dir(&place.around).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/genai-cpu-int4");
        fs::copy(from.join("genai_config.json"), input.join("genai_config.json")).unwrap();
        let mut model = onnx::read(&from.join("model.onnx")).unwrap();
        let bytes = share_data(&mut model);
        onnx::write(&model, &input.join("model.onnx")).unwrap();
        let data = fs::read(from.join("model.onnx.data")).unwrap();
        fs::write(input.join("model.onnx.data"), &data[..bytes]).unwrap();
        fs::write(root.path().join("libspark_ort.so"), "\x7fELF RegisterCustomOps").unwrap();
        if case.replace {
            // What is replaced: the same model with other data.
            let data = place.input.join("model.onnx.data");
            let bytes = fs::read(&data).unwrap();
            fs::write(&data, bytes.iter().map(|b| b ^ 1).collect::<Vec<_>>()).unwrap();
            let done = place.command(case).output().unwrap();
            assert!(done.status.success(), "{}: {}", done.status, String::from_utf8_lossy(&done.stderr));
            fs::write(&data, bytes).unwrap();
        }
        place
    }

    /// Another one with the same files.
    fn copy(&self) -> Self {
        let place = Self::empty();
        copy(self.root.path(), place.root.path());
        place
    }

    fn output(&self) -> PathBuf {
        self.around.join("out")
    }

    fn command(&self, case: &Case) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spark-ort"));
        let input = if case.folder { self.input.clone() } else { self.input.join("model.onnx") };
        // The trial runs in a process of its own and publishes nothing.
        command.arg("rewrite").arg(input).arg(self.output()).args(["--no-trial", "--calibrate", "off", "--library"]);
        command.arg(self.input.with_file_name("libspark_ort.so"));
        if case.replace {
            command.arg("--force");
        }
        command
    }

    /// What the output is: the graph without where its data is, and the data that it has; `None` if it is not there.
    fn made(&self, case: &Case) -> Option<(Snapshot, Vec<Vec<u8>>)> {
        let output = self.output();
        let file = if case.folder { output.join("model.onnx") } else { output.clone() };
        fs::symlink_metadata(&output).ok()?;
        let mut model = onnx::read(&file).unwrap();
        // Checks that the data is there, too.
        let data = onnx::data_files(&model, &file).unwrap();
        let folder = file.parent().unwrap();
        let contents = data.iter().map(|d| fs::read(folder.join(&d.location)).unwrap()).collect();
        for (n, file) in data.iter().enumerate() {
            onnx::move_data(&mut model, &file.location, &n.to_string());
        }
        let graph = tempfile::tempdir().unwrap();
        onnx::write(&model, &graph.path().join("graph")).unwrap();
        let mut files = if case.folder { snapshot(&output) } else { Snapshot::new() };
        files.insert("graph".into(), fs::read(graph.path().join("graph")).unwrap());
        files.remove(&file);
        let files = files.into_iter().map(|(p, b)| (p.strip_prefix(&output).map(PathBuf::from).unwrap_or(p), b));
        Some((files.collect(), contents))
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(&self.around).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names
    }
}

/// Runs `case` with `fault` in a copy of `first` and checks what is left; whether the fault came to pass.
fn check(case: &Case, fault: Fault, first: &Place) -> bool {
    let place = first.copy();
    let (input, old, names) = (snapshot(&place.input), place.made(case), place.names());
    let (outcome, call) = run(&mut place.command(case), fault, case.plain);
    let Some(call) = call else {
        assert_eq!(outcome, Outcome::Ended(0), "{}: nothing went wrong", case.name);
        return false;
    };
    let context = format!("{}: {fault:?}, which is {call}: {outcome:?}", case.name);
    assert_eq!(snapshot(&place.input), input, "{context}: the input");
    let left = place.made(case);
    match outcome {
        // What failed did not matter.
        Outcome::Ended(0) => {}
        Outcome::Ended(1) => {
            let plain_old_aside = case.plain && case.folder && left.is_none();
            assert!(left == old || plain_old_aside, "{context}: the output after an error");
            // What could not be removed may be there.
            assert!(
                place.names() == names || call.starts_with("unlink") || call.starts_with("rmdir"),
                "{context}: left"
            );
        }
        Outcome::Killed => {}
        Outcome::Ended(_) => panic!("{context}"),
    }
    // Where folders cannot be exchanged there is an instant without either, and the old one is in a folder beside.
    let between = case.plain && case.folder && case.replace && left.is_none();
    if left != old && !between {
        let new = left.expect("neither old nor missing");
        let data = fs::read(place.input.join("model.onnx.data")).unwrap();
        assert!(new.1 == [data], "{context}: the new graph has other data");
    }
    let mut again = place.command(case);
    let done = again.output().unwrap();
    let is_done = old.is_none() && place.made(case).is_some() && !done.status.success();
    assert!(done.status.success() || is_done, "{context}: again: {}", String::from_utf8_lossy(&done.stderr));
    let data = fs::read(place.input.join("model.onnx.data")).unwrap();
    assert_eq!(place.made(case).unwrap().1, [data], "{context}: after a second run");
    assert_eq!(snapshot(&place.input), input, "{context}: the input after a second run");
    true
}

fn check_all(case: &Case) {
    let first = Place::new(case);
    for kind in [Fault::Error, Fault::Kill] {
        let count = (0..).find(|&n| !check(case, kind(n), &first)).unwrap();
        println!("{}: {count} calls, {:?}", case.name, kind(0));
        assert!(count > 20, "{}: only {count} calls were seen", case.name);
    }
}

#[test]
fn every_call_fails_once_and_is_the_last_one_once() {
    if !tracer::is_allowed() {
        println!("skipped: ptrace is not allowed here");
        return;
    }
    std::thread::scope(|scope| {
        for cases in CASES.chunks(2) {
            scope.spawn(|| cases.iter().for_each(check_all));
        }
    });
}
