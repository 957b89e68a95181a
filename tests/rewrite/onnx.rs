//! Reading and writing models: nothing is lost. The exports that it reads are built by
//! `python -m tests.rewrite.exports.build`.

#[macro_use]
#[path = "../support/needs.rs"]
mod needs;

use std::path::PathBuf;

use spark_ort::onnx;

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The exports, as files.
fn exports() -> Vec<PathBuf> {
    let folder = std::env::var_os("SPARK_TEST_MODELS").map_or_else(|| root("target/exports"), PathBuf::from);
    let folders = std::fs::read_dir(&folder).ok().into_iter().flatten().flatten().map(|f| f.path());
    let files: Vec<_> = folders.map(|f| f.join("model.onnx")).filter(|f| f.is_file()).collect();
    files
}

fn at_hand() -> Result<(), &'static str> {
    match exports().len() {
        7 => Ok(()),
        _ => Err("target/exports, or $SPARK_TEST_MODELS, lacks exports: run `python -m tests.rewrite.exports.build`"),
    }
}

/// A length-delimited field.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut varint = |mut n: usize| {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    };
    varint((number << 3 | 2) as usize);
    varint(bytes.len());
    out.extend(bytes);
    out
}

/// How often each byte occurs. Fields may come out in another order, but whatever were lost or changed would show.
fn counts(bytes: &[u8]) -> [usize; 256] {
    let mut counts = [0; 256];
    bytes.iter().for_each(|&b| counts[usize::from(b)] += 1);
    counts
}

#[test]
fn exports_come_out_as_they_were() {
    needs!(at_hand());
    let folder = tempfile::tempdir().unwrap();
    for (i, path) in exports().into_iter().enumerate() {
        let copy = folder.path().join(format!("{i}.onnx"));
        let model = onnx::read(&path).unwrap();
        onnx::write(&model, &copy).unwrap();
        assert!(onnx::read(&copy).unwrap() == model, "{} reads otherwise", path.display());
        let [before, after] = [&path, &copy].map(|p| counts(&std::fs::read(p).unwrap()));
        assert!(before == after, "{} has other bytes", path.display());
    }
}

/// Fields that a later ONNX may have, at every level, come out after the known ones.
#[test]
fn unknown_fields_survive() {
    let unknown = field(900, b"from the future");
    let node = [field(4, b"Identity"), unknown.clone()].concat();
    let tensor = [field(8, b"weight"), unknown.clone()].concat();
    let graph = [field(1, &node), field(2, b"graph"), field(5, &tensor), unknown.clone()].concat();
    let model = [field(2, b"test"), field(7, &graph), unknown].concat();
    let folder = tempfile::tempdir().unwrap();
    let [before, after] = ["before", "after"].map(|name| folder.path().join(name));
    std::fs::write(&before, &model).unwrap();
    onnx::write(&onnx::read(&before).unwrap(), &after).unwrap();
    assert_eq!(std::fs::read(after).unwrap(), model);
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.onnx");
    let whole = std::fs::read(root("graphs/genai-cpu-int4/model.onnx")).unwrap();
    for bytes in [&[][..], b"no protobuf", &whole[..whole.len() - 1], &whole[..whole.len() / 2], &whole[..10]] {
        std::fs::write(&path, bytes).unwrap();
        let error = onnx::read(&path).unwrap_err().to_string();
        assert!(error.contains("broken.onnx is not an ONNX model"), "{error}");
    }
    let error = onnx::read(&folder.path().join("missing.onnx")).unwrap_err().to_string();
    assert!(error.contains("missing.onnx"), "{error}");
    let error = onnx::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("directory"), "{error}");
}
