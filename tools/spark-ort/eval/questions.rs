//! Questions from a file, answered by every model.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use spark_ort::eval::{Estimate, Feeding, Question, Timing, Wording, mean_of};
use spark_ort::runtime::{self, FolderSettings, Model, Tokenizer};

use super::args::Args;
use super::described::Described;
use super::progress::{Progress, work};
use super::texts::roomy;
use crate::prompt::text_file;

/// A question as tokens.
struct Asked {
    question: Question,
    prompt: Vec<i64>,
    /// Most tokens of the answer.
    length: usize,
    ends: Vec<i64>,
    feeding: Feeding,
}

/// The questions of a file that belong to one data set.
pub struct Questions {
    file: PathBuf,
    dataset: String,
    asked: Vec<Asked>,
    tokenizer: Rc<Tokenizer>,
}

/// How well a model answers the questions of a data set.
#[derive(Serialize)]
pub struct Answers {
    #[serde(flatten)]
    pub described: Described,
    #[serde(serialize_with = "spark_ort::json_path::path")]
    pub file: PathBuf,
    pub dataset: String,
    pub questions: usize,
    /// Mean score of LongBench's metric, from 0 to 1.
    pub score: Estimate,
    pub timing: Timing,
    /// The answers of the model, in the order of the file.
    pub predictions: Vec<String>,
}

/// A table of data sets, such as LongBench's dataset2prompt.json; empty without a file.
fn table<T: serde::de::DeserializeOwned>(path: Option<&Path>) -> Result<HashMap<String, T>> {
    let Some(path) = path else { return Ok(HashMap::new()) };
    serde_json::from_str(&text_file(path)?)
        .with_context(|| format!("{} is no table of data sets, such as LongBench publishes", path.display()))
}

/// The questions that a command line selects, for a model with `settings`.
pub fn read(args: &Args, tokenizer: Tokenizer, settings: &FolderSettings) -> Result<Vec<Questions>> {
    let files: Vec<&Path> = args.question_files().collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let tokenizer = Rc::new(tokenizer);
    let wording = Wording {
        prompts: table(args.task_prompts.as_deref())?,
        lengths: table(args.task_lengths.as_deref())?,
        template: args.template(),
    };
    if let Some((dataset, _)) = wording.prompts.iter().find(|(_, prompt)| !prompt.contains("{context}")) {
        bail!("--task-prompts: the wording of {dataset} has no {{context}} in it");
    }
    if let Some((dataset, _)) = wording.lengths.iter().find(|(_, length)| **length == 0) {
        bail!("--task-lengths: {dataset} has 0 tokens for an answer");
    }
    let most = args.contexts.iter().copied().max().unwrap_or(0);
    let mut found: Vec<Questions> = Vec::new();
    for file in files {
        let questions = Question::read(&text_file(file)?).with_context(|| file.display().to_string())?;
        if questions.is_empty() {
            bail!("{} has no questions", file.display());
        }
        for question in questions {
            let place = found.iter().position(|q| q.file == file && q.dataset == question.dataset);
            let place = place.unwrap_or_else(|| {
                let (dataset, tokenizer) = (question.dataset.clone(), tokenizer.clone());
                found.push(Questions { file: file.into(), dataset, asked: Vec::new(), tokenizer });
                found.len() - 1
            });
            if found[place].asked.len() < args.samples {
                let line = question.line;
                let asked = asked(args, &tokenizer, settings, &wording, most, question);
                found[place].asked.push(asked.with_context(|| format!("{}: line {line}", file.display()))?);
            }
        }
    }
    Ok(found)
}

fn asked(
    args: &Args,
    tokenizer: &Tokenizer,
    settings: &FolderSettings,
    wording: &Wording,
    most: usize,
    question: Question,
) -> Result<Asked> {
    let length = wording.length(&question);
    let room = settings.context_length.map_or(most, |limit| most.min(limit.saturating_sub(length)));
    let mut prompt = tokenizer.encode(&wording.prompt(&question, &question.context))?;
    if prompt.len() > room {
        // Cut in the middle, as in LongBench: the instructions are at both ends.
        let tokens = tokenizer.encode(&question.context)?;
        let over = prompt.len() - room;
        let half = tokens.len().saturating_sub(over) / 2;
        let context = tokenizer.decode(&tokens[..half])? + &tokenizer.decode(&tokens[tokens.len() - half..])?;
        prompt = tokenizer.encode(&wording.prompt(&question, &context))?;
    }
    // Text that was cut may encode to slightly more or fewer tokens.
    if prompt.len() > room + room / 16 {
        let (dataset, tokens) = (&question.dataset, prompt.len());
        bail!("a question of {dataset} has {tokens} tokens without its text, and --contexts allows {room}");
    }
    let mut ends = settings.end_of_sequence.clone();
    if question.dataset.starts_with("samsum") {
        // Models would continue with the next dialogue.
        ends.extend(tokenizer.encode("\n")?.last());
    }
    let needed = prompt.len() + length;
    if let Some(capacity) = args.capacity.filter(|capacity| *capacity < needed) {
        bail!("--capacity {capacity} has no room for {} tokens and an answer of {length}", prompt.len());
    }
    let capacity = args.shared_buffer.then(|| args.capacity.unwrap_or_else(|| roomy(needed, settings.context_length)));
    Ok(Asked { question, prompt, length, ends, feeding: Feeding { capacity, chunk: args.chunk } })
}

impl Questions {
    /// Most work of answering them, in prompt tokens.
    pub fn work(&self) -> usize {
        self.asked.iter().map(|asked| work(asked.prompt.len(), asked.length)).sum()
    }

    /// A title for people.
    pub fn title(&self) -> String {
        format!("{} questions of {}", self.asked.len(), self.name())
    }

    fn name(&self) -> String {
        match self.dataset.is_empty() {
            true => self.file.display().to_string(),
            // A line of a table.
            false => self.dataset.replace(char::is_control, " "),
        }
    }

    /// Lets a model answer them. Fewer answers if it is interrupted, `None` if before the first one.
    pub fn ask(
        &self,
        model: &mut Model,
        described: Described,
        progress: &mut Progress,
    ) -> Result<(Option<Answers>, bool)> {
        let (mut scores, mut predictions, mut timing) = (Vec::new(), Vec::new(), Timing::default());
        let mut interrupted = false;
        for asked in &self.asked {
            let (tokens, took) = match asked.feeding.answer(model, &asked.prompt, &asked.ends, asked.length) {
                Err(runtime::Error::Cancelled) => {
                    interrupted = true;
                    break;
                }
                answer => answer?,
            };
            let prediction = self.tokenizer.decode(&tokens)?;
            scores.push(asked.question.score(&prediction));
            predictions.push(prediction);
            timing = timing.plus(took);
            progress.add(work(asked.prompt.len(), asked.length));
        }
        let answers = mean_of(&scores).map(|score| Answers {
            described,
            file: self.file.clone(),
            dataset: self.name(),
            questions: scores.len(),
            score,
            timing,
            predictions,
        });
        Ok((answers, interrupted))
    }
}
