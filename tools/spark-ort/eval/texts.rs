//! The texts that models read.

use std::path::Path;

use anyhow::{Context, Result, bail};
use spark_ort::eval::{Feeding, Passage, Task, passages};
use spark_ort::runtime::Tokenizer;

use super::args::{Args, once};
use crate::prompt::text_file;

/// Passages of one length.
pub struct Text {
    /// Tokens of each prompt.
    pub context: usize,
    pub passages: Vec<Passage>,
    /// Their task, if they are not plain text.
    pub task: Option<Task>,
    pub feeding: Feeding,
}

impl Text {
    /// A title for people.
    pub fn title(&self) -> String {
        let task = self.task.map_or(String::new(), |task| format!(" ({task})"));
        format!("prompts of {} tokens{task}", self.context)
    }
}

/// Spare rows of a shared buffer, if their number is not given.
const SPARE_ROWS: usize = 512;

/// Rows of a buffer for `needed` tokens and spare ones, in a model whose context has at most `limit` tokens.
pub fn roomy(needed: usize, limit: Option<usize>) -> usize {
    (needed + SPARE_ROWS).min(limit.unwrap_or(usize::MAX))
}

/// The tokenizer beside `model`, or the one that is named.
pub fn tokenizer(named: Option<&Path>, model: &Path) -> Result<Tokenizer> {
    let path = named.map_or_else(|| model.with_file_name("tokenizer.json"), Path::to_path_buf);
    Tokenizer::open(&path).context("a text needs a tokenizer; --tokenizer names one")
}

/// The passages that a command line selects; the model's context has at most `limit` tokens.
pub fn read(args: &Args, tokenizer: &Tokenizer, limit: Option<usize>) -> Result<Vec<Text>> {
    let Some(file) = &args.text else { return Ok(Vec::new()) };
    let (prefix, tokens) = encoded(tokenizer, file)?;
    let template = args.template();
    let mut texts = Vec::new();
    for context in once(args.contexts.iter().copied()) {
        texts.push(of_length(args, (file, &tokens), &prefix, context, limit)?);
        for task in args.generated() {
            let sizes = [context, args.decode, args.samples];
            let template = template.split_once("{prompt}").expect("checked with the options");
            let passages = task.passages(tokenizer, &tokens, &prefix, template, sizes)?;
            if passages.is_empty() {
                bail!("a prompt of {context} tokens and an answer of {} are too short for {task}", args.decode);
            }
            texts.push(Text { context, passages, task: Some(task), feeding: texts[texts.len() - 1].feeding });
        }
    }
    Ok(texts)
}

/// The tokens before any text, and those of the text in `file`.
pub fn encoded(tokenizer: &Tokenizer, file: &Path) -> Result<(Vec<i64>, Vec<i64>)> {
    let prefix = tokenizer.encode("")?;
    let tokens = tokenizer.encode(&text_file(file)?)?;
    let tokens = tokens.strip_prefix(&prefix[..]).unwrap_or(&tokens).to_vec();
    Ok((prefix, tokens))
}

fn of_length(
    args: &Args,
    (file, tokens): (&Path, &[i64]),
    prefix: &[i64],
    context: usize,
    limit: Option<usize>,
) -> Result<Text> {
    let needed = context + args.decode;
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        bail!("--contexts {context} and --decode {} need {needed} tokens, the model's context is {limit}", args.decode);
    }
    if let Some(capacity) = args.capacity.filter(|capacity| *capacity < needed) {
        bail!("--capacity {capacity} has no room for --contexts {context} and --decode {}", args.decode);
    }
    let passages = passages(tokens, prefix, context, args.decode, args.passages);
    if passages.is_empty() {
        let file = file.display();
        bail!("{file} has {} tokens, too few for --contexts {context} and --decode {}", tokens.len(), args.decode);
    }
    let capacity = args.shared_buffer.then(|| args.capacity.unwrap_or_else(|| roomy(needed, limit)));
    Ok(Text { context, passages, task: None, feeding: Feeding { capacity, chunk: args.chunk } })
}
