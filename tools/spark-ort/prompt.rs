//! Converts the user's input to tokens, and tokens to shown text.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use spark_ort::files;
use spark_ort::runtime::{Error, TextStream, Tokenizer};

/// How tokens are written.
pub enum Spelling {
    /// As text.
    Text(Box<Tokenizer>),
    /// As numbers.
    Ids,
}

impl Spelling {
    /// Text, with the given tokenizer or else that of the first model with one beside it.
    pub fn text(tokenizer: Option<&Path>, models: &[&Path]) -> Result<Self> {
        let beside = |model: &&Path| model.with_file_name("tokenizer.json");
        let found = models.iter().map(beside).find(|path| !matches!(files::kind(path), Ok(None)));
        let path: PathBuf = tokenizer.map(PathBuf::from).or(found).unwrap_or_else(|| beside(&models[0]));
        match Tokenizer::open(&path) {
            Ok(tokenizer) => Ok(Self::Text(Box::new(tokenizer))),
            Err(missing @ Error::NoTokenizer { .. }) => {
                bail!("{missing}: name a tokenizer.json with --tokenizer, or give token ids with --ids")
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The tokens of a prompt.
    pub fn encode(&self, prompt: &str) -> Result<Vec<i64>> {
        if prompt.trim_matches('\n').is_empty() {
            bail!("the prompt is empty");
        }
        let tokens = match self {
            Self::Text(tokenizer) => tokenizer.encode(prompt)?,
            Self::Ids => {
                let id = |word: &str| word.parse::<i64>().map_err(|_| anyhow!("'{word}' is no token id"));
                prompt.split_whitespace().map(id).collect::<Result<_>>()?
            }
        };
        match tokens.is_empty() {
            true => bail!("the prompt has no tokens"),
            false => Ok(tokens),
        }
    }

    /// A speller for tokens that arrive one by one.
    pub fn speller(&self) -> Speller<'_> {
        match self {
            Self::Text(tokenizer) => Speller::Text(tokenizer.stream()),
            Self::Ids => Speller::Ids { first: true },
        }
    }
}

/// Spells tokens that arrive one by one.
pub enum Speller<'a> {
    Text(TextStream<'a>),
    Ids { first: bool },
}

impl Speller<'_> {
    /// The text to show for a token.
    pub fn push(&mut self, token: i64) -> Result<String> {
        match self {
            Self::Text(stream) => Ok(stream.push(token)?),
            Self::Ids { first } => {
                let space = if std::mem::take(first) { "" } else { " " };
                Ok(format!("{space}{token}"))
            }
        }
    }
}

/// The text of a user's file, which may be a pipe.
pub fn text_file(path: &Path) -> Result<String> {
    let text = File::open(path).and_then(|file| files::read_all(file, files::MOST_TEXT)).and_then(files::text);
    text.with_context(|| format!("cannot read {}", path.display()))
}

/// The prompt of a command line: `text`, or the contents of `file` (`-` for stdin) without a newline at the end, which
/// editors add.
pub fn read(text: Option<&str>, file: Option<&Path>) -> Result<String> {
    let Some(file) = file else {
        return Ok(text.unwrap_or_default().into());
    };
    let mut content = match file.to_str() {
        Some("-") => files::read_all(std::io::stdin(), files::MOST_TEXT)
            .and_then(files::text)
            .context("cannot read the prompt from stdin")?,
        _ => text_file(file)?,
    };
    if content.ends_with('\n') {
        content.pop();
    }
    Ok(content)
}
