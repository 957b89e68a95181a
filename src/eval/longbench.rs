//! Questions in LongBench's format (Bai et al. 2024): one JSON object per line.
//!
//! LongBench publishes the prompt templates of its data sets as `dataset2prompt.json`, and the maximum answer lengths
//! as `dataset2maxlen.json`.

use std::collections::HashMap;

use serde::Deserialize;

use super::metrics::Metric;

/// A question about a text, and its right answers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Question {
    /// The question, if it is not part of the template.
    #[serde(default)]
    pub input: String,
    /// The text.
    pub context: String,
    /// Each of them is a correct answer.
    pub answers: Vec<String>,
    /// The classes, for a classification.
    #[serde(default)]
    pub all_classes: Option<Vec<String>>,
    /// The data set, which determines template and metric.
    #[serde(default)]
    pub dataset: String,
    /// Its line in the file, from 1.
    #[serde(skip)]
    pub line: usize,
}

/// A line that is not a usable question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuestionError {
    /// Not JSON, or a field is missing.
    #[error("line {line}: {problem}; LongBench's fields are input, context, answers, all_classes, dataset, length")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Scored by Chinese words.
    #[error("line {line}: the data set {dataset} is scored by Chinese words, which are not told apart here")]
    Chinese {
        /// Counted from 1.
        line: usize,
        /// Its name.
        dataset: String,
    },
    /// Scored by classes that are not given.
    #[error("line {line}: the data set {dataset} is a classification and needs all_classes")]
    NoClasses {
        /// Counted from 1.
        line: usize,
        /// Its name.
        dataset: String,
    },
}

/// Data sets for which only the first line of an answer counts.
const FIRST_LINE: [&str; 4] = ["trec", "triviaqa", "samsum", "lsht"];

impl Question {
    /// The questions in the text of a file; empty lines are skipped.
    ///
    /// # Errors
    /// A line is not a question, or cannot be scored.
    pub fn read(text: &str) -> Result<Vec<Self>, QuestionError> {
        // Some editors begin a file with a mark.
        let lines = text
            .strip_prefix('\u{feff}')
            .unwrap_or(text)
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        lines.map(|(number, line)| Self::of_line(number + 1, line)).collect()
    }

    fn of_line(line: usize, text: &str) -> Result<Self, QuestionError> {
        let question: Self =
            serde_json::from_str(text).map_err(|e| QuestionError::Malformed { line, problem: e.to_string() })?;
        let dataset = question.dataset.clone();
        if question.answers.is_empty() {
            return Err(QuestionError::Malformed { line, problem: "answers is empty".into() });
        }
        match Metric::of(&dataset) {
            None => Err(QuestionError::Chinese { line, dataset }),
            Some(Metric::Classification) if question.classes().is_empty() => {
                Err(QuestionError::NoClasses { line, dataset })
            }
            // Of the answers only their numbers count.
            Some(Metric::Number) if question.answers.iter().any(|a| !a.contains(|c: char| c.is_ascii_digit())) => {
                let problem = format!("an answer of {dataset} has no number");
                Err(QuestionError::Malformed { line, problem })
            }
            Some(_) => Ok(Self { line, ..question }),
        }
    }

    fn classes(&self) -> &[String] {
        self.all_classes.as_deref().unwrap_or_default()
    }

    /// The data set's name without LongBench-E's suffix.
    fn base(&self) -> &str {
        self.dataset.strip_suffix("_e").unwrap_or(&self.dataset)
    }

    /// Score of `prediction`, from 0 to 1: the best over all correct answers.
    pub fn score(&self, prediction: &str) -> f64 {
        let Some(metric) = Metric::of(&self.dataset) else { return 0.0 };
        let prediction = match FIRST_LINE.contains(&self.base()) {
            true => prediction.trim_start_matches('\n').split('\n').next().unwrap_or_default(),
            false => prediction,
        };
        let scores = self.answers.iter().map(|answer| metric.score(prediction, answer, self.classes()));
        scores.fold(0.0, f64::max)
    }
}

/// How questions become prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wording {
    /// By data set, with `{context}` and `{input}`.
    pub prompts: HashMap<String, String>,
    /// By data set: most tokens of an answer.
    pub lengths: HashMap<String, usize>,
    /// Chat template for models made for conversations, with `{prompt}`.
    pub template: String,
}

impl Wording {
    /// For data sets that `prompts` lacks.
    const PROMPT: &'static str = "{context}\n\nQuestion: {input}\nAnswer:";
    /// For data sets that `lengths` lacks.
    const LENGTH: usize = 64;
    /// Few-shot and completion data sets, for which the chat template is not used.
    const PLAIN: [&'static str; 6] = ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"];

    /// The prompt for a question, with `context` as its text.
    pub fn prompt(&self, question: &Question, context: &str) -> String {
        let wording = self.prompts.get(question.base()).map_or(Self::PROMPT, String::as_str);
        // In one pass, because the text may contain braces.
        let mut prompt = String::new();
        let mut rest = wording;
        while let Some(start) = rest.find('{') {
            prompt += &rest[..start];
            rest = &rest[start..];
            let fields = [("{context}", context), ("{input}", question.input.as_str())];
            let (name, value) = fields.into_iter().find(|(name, _)| rest.starts_with(name)).unwrap_or(("{", "{"));
            prompt += value;
            rest = &rest[name.len()..];
        }
        prompt += rest;
        match Self::PLAIN.contains(&question.base()) {
            true => prompt,
            false => self.template.replacen("{prompt}", &prompt, 1),
        }
    }

    /// Most tokens of the answer to a question.
    pub fn length(&self, question: &Question) -> usize {
        self.lengths.get(question.base()).copied().unwrap_or(Self::LENGTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wording(prompt: &str, template: &str) -> Wording {
        let prompts = HashMap::from([("qasper".to_string(), prompt.to_string())]);
        Wording { prompts, lengths: HashMap::new(), template: template.into() }
    }

    #[test]
    fn lines_are_read() {
        let line = r#"{"input": "Who?", "context": "{input} a", "answers": ["X", "a Y"], "all_classes": null,
            "dataset": "qasper_e", "length": 3, "language": "en", "_id": "1"}"#;
        let text = format!("{}\n\n", line.replace('\n', " "));
        let [question] = &Question::read(&text).unwrap()[..] else { panic!("one line") };
        assert_eq!(question.line, 1);
        assert_eq!([question.score("the y"), question.score("nobody")], [1.0, 0.0]);
        let made = wording("T: {context} Q: {input} {x", "<{prompt}>").prompt(question, &question.context);
        assert_eq!(made, "<T: {input} a Q: Who? {x>");
    }

    #[test]
    fn what_cannot_be_scored_is_refused_with_its_line() {
        let message = |dataset: &str, answers: &str| {
            let line = format!(r#"{{"context": "", "answers": {answers}, "dataset": "{dataset}"}}"#);
            Question::read(&format!("\n{line}")).unwrap_err().to_string()
        };
        assert!(message("vcsum", r#"["a"]"#).starts_with("line 2: the data set vcsum is scored by Chinese words"));
        assert!(message("trec", r#"["a"]"#).contains("needs all_classes"));
        assert!(message("qasper", "[]").contains("answers is empty"));
        assert!(message("passage_count", r#"["x"]"#).contains("an answer of passage_count has no number"));
        assert_eq!(Question::read("\u{feff}").unwrap(), []);
        assert!(Question::read("{}").unwrap_err().to_string().starts_with("line 1: missing field"));
    }

    #[test]
    fn only_the_first_line_counts_where_examples_go_on() {
        let question = Question {
            input: String::new(),
            context: String::new(),
            answers: vec!["Paris".into()],
            all_classes: None,
            dataset: "triviaqa".into(),
            line: 1,
        };
        assert_eq!(question.score("\nParis\nPassage: more"), 1.0);
        assert_eq!(wording("", "<{prompt}>").prompt(&question, "c"), "c\n\nQuestion: \nAnswer:");
    }
}
