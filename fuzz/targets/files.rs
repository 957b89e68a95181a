//! Files of a model: the graph, the configurations beside it, the tokenizer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use spark_ort::onnx::Placement;
use spark_ort::rewrite::{Calibration, Options, inspect, rewrite};
use spark_ort::runtime::{FolderSettings, Tokenizer};

/// The small model that comes with its files, from the folder of the project or of `fuzz`.
fn bundled() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [here, here.parent().unwrap_or(here)].map(|folder| folder.join("graphs/genai-cpu-int4"));
    folders.into_iter().find(|folder| folder.is_dir()).expect("the graphs of the project")
}

/// A folder of this process, that SPARK_FUZZ_FOLDER names or that is its own: `in` with the files of the bundled model.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = match std::env::var_os("SPARK_FUZZ_FOLDER") {
            Some(folder) => PathBuf::from(folder),
            None => tempfile::tempdir().expect("a temporary folder").keep(),
        };
        let input = folder.join("in");
        fs::create_dir_all(&input).expect("a folder");
        for name in ["model.onnx", "model.onnx.data"] {
            fs::copy(bundled().join(name), input.join(name)).expect("a copy of the bundled model");
        }
        // Other graphs of the project have more data than this one.
        let data = fs::File::options().write(true).open(input.join("model.onnx.data"));
        data.and_then(|file| file.set_len(16 << 20)).expect("a longer file");
        fs::write(folder.join("library"), "a library").expect("a file");
        folder
    })
}

/// A model file is refused or rewritten, with different options, and looked into.
pub fn model(data: &[u8]) {
    let path = folder().join("in/mutant.onnx");
    fs::write(&path, data).expect("a file");
    let (ratio, recent) = [(0.0, None), (0.5, Some(0)), (0.7, Some(16)), (0.9, Some(3))][data.len() % 4];
    let options = Options { ratio, recent, dry_run: true, calibrate: Calibration::Off, ..Options::default() };
    drop(rewrite(&path, &folder().join("out.onnx"), &options, &mut ()));
    drop(inspect(&path).map(|inspection| inspection.to_string()));
}

/// A genai_config.json: its folder is refused, and nothing is left, or rewritten as a whole.
pub fn config(data: &[u8]) {
    let (input, output) = (folder().join("in"), folder().join("out"));
    fs::write(input.join("genai_config.json"), data).expect("a file");
    let options = Options {
        calibrate: Calibration::Off,
        data: Placement::Link,
        library: Some(folder().join("library")),
        ..Options::default()
    };
    let done = rewrite(&input, &output, &options, &mut ());
    fs::remove_file(input.join("genai_config.json")).expect("it is there");
    let names = fs::read_dir(folder()).expect("a folder").flatten().count();
    match done {
        Err(_) => assert_eq!(names, 2, "something is left of a folder that was refused"),
        Ok(_) => {
            assert_eq!(names, 3, "something is left beside the output");
            let made = ["model.onnx", "model.onnx.data", "genai_config.json", "libspark_ort.so"];
            made.iter().for_each(|name| assert!(output.join(name).is_file(), "{name} is not made"));
            fs::remove_dir_all(&output).expect("it can be removed");
        }
    }
}

/// The settings that files beside a model may say.
pub fn settings(data: &[u8]) {
    let place = folder().join("in/settings");
    fs::create_dir_all(&place).expect("a folder");
    for name in ["genai_config.json", "generation_config.json", "config.json"] {
        fs::write(place.join(name), data).expect("a file");
        drop(FolderSettings::beside(&place.join("model.onnx")));
        fs::remove_file(place.join(name)).expect("it is there");
    }
    fs::remove_dir(place).expect("it is empty");
}

/// A tokenizer.json: refused, or a tokenizer that spells and reads some text, or says that it cannot.
pub fn tokenizer(data: &[u8]) {
    let path = folder().join("in/tokenizer.json");
    fs::write(&path, data).expect("a file");
    let opened = Tokenizer::open(&path);
    fs::remove_file(path).expect("it is there");
    let Ok(tokenizer) = opened else { return };
    let Ok(tokens) = tokenizer.encode("Once upon a time there was a cache, 42 % é 漢字 🦀.\n\t") else { return };
    drop(tokenizer.decode(&tokens));
    let mut stream = tokenizer.stream();
    for token in tokens.into_iter().chain([0, -1, i64::from(u32::MAX)]) {
        drop(stream.push(token));
    }
}
