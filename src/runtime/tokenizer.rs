//! Converts text to tokens and back, with `tokenizer.json`.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use super::error::Error;
use crate::files;

/// What a model's folder calls it.
const FILE: &str = "tokenizer.json";

/// A model's tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in the folder `path`.
    ///
    /// # Errors
    /// If there is no such file, or if it cannot be read or is malformed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kind = |path: &Path| files::kind(path).map_err(|source| Error::Read { path: path.into(), source });
        let path = match kind(path)? {
            Some(found) if found.is_dir() => path.join(FILE),
            _ => path.into(),
        };
        if kind(&path)?.is_none() {
            return Err(Error::NoTokenizer { path });
        }
        let malformed = |e: tokenizers::Error| Error::Malformed { path: path.clone(), problem: e.to_string() };
        let text = files::read(&path, files::MOST_TOKENIZER);
        let text = text.map_err(|source| Error::Read { path: path.clone(), source })?;
        // Each takes many times its size in memory while it is read.
        let values = text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        if values > files::MOST_TOKENIZER_VALUES {
            return Err(malformed(format!("it has {values} values, many times those of any in use").into()));
        }
        guarded(|| tokenizers::Tokenizer::from_bytes(&text)).map(Self).map_err(malformed)
    }

    /// The tokenizer in the folder of a model.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn beside(model: &Path) -> Result<Self, Error> {
        Self::open(&model.with_file_name(FILE))
    }

    /// The tokens of a text, with those that the tokenizer adds to every text, such as a start token.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of it.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, Error> {
        let encoding = guarded(|| self.0.encode_fast(text, true)).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The text of tokens, without special tokens.
    ///
    /// # Errors
    /// If a number is not a token.
    pub fn decode(&self, tokens: &[i64]) -> Result<String, Error> {
        let ids = tokens.iter().map(|&token| id(token)).collect::<Result<Vec<_>, _>>()?;
        guarded(|| self.0.decode(&ids, true)).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// Decodes tokens one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream(self.0.decode_stream(true))
    }
}

type DecodeStream<'a> = tokenizers::tokenizer::DecodeStream<
    'a,
    tokenizers::ModelWrapper,
    tokenizers::NormalizerWrapper,
    tokenizers::PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// Text that grows token by token, always in complete characters.
pub struct TextStream<'a>(DecodeStream<'a>);

impl TextStream<'_> {
    /// The text that a token adds: empty while a character is incomplete.
    ///
    /// # Errors
    /// If the number is not a token.
    pub fn push(&mut self, token: i64) -> Result<String, Error> {
        let id = id(token)?;
        let text = guarded(|| self.0.step(id)).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(text.unwrap_or_default())
    }
}

/// Runs `act`; a panic of the tokenizers crate becomes an error, as for any file that it does not understand.
fn guarded<T>(act: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // State left incomplete by a panic may be read again, but only the tokenizer's own text depends on it.
    std::panic::catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err("it makes the tokenizer library panic, which means a file with contradictions".into()))
}

fn id(token: i64) -> Result<u32, Error> {
    u32::try_from(token).map_err(|_| Error::Tokenizer(format!("{token} is no token")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level tokenizer whose tokens are single bytes, with one end token.
    fn bytes() -> Tokenizer {
        // As byte-level tokenizers spell bytes: printable ones as themselves, the others from U+0100 on.
        let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
        let mut others = 256..;
        let vocabulary: serde_json::Map<_, _> = (0..256u32)
            .map(|b| {
                let spelling = if printable(b) { b } else { others.next().unwrap() };
                (char::from_u32(spelling).unwrap().to_string(), b.into())
            })
            .collect();
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 256, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        Tokenizer::beside(&folder.path().join("model.onnx")).unwrap()
    }

    #[test]
    fn a_stream_gives_whole_characters() {
        let (tokenizer, text) = (bytes(), "aé 漢字🦀!\n");
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens, text.bytes().map(i64::from).collect::<Vec<_>>());
        let mut stream = tokenizer.stream();
        let parts: Vec<String> = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
        let whole: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        assert_eq!(whole, ["a", "é", " ", "漢", "字", "🦀", "!", "\n"]);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    }

    #[test]
    fn marks_are_no_text_and_half_a_character_is_never_shown() {
        let tokenizer = bytes();
        let mut stream = tokenizer.stream();
        let shown: String = [0x41, 256, 0xf0, 0x9f].into_iter().map(|token| stream.push(token).unwrap()).collect();
        assert_eq!(shown, "A");
        assert!(stream.push(-1).is_err());
    }

    #[test]
    fn files_that_are_missing_or_malformed_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let error = |path: &Path| Tokenizer::open(path).err().unwrap().to_string();
        assert_eq!(error(&path), format!("there is no {}", path.display()));
        std::fs::write(&path, "{}").unwrap();
        assert!(error(&path).starts_with(&format!("{} is malformed: ", path.display())));
        assert_eq!(error(folder.path()), error(&path));
        assert_eq!(error(Path::new("/dev/null")), "cannot read /dev/null");
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert_eq!(error(&circle), format!("cannot read {}", circle.display()));
    }
}
