//! Prompts, and the tokens that follow them.

/// A prompt and the tokens that follow it in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The tokens read first.
    pub prompt: Vec<i64>,
    /// The tokens that follow: n + 1 for n decoded ones, since the last one is predicted but not fed.
    pub next: Vec<i64>,
}

impl Passage {
    /// Tokens that are fed one by one.
    pub fn decoded(&self) -> usize {
        self.next.len() - 1
    }
}

/// At most `count` passages of `context` tokens and `decode` more, spread evenly over the tokens of a text. They do
/// not overlap, so a short text gives fewer passages, possibly none. Each prompt begins with `prefix`, the tokens that
/// the tokenizer puts before every text, which count as part of the context.
pub fn passages(text: &[i64], prefix: &[i64], context: usize, decode: usize, count: usize) -> Vec<Passage> {
    let Some(body) = context.checked_sub(prefix.len()).filter(|body| *body > 0) else { return Vec::new() };
    let Some(length) = body.checked_add(decode).and_then(|length| length.checked_add(1)) else { return Vec::new() };
    let count = count.min(text.len() / length);
    let spare = text.len() - count * length;
    let passage = |i: usize| {
        // The first one starts at the start of the text, the last one ends at its end.
        let start = i * length + if count > 1 { i * spare / (count - 1) } else { 0 };
        let (prompt, next) = text[start..start + length].split_at(body);
        Passage { prompt: [prefix, prompt].concat(), next: next.to_vec() }
    };
    (0..count).map(passage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_spread_over_the_text_and_do_not_overlap() {
        let text: Vec<i64> = (0..100).collect();
        let found = passages(&text, &[-1, -2], 12, 9, 3);
        let starts: Vec<i64> = found.iter().map(|p| p.prompt[2]).collect();
        assert_eq!(starts, [0, 40, 80]);
        for passage in &found {
            assert_eq!((&passage.prompt[..2], passage.prompt.len(), passage.decoded()), (&[-1, -2][..], 12, 9));
            assert_eq!(passage.next[0], passage.prompt[11] + 1);
        }
        assert_eq!(found[2].next.last(), Some(&99));
        assert_eq!(passages(&text, &[], 40, 9, 9).len(), 2);
        assert!(passages(&text, &[], 91, 9, 1).is_empty() && passages(&text, &[1], 1, 1, 1).is_empty());
        for (context, decode) in [(usize::MAX, 9), (12, usize::MAX), (usize::MAX, usize::MAX)] {
            assert!(passages(&text, &[], context, decode, 1).is_empty());
        }
    }
}
