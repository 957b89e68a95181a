//! Folders of ONNX Runtime GenAI.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::error::{Refusal, RewriteError};
use super::layer::Layer;
use super::options::Options;
use super::providers;
use super::publish::contains;
use crate::files;
use crate::onnx::{DataFile, FileError, Homes, Placement, place, write_text};

/// The file that marks a GenAI folder.
pub const CONFIG: &str = "genai_config.json";

/// The operator library in a GenAI folder.
pub const LIBRARY: &str = "libspark_ort.so";

/// Names of files that programs read beside a model's .onnx file.
pub const BESIDE: [&str; 12] = [
    "genai_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    LIBRARY,
];

/// A GenAI folder.
pub struct GenAiFolder {
    path: PathBuf,
    config: Value,
    /// The decoder's file, relative to the folder.
    pub model: String,
}

impl GenAiFolder {
    /// Reads the configuration of the folder at `path`, whose new configuration names `provider` after those that the
    /// old one names.
    ///
    /// # Errors
    /// It is not a GenAI folder, or of a kind that cannot be rewritten.
    pub fn open(path: &Path, provider: Option<&str>) -> Result<Self, RewriteError> {
        let file = path.join(CONFIG);
        let refuse = |expected: &str, found: String| Refusal::new(file.display().to_string(), expected, found);
        let mut config = read_config(path)?;
        if !config["model"]["encoder"].is_null() {
            let found = "model.encoder: the decoder also attends to what an encoder made";
            return Err(refuse("a decoder that attends to its own tokens only", found.into()).into());
        }
        let decoder = &config["model"]["decoder"];
        if !decoder["pipeline"].is_null() {
            return Err(refuse("a decoder that is one file", "model.decoder.pipeline".into()).into());
        }
        let sliding = &decoder["sliding_window"];
        for part in ["slide_key_value_cache", "slide_inputs"] {
            // Both default to on.
            if !sliding.is_null() && sliding[part] != false {
                let found = format!("model.decoder.sliding_window.{part}: GenAI then feeds and cuts windows by itself");
                return Err(refuse("a cache that GenAI leaves whole", found).into());
            }
        }
        let model = decoder_file(&file, &config)?;
        let session = &decoder["session_options"];
        if !session.is_null() && !session.is_object() {
            let found = format!("model.decoder.session_options: {}", brief(session));
            return Err(refuse("an object of options", found).into());
        }
        let other = &session["custom_ops_library"];
        if !other.is_null() {
            let found = match other.as_str().is_some_and(|name| Path::new(name).ends_with(LIBRARY)) {
                true => format!("{LIBRARY}: this folder is rewritten already; rewrite the original one"),
                false => format!("custom_ops_library {}: GenAI loads one library only", brief(other)),
            };
            return Err(refuse("no custom operators yet", found).into());
        }
        if let Some(provider) = provider {
            providers::add(session_options(&mut config), provider);
        }
        Ok(Self { path: path.to_path_buf(), config, model })
    }

    /// The decoder's file of the GenAI folder at `path`, rewritten or not, relative to the folder.
    ///
    /// # Errors
    /// It is not a GenAI folder.
    pub fn open_any(path: &Path) -> Result<String, RewriteError> {
        let config = read_config(path)?;
        decoder_file(&path.join(CONFIG), &config)
    }

    /// The folder of the decoder's file, relative to this one.
    pub fn beside(&self) -> &Path {
        Path::new(&self.model).parent().unwrap_or(Path::new(""))
    }

    /// Checks that the configuration, by which GenAI allocates caches, is about a model with these `layers`.
    ///
    /// # Errors
    /// It states another number of KV heads, or another head size.
    pub fn check_sizes(&self, layers: &[Layer]) -> Result<(), RewriteError> {
        let Some(first) = layers.first() else { return Ok(()) };
        let uniform = |size: fn(&Layer) -> usize| layers.iter().all(|layer| size(layer) == size(first));
        let sizes = [
            ("num_key_value_heads", first.kv_heads, uniform(|layer| layer.kv_heads)),
            ("head_size", first.head_dim, uniform(|layer| layer.head_dim)),
        ];
        for (name, size, known) in sizes {
            let stated = &self.config["model"]["decoder"][name];
            if known && !stated.is_null() && *stated != size {
                let file = self.path.join(CONFIG).display().to_string();
                let expected = format!("model.decoder.{name} {size}, as {} has it", self.model);
                return Err(Refusal::new(file, &expected, brief(stated)).into());
            }
        }
        Ok(())
    }

    /// Whether GenAI keeps past and present in one buffer, which it never does for several beams.
    pub fn shares_buffer(&self) -> bool {
        let search = &self.config["search"];
        search["past_present_share_buffer"] == true && search["num_beams"].as_u64().is_none_or(|beams| beams <= 1)
    }

    /// Warns of what the execution providers of the configuration mean for the operators.
    pub fn provider_warnings(&self) -> Vec<String> {
        providers::warnings(&self.config["model"]["decoder"]["session_options"])
    }

    /// Fills `folder` with all files of the model but its .onnx file (data, tokenizer, and so on), the operator
    /// library, and a configuration that names the library and sets the width of a cache row to `row_width` elements.
    ///
    /// # Errors
    /// The library is not found, a file of the model has the name of a generated one or lies in the `output` to be
    /// replaced, or the file system refuses.
    pub fn fill(
        &self,
        folder: &Path,
        output: &Path,
        data: &[DataFile],
        row_width: usize,
        options: &Options,
    ) -> Result<(), RewriteError> {
        let library = find_library(options.library.as_deref())?;
        check_library(&library)?;
        self.check_names(data)?;
        let homes = Homes::of(&self.path.join(&self.model)).and(&self.path);
        let copies = Copies { to: folder, output, data, how: options.data, homes };
        self.copy_others(Path::new(""), &mut Vec::new(), &copies)?;
        // Copied, not linked: GenAI runs its own ONNX Runtime in the process, and each library file can serve only
        // one.
        place(&library, &folder.join(LIBRARY), Placement::Copy)?;
        let mut config = self.config.clone();
        let decoder = &mut config["model"]["decoder"];
        // GenAI uses this only as the width of cache rows. It can read the width from the model instead, but then
        // cannot rewind a cache that grows by copies.
        decoder["head_size"] = row_width.into();
        // Attention itself applies the window; the caches hold all tokens.
        decoder.as_object_mut().map(|decoder| decoder.remove("sliding_window"));
        let session = session_options(&mut config);
        session["custom_ops_library"] = LIBRARY.into();
        providers::disable_graphs(session);
        let text = serde_json::to_string_pretty(&config).expect("it was read from JSON");
        Ok(write_text(&format!("{text}\n"), &folder.join(CONFIG))?)
    }

    /// Refuses a model or data file with the name of another file of the new folder.
    fn check_names(&self, data: &[DataFile]) -> Result<(), Refusal> {
        let model = Path::new(&self.model);
        let taken = [Path::new(LIBRARY), Path::new(CONFIG)];
        let refuse = |place: &str, name: &Path| {
            let found = format!("{}, the name of another file of the folder", name.display());
            Err(Refusal::new(self.path.display().to_string(), format!("{place} of a name of its own"), found))
        };
        if taken.contains(&model) {
            return refuse("a model", model);
        }
        let location = |file: &DataFile| self.beside().join(&file.location);
        let clash = |file: &&DataFile| taken.iter().chain([&model]).any(|name| location(file).starts_with(name));
        data.iter().find(clash).map_or(Ok(()), |file| refuse("external data", &file.location))
    }

    /// Copies what lies `inside` a folder of the model. `around` are the folders on the path to it, to detect loops of
    /// links.
    fn copy_others(&self, inside: &Path, around: &mut Vec<PathBuf>, copies: &Copies<'_>) -> Result<(), RewriteError> {
        let folder = self.path.join(inside);
        let real = fs::canonicalize(&folder).map_err(FileError::io(&folder))?;
        let odd = |path: &Path, found: &str| Refusal::new(path.display().to_string(), "a file or a folder", found);
        if around.contains(&real) {
            return Err(odd(&folder, "a link to a folder around it").into());
        }
        around.push(real);
        // Generated anew; an older library is not copied.
        let ours = [CONFIG, LIBRARY, &self.model].map(Path::new);
        for entry in fs::read_dir(&folder).map_err(FileError::io(&folder))? {
            let entry = entry.map_err(FileError::io(&folder))?;
            let relative = inside.join(entry.file_name());
            let from = self.path.join(&relative);
            // Of the target of a link. A pipe may never have a writer, and a device has no end.
            let kind = match fs::metadata(&from) {
                Ok(metadata) => metadata.file_type(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(odd(&from, "a link that leads nowhere").into());
                }
                Err(e) => return Err(FileError::io(&from)(e).into()),
            };
            if kind.is_dir() {
                copies.homes.check(&from)?;
                self.copy_others(&relative, around, copies)?;
            } else if !kind.is_file() {
                return Err(odd(&from, "a pipe, socket or device").into());
            } else if contains(copies.output, &from) {
                return Err(odd(&from, "a link into the output, which is replaced").into());
            } else if !ours.contains(&relative.as_path()) {
                copies.homes.check(&from)?;
                // The model gives data locations relative to its own folder.
                let is_data = copies.data.iter().any(|d| self.beside().join(&d.location) == relative);
                place(&from, &copies.to.join(&relative), if is_data { copies.how } else { Placement::Copy })?;
            }
        }
        around.pop();
        Ok(())
    }
}

/// Where the files of a folder go, and how.
struct Copies<'a> {
    to: &'a Path,
    output: &'a Path,
    data: &'a [DataFile],
    how: Placement,
    homes: Homes,
}

fn read_config(path: &Path) -> Result<Value, RewriteError> {
    let file = path.join(CONFIG);
    if !files::is_file(&file).map_err(FileError::io(&file))? {
        let found = format!("no {CONFIG} in it; of other folders name the .onnx file itself");
        return Err(Refusal::new(path.display().to_string(), "a folder of ONNX Runtime GenAI", found).into());
    }
    let text = files::read_text(&file, files::MOST_JSON).map_err(FileError::io(&file))?;
    Ok(serde_json::from_str(&text).map_err(|e| Refusal::new(file.display().to_string(), "JSON", e.to_string()))?)
}

/// A value as JSON, shortened if long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    text.char_indices().nth(80).map_or(text.clone(), |(end, _)| format!("{} ...", &text[..end]))
}

/// The decoder's session options, made if there are none.
fn session_options(config: &mut Value) -> &mut Value {
    let session = &mut config["model"]["decoder"]["session_options"];
    if session.is_null() {
        *session = Value::Object(Map::new());
    }
    session
}

/// model.decoder.filename: a path inside the folder.
fn decoder_file(file: &Path, config: &Value) -> Result<String, RewriteError> {
    let stated = &config["model"]["decoder"]["filename"];
    let name = stated.as_str().unwrap_or_default();
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match inside && !name.is_empty() && !name.contains('\0') {
        true => Ok(name.to_string()),
        false => {
            let expected = "model.decoder.filename, a file in this folder";
            let found = if stated.is_null() { "none".into() } else { brief(stated) };
            Err(Refusal::new(file.display().to_string(), expected, found).into())
        }
    }
}

/// How files of the kind begin that a library is.
const ELF: &[u8] = b"\x7fELF";

/// The function of a library that ONNX Runtime calls.
const ENTRY_POINT: &[u8] = b"RegisterCustomOps";

/// Checks that the file `library` may be what a folder needs, before it is copied there.
fn check_library(library: &Path) -> Result<(), RewriteError> {
    let problem = |text: String| RewriteError::option("library", format!("{}: {text}", library.display()));
    let bytes = std::fs::read(library).map_err(|e| problem(e.to_string()))?;
    let has_entry_point = || bytes.windows(ENTRY_POINT.len()).any(|part| part == ENTRY_POINT);
    match bytes.starts_with(ELF) && has_entry_point() {
        true => Ok(()),
        false => Err(problem("it is no library with operators for ONNX Runtime".into())),
    }
}

/// The operator library: the one that is `named`, else the one beside the program.
///
/// # Errors
/// There is no library; the error says where it was searched for.
pub fn find_library(named: Option<&Path>) -> Result<PathBuf, RewriteError> {
    let problem = |text: String| RewriteError::option("library", text);
    if let Some(path) = named {
        return match files::is_file(path) {
            Ok(true) => Ok(path.into()),
            Ok(false) => Err(problem(format!("{} is no file", path.display()))),
            Err(error) => Err(problem(format!("{}: {error}", path.display()))),
        };
    }
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new(""));
    let places = [folder.join(LIBRARY), folder.join("../lib").join(LIBRARY)];
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        let list = places.each_ref().map(|p| p.display().to_string()).join(" nor ");
        problem(format!("the operator library is neither {list}; say where it is (`cargo install` leaves it out)"))
    })
}
