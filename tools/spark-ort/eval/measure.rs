//! Measures models on the same passages.

use anyhow::{Context, Result};
use spark_ort::eval::{LogitStore, Passage, Timing, TokenScore};
use spark_ort::runtime::{self, Model, Options};

use super::candidate::Candidate;
use super::described::Described;
use super::progress::{Progress, work};
use super::questions::Questions;
use super::report::{Report, Row};
use super::texts::Text;
use crate::interrupt::Interrupt;

/// The input of the models.
pub struct Read {
    pub texts: Vec<Text>,
    pub questions: Vec<Questions>,
}

/// The original's predictions, and what is compared with them.
pub struct Measurement<'a> {
    pub texts: &'a [Text],
    questions: &'a [Questions],
    /// The original's logits, passage by passage.
    pub originals: LogitStore,
    pub threads: Option<usize>,
    pub interrupt: &'a Interrupt,
    pub progress: Progress,
}

/// Why a passage ended early.
pub enum Stop {
    Interrupted,
    Failed(anyhow::Error),
}

impl From<runtime::Error> for Stop {
    fn from(error: runtime::Error) -> Self {
        match error {
            runtime::Error::Cancelled => Stop::Interrupted,
            error => Stop::Failed(error.into()),
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Stop::Failed(anyhow::Error::new(error).context("the temporary file of logits"))
    }
}

/// Scores a prediction against the original's with this index.
pub fn compared(originals: &LogitStore, index: usize, logits: &[f32], token: i64) -> Result<TokenScore, Stop> {
    let original = originals.row(index)?;
    if original.len() != logits.len() {
        let [a, b] = [original.len(), logits.len()];
        return Err(Stop::Failed(anyhow::anyhow!("its vocabulary has {b} tokens, the original's {a}")));
    }
    Ok(TokenScore::new(&original, logits, token as usize))
}

impl<'a> Measurement<'a> {
    /// For this many models, including the original, and this many simulated rivals.
    pub fn new(
        read: &'a Read,
        models: usize,
        simulated: usize,
        threads: Option<usize>,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        let each = |text: &Text| text.passages.iter().map(|p| work(p.prompt.len(), p.decoded())).sum::<usize>();
        let decoded = |text: &Text| text.passages.iter().map(|p| work(0, p.decoded())).sum::<usize>();
        let Read { texts, questions } = read;
        let asked = questions.iter().map(Questions::work).sum::<usize>();
        let total = (texts.iter().map(each).sum::<usize>() + asked) * models;
        let total = total + texts.iter().map(decoded).sum::<usize>() * simulated;
        let originals = LogitStore::new().context("cannot create a temporary file")?;
        Ok(Self { texts, questions, originals, threads, interrupt, progress: Progress::new(total) })
    }

    /// Hides the progress bar while `work` shows its own.
    pub fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        self.progress.pause(work)
    }

    /// Stores the original's predictions, with which the others are compared.
    pub fn original(&mut self, original: &Candidate, report: &mut Report) -> Result<()> {
        self.measure(original, report, |originals, _, logits, token| {
            originals.push(logits)?;
            Ok(TokenScore::new(logits, logits, token))
        })
    }

    /// Compares a model with the original, as far as the original was measured.
    pub fn candidate(&mut self, candidate: &Candidate, report: &mut Report) -> Result<()> {
        self.measure(candidate, report, |originals, index, logits, token| {
            compared(originals, index, logits, token as i64)
        })
    }

    /// Runs a model over all passages. `score` gets the original's predictions and, for each prediction, its index,
    /// the logits and the token that follows.
    fn measure(
        &mut self,
        candidate: &Candidate,
        report: &mut Report,
        score: impl Fn(&mut LogitStore, usize, &[f32], usize) -> Result<TokenScore, Stop>,
    ) -> Result<()> {
        if self.interrupt.is_set() {
            return Ok(());
        }
        let options = Options { threads: self.threads };
        let mut model = Model::open(&candidate.file, &candidate.inspection.interface, &options)?;
        self.interrupt.watch(model.canceller());
        let mut index = 0;
        for text in self.texts {
            self.progress.say(format!("{}: {}", candidate.name, text.title()));
            let (mut scores, mut timing) = (Vec::new(), Timing::default());
            let mut interrupted = false;
            for passage in &text.passages {
                match self.passage(&mut model, text, passage, &mut index, &score) {
                    Ok((found, took)) => {
                        scores.push(found);
                        timing = timing.plus(took);
                    }
                    Err(Stop::Interrupted) => {
                        interrupted = true;
                        break;
                    }
                    Err(Stop::Failed(error)) => return Err(error.context(candidate.name.clone())),
                }
            }
            report.rows.extend(Row::new(Described::candidate(candidate), text, scores, timing));
            if interrupted {
                return Ok(());
            }
        }
        self.ask(candidate, &mut model, report)
    }

    /// Lets a model answer all questions.
    fn ask(&mut self, candidate: &Candidate, model: &mut Model, report: &mut Report) -> Result<()> {
        for questions in self.questions {
            self.progress.say(format!("{}: {}", candidate.name, questions.title()));
            let described = Described::candidate(candidate);
            let asked = questions.ask(model, described, &mut self.progress);
            let (answers, interrupted) = asked.with_context(|| candidate.name.clone())?;
            report.answers.extend(answers);
            if interrupted {
                break;
            }
        }
        Ok(())
    }

    fn passage(
        &mut self,
        model: &mut Model,
        text: &Text,
        passage: &Passage,
        index: &mut usize,
        score: &impl Fn(&mut LogitStore, usize, &[f32], usize) -> Result<TokenScore, Stop>,
    ) -> Result<(Vec<TokenScore>, Timing), Stop> {
        let (mut scores, mut reported) = (Vec::new(), false);
        let (originals, progress) = (&mut self.originals, &mut self.progress);
        let timing = text.feeding.feed(model, passage, &mut |logits, token| {
            if !std::mem::replace(&mut reported, true) {
                progress.add(work(passage.prompt.len(), 0));
            }
            scores.push(score(originals, *index, logits, token as usize)?);
            *index += 1;
            progress.add(work(0, 1));
            Ok::<(), Stop>(())
        })?;
        Ok((scores, timing))
    }
}
