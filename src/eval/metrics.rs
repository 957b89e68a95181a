//! The metrics of LongBench (Bai et al. 2024), each comparing a prediction with one correct answer, from 0 to 1.
//!
//! Where LongBench's script uses a Python library, the same is computed here: ROUGE-L as in the package `rouge`, over
//! sets of words, and `fuzzywuzzy`'s ratio for code as the share of characters that need not be changed.

use std::collections::{HashMap, HashSet};

/// How an answer is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// F1 of words without articles and punctuation.
    F1,
    /// ROUGE-L.
    RougeL,
    /// 1 if only the right class is named; if several are named, the right one's share.
    Classification,
    /// Of the numbers in the prediction, the share equal to the first one in the answer.
    Number,
    /// Similarity of the first line that is code.
    CodeSimilarity,
}

impl Metric {
    /// The metric of a LongBench data set. `None`: it needs Chinese word segmentation, which is not supported.
    pub fn of(dataset: &str) -> Option<Self> {
        // LongBench-E adds this suffix to names of data sets.
        Some(match dataset.strip_suffix("_e").unwrap_or(dataset) {
            "multifieldqa_zh" | "dureader" | "vcsum" => return None,
            "gov_report" | "qmsum" | "multi_news" | "samsum" => Metric::RougeL,
            "trec" | "lsht" => Metric::Classification,
            "passage_count" | "passage_retrieval_en" | "passage_retrieval_zh" => Metric::Number,
            "lcc" | "repobench-p" => Metric::CodeSimilarity,
            _ => Metric::F1,
        })
    }

    /// The score of `prediction` if `answer` is correct; `classes` are those of a classification.
    pub fn score(self, prediction: &str, answer: &str, classes: &[String]) -> f64 {
        match self {
            Metric::F1 => f1(&normalised(prediction), &normalised(answer)),
            Metric::RougeL => rouge_l(prediction, answer),
            Metric::Classification => classification(prediction, answer, classes),
            Metric::Number => number(prediction, answer),
            Metric::CodeSimilarity => code_similarity(prediction, answer),
        }
    }
}

/// Lower-case words, without punctuation and articles.
fn normalised(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words = plain.split_whitespace().filter(|word| !["a", "an", "the"].contains(word));
    words.map(str::to_string).collect()
}

fn f1(prediction: &[String], answer: &[String]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    answer.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut common = 0;
    for word in prediction {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    match common {
        0 => 0.0,
        _ => 2.0 * common as f64 / (prediction.len() + answer.len()) as f64,
    }
}

/// The union of the longest common subsequences of all pairs of sentences, as a share of the words of each text.
fn rouge_l(prediction: &str, answer: &str) -> f64 {
    let [prediction, answer] = [prediction, answer].map(|text| {
        let sentences = text.split('.').filter(|sentence| !sentence.is_empty());
        sentences.map(|sentence| sentence.split_whitespace().collect()).collect::<Vec<Vec<&str>>>()
    });
    // The package `rouge` counts a sentence of only blanks as one empty word.
    let words = |sentences: &[Vec<&str>]| {
        let all: HashSet<&str> = sentences.iter().flatten().copied().collect();
        all.len() + usize::from(sentences.iter().any(Vec::is_empty))
    };
    let [predicted, wanted] = [words(&prediction), words(&answer)];
    if predicted == 0 || wanted == 0 {
        return 0.0;
    }
    let mut common: HashSet<&str> = HashSet::new();
    for (wanted, found) in answer.iter().flat_map(|a| prediction.iter().map(move |p| (a, p))) {
        common.extend(longest_common_subsequence(wanted, found));
    }
    let blank = [&prediction, &answer].iter().all(|sentences| sentences.iter().any(Vec::is_empty));
    let common = (common.len() + usize::from(blank)) as f64;
    let (recall, precision) = (common / wanted as f64, common / predicted as f64);
    2.0 * precision * recall / (precision + recall + 1e-8)
}

fn longest_common_subsequence<'t>(a: &[&'t str], b: &[&'t str]) -> Vec<&'t str> {
    let mut lengths = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            lengths[i + 1][j + 1] = if x == y { lengths[i][j] + 1 } else { lengths[i][j + 1].max(lengths[i + 1][j]) };
        }
    }
    let (mut i, mut j, mut found) = (a.len(), b.len(), Vec::new());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            found.push(a[i - 1]);
            (i, j) = (i - 1, j - 1);
        } else if lengths[i - 1][j] > lengths[i][j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    found
}

fn classification(prediction: &str, answer: &str, classes: &[String]) -> f64 {
    // A class whose name is part of the right one's does not count as another answer.
    let named = classes.iter().filter(|class| prediction.contains(class.as_str()));
    let named: Vec<&String> = named.filter(|class| *class == answer || !answer.contains(class.as_str())).collect();
    if named.iter().any(|class| *class == answer) { 1.0 / named.len() as f64 } else { 0.0 }
}

fn number(prediction: &str, answer: &str) -> f64 {
    let numbers = |text| str::split(text, |c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let Some(wanted) = numbers(answer).next() else { return 0.0 };
    let all = numbers(prediction).count();
    if all == 0 { 0.0 } else { numbers(prediction).filter(|n| *n == wanted).count() as f64 / all as f64 }
}

fn code_similarity(prediction: &str, answer: &str) -> f64 {
    let is_code = |line: &&str| !["`", "#", "//"].iter().any(|mark| line.contains(mark));
    let line = prediction.trim_start_matches('\n').split('\n').find(is_code).unwrap_or("");
    (100.0 * rapidfuzz::fuzz::ratio(line.chars(), answer.chars())).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, prediction: &str, answer: &str) -> f64 {
        (metric.score(prediction, answer, &[]) * 1e6).round() / 1e6
    }

    #[test]
    fn words_count_without_articles_and_punctuation() {
        assert_eq!(score(Metric::F1, "The answer: Paris, France.", "paris"), 0.5);
        assert_eq!(score(Metric::F1, "two two cats", "Two dogs two"), 0.666667);
        assert_eq!(score(Metric::F1, "", "x"), 0.0);
    }

    /// Expected values are from the Python package rouge 1.0.1.
    #[test]
    fn rouge_is_that_of_the_package() {
        for (prediction, answer, expected) in ROUGE {
            assert_eq!(score(Metric::RougeL, prediction, answer), expected, "{prediction} | {answer}");
        }
    }

    const ROUGE: [(&str, &str, f64); 11] = [
        ("", "a", 0.0),
        ("the cat sat on the mat", "the cat sat. on a mat", 0.909091),
        ("a dog ran. the dog ran fast.", "the fast dog ran. near the mat", 0.545455),
        ("cat cat cat", "cat", 1.0),
        ("near . the mat", "the mat . near", 1.0),
        ("dog", "cat", 0.0),
        ("a. .b", "a. .c", 0.666667),
        ("cat on cat the a. ran dog sat mat sat", "sat fast ran ran ran", 0.181818),
        ("sat ran fast ran on. near mat cat a the fast .", "fast. ran mat a mat a. sat sat dog", 0.666667),
        ("sat cat. sat sat mat cat mat on a on. fast mat a sat fast cat. the", "mat. on the ran sat.", 0.5),
        ("fast near the ran cat.", "near a a.", 0.285714),
    ];

    #[test]
    fn classes_within_the_right_one_do_not_count() {
        let classes = ["City", "Other location", "location", "Food"].map(String::from);
        let score = |prediction| Metric::Classification.score(prediction, "Other location", &classes);
        assert_eq!([score("Other location"), score("Other location or Food"), score("Food")], [1.0, 0.5, 0.0]);
    }

    #[test]
    fn numbers_are_shares() {
        assert_eq!(score(Metric::Number, "Paragraph 12, or 13", "Paragraph 12"), 0.5);
        assert_eq!([score(Metric::Number, "none", "3"), score(Metric::Number, "30", "3")], [0.0, 0.0]);
    }

    #[test]
    fn the_first_line_of_code_is_compared() {
        assert_eq!(score(Metric::CodeSimilarity, "\n# a comment\nreturn x\nelse", "return x"), 1.0);
        assert_eq!(score(Metric::CodeSimilarity, "return xy", "return x"), 0.94);
    }

    #[test]
    fn data_sets_have_their_metric() {
        assert_eq!(Metric::of("hotpotqa_e"), Some(Metric::F1));
        assert_eq!(Metric::of("lcc"), Some(Metric::CodeSimilarity));
        assert_eq!(Metric::of("dureader"), None);
    }
}
