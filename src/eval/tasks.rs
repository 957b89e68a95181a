//! Generated tasks whose answers are in the prompt, in the manner of RULER (Hsieh et al. 2024).
//!
//! A task is a [`Passage`] that ends with its answer. It counts as answered if the model ranks every token of the
//! answer first after the tokens before it, that is if greedy decoding produces the answer.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::passage::Passage;
use crate::runtime::{Error, Tokenizer};

/// A kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Task {
    /// A few secret numbers in running text, one of which is asked for; its depth goes evenly over the prompts.
    Needle,
    /// The same, all numbers asked for.
    MultiNeedle,
    /// Nothing but names and their numbers, one of which is asked for.
    KeyValue,
    /// Variables that are set to one another, the value of the last one asked for.
    Variables,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Task::Needle => "needle",
            Task::MultiNeedle => "multi-needle",
            Task::KeyValue => "key-value",
            Task::Variables => "variables",
        })
    }
}

const NAMES: [&str; 20] = [
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "ivory", "jade", "karst", "lotus", "maple",
    "north", "olive", "pearl", "quartz", "raven", "slate", "tulip",
];

/// Secret numbers in a prompt of running text.
const NEEDLES: usize = 3;

/// Variables in a chain.
const CHAIN: usize = 3;

/// The parts of a prompt as text.
struct Prompt {
    /// Lines within the text, with their depth from 0 (the beginning) to 1.
    lines: Vec<(f64, String)>,
    question: String,
    /// How the answer begins, up to what is asked for.
    lead: String,
    answer: String,
}

impl Task {
    /// `count` prompts of at most `context` tokens, with answers of at most `room`. The text between the lines is from
    /// `text`, and `prefix` comes first. `template` is what a model made for conversations gets before a request and
    /// between it and the answer. The prompts are the same in every run. There are fewer if an answer is longer than
    /// `room`, or the lines longer than `context`.
    ///
    /// # Errors
    /// The tokenizer has no tokens for a line.
    pub fn passages(
        self,
        tokenizer: &Tokenizer,
        text: &[i64],
        prefix: &[i64],
        (before, after): (&str, &str),
        [context, room, count]: [usize; 3],
    ) -> Result<Vec<Passage>, Error> {
        let mut random = StdRng::seed_from_u64(self as u64);
        let encode = |words: &str| -> Result<Vec<i64>, Error> {
            let tokens = tokenizer.encode(words)?;
            Ok(tokens.strip_prefix(prefix).unwrap_or(&tokens).to_vec())
        };
        let prefix = &[prefix.to_vec(), encode(before)?].concat()[..];
        let mut passages = Vec::new();
        for i in 0..count {
            let depth = (i as f64 + 0.5) / count as f64;
            let each = encode(&pair(NAMES[0], "12345"))?.len();
            let prompt = self.prompt(&mut random, depth, (context / 2) / each.max(1));
            let lines = prompt.lines.iter().map(|(depth, line)| Ok((*depth, encode(line)?)));
            let mut lines = lines.collect::<Result<Vec<_>, Error>>()?;
            lines.sort_by(|a, b| a.0.total_cmp(&b.0));
            // A new turn needs no space or line to begin with.
            let lead = if after.is_empty() { &prompt.lead } else { prompt.lead.trim_start() };
            let question = format!("{}{after}{lead}", prompt.question);
            let whole = encode(&format!("{question}{}", prompt.answer))?;
            let question = encode(&question)?;
            // A tokenizer may merge the start of the answer with the question; the answer is then tokenized by itself.
            let answer = match whole.strip_prefix(&question[..]) {
                Some(answer) => answer.to_vec(),
                None => encode(&prompt.answer)?,
            };
            let used = prefix.len() + question.len() + lines.iter().map(|(_, line)| line.len()).sum::<usize>();
            let filler = context.saturating_sub(used).min(text.len());
            if used > context || answer.is_empty() || answer.len() > room {
                continue;
            }
            let start = random.random_range(0..=text.len() - filler);
            let mut tokens = prefix.to_vec();
            tokens.extend(mixed(&text[start..start + filler], &lines));
            tokens.extend(question);
            // The last token is fed by itself, so that the first token of the answer also depends on the cache.
            let last = tokens.split_off(tokens.len() - 1);
            passages.push(Passage { prompt: tokens, next: [last, answer].concat() });
        }
        Ok(passages)
    }

    fn prompt(self, random: &mut StdRng, depth: f64, pairs: usize) -> Prompt {
        let number = |random: &mut StdRng| random.random_range(10_000..100_000).to_string();
        let named = |random: &mut StdRng, count: usize| -> Vec<(String, String)> {
            NAMES
                .sample(random, count)
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
                .into_iter()
                .map(|name| (name, number(random)))
                .collect()
        };
        match self {
            Task::Needle | Task::MultiNeedle => {
                let secrets = named(random, NEEDLES);
                let mut lines: Vec<_> =
                    secrets.iter().map(|(name, number)| (random.random::<f64>(), secret(name, number))).collect();
                let (asked, number) = &secrets[0];
                lines[0].0 = depth;
                if self == Task::Needle {
                    let question = format!("\nWhat is the secret number of {asked}?");
                    return Prompt { lines, question, lead: " It is".into(), answer: format!(" {number}") };
                }
                let [names, numbers] = [0, 1].map(|which| {
                    let parts: Vec<&String> = secrets.iter().map(|s| if which == 0 { &s.0 } else { &s.1 }).collect();
                    format!("{}, {} and {}", parts[0], parts[1], parts[2])
                });
                let question = format!("\nWhat are the secret numbers of {names}?");
                Prompt { lines, question, lead: " They are".into(), answer: format!(" {numbers}") }
            }
            Task::KeyValue => {
                let keys: Vec<(String, String)> = (0..pairs.max(2))
                    .map(|i| (format!("{}-{i}", NAMES.choose(random).expect("not empty")), number(random)))
                    .collect();
                let count = keys.len();
                let (asked, value) = keys[((depth * count as f64) as usize).min(count - 1)].clone();
                let lines =
                    keys.iter().enumerate().map(|(i, (key, value))| (i as f64 / count as f64, pair(key, value)));
                let question = format!("\nWhat is the number of {asked}?");
                Prompt { lines: lines.collect(), question, lead: format!("\n{asked}:"), answer: format!(" {value}") }
            }
            Task::Variables => {
                let value = number(random);
                let names = named(random, CHAIN);
                let mut lines = vec![(depth / CHAIN as f64, format!("\nVAR {} = {value}\n", names[0].0))];
                for (i, two) in names.windows(2).enumerate() {
                    let place = (depth + (i + 1) as f64) / CHAIN as f64;
                    lines.push((place, format!("\nVAR {} = VAR {} = {value}\n", two[1].0, two[0].0)));
                }
                let last = &names[CHAIN - 1].0;
                let question = format!("\nWhat is the value of VAR {last}?");
                Prompt { lines, question, lead: format!("\nThe value of VAR {last} ="), answer: format!(" {value}") }
            }
        }
    }
}

fn secret(name: &str, number: &str) -> String {
    format!("\nThe secret number of {name} is {number}. Remember it.\n")
}

fn pair(key: &str, value: &str) -> String {
    format!("\n{key}: {value}")
}

/// The text with each line inserted at its depth.
fn mixed(text: &[i64], lines: &[(f64, Vec<i64>)]) -> Vec<i64> {
    let mut tokens = Vec::new();
    let mut read = 0;
    for (depth, line) in lines {
        let until = (depth * text.len() as f64) as usize;
        tokens.extend_from_slice(&text[read..until]);
        tokens.extend_from_slice(line);
        read = until;
    }
    tokens.extend_from_slice(&text[read..]);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lie_at_their_depths() {
        let text: Vec<i64> = (0..10).collect();
        let lines = [(0.0, vec![-1]), (0.5, vec![-2, -3]), (0.99, vec![-4])];
        assert_eq!(mixed(&text, &lines), [-1, 0, 1, 2, 3, 4, -2, -3, 5, 6, 7, 8, -4, 9]);
    }

    #[test]
    fn every_question_has_its_answer_in_a_line() {
        let mut random = StdRng::seed_from_u64(3);
        for task in [Task::Needle, Task::MultiNeedle, Task::KeyValue, Task::Variables] {
            let prompt = task.prompt(&mut random, 0.25, 8);
            let lines: String = prompt.lines.iter().map(|(_, line)| line.as_str()).collect();
            let numbers: Vec<&str> =
                prompt.answer.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()).collect();
            assert_eq!(numbers.len(), if task == Task::MultiNeedle { NEEDLES } else { 1 });
            assert!(numbers.iter().all(|number| lines.contains(number)), "{task}: {lines}");
            assert!(prompt.lines.iter().all(|(depth, _)| (0.0..=1.0).contains(depth)));
        }
    }
}
