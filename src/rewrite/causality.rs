//! Whether a mask is causal, found by evaluating it in calls of many sizes.

use std::collections::BTreeSet;

use super::context::{Causality, Context, HIDDEN, Sizes, USUAL};
use crate::onnx::NodeExt;
use crate::onnx::evaluate::{Evaluator, kinds};

/// Calls that distinguish most masks from causal ones.
const CALLS: [Sizes; 4] = [USUAL[0], USUAL[1], call(0, 5), Sizes { batch: 2, past: 7, new: 2 }];

/// Longer calls of several tokens.
const LONGER: [Sizes; 2] = [call(0, 300), call(100, 150)];

/// Past lengths for decoding one token: a shorter window shows up, however its length is computed.
const PASTS: [usize; 3] = [1 << 10, 1 << 14, 1 << 17];

/// Numbers that may be window lengths.
const LENGTHS: std::ops::RangeInclusive<f64> = 8.0..=4e6;

/// Most such numbers that are tried.
const MOST_LENGTHS: usize = 32;

/// Shorter constants are not position tables: even the short calls would exceed them.
const SHORTEST_TABLE: usize = 8;

/// Longest stored table that is checked as a whole, in calls of as many tokens.
const MOST_ROWS: usize = 4096;
const ROWS: usize = 64;

/// Larger constants are dropped from memory in between.
const SMALL: usize = 1 << 12;

const fn call(past: usize, new: usize) -> Sizes {
    Sizes { batch: 1, past, new }
}

/// What `tensor` hides. If `inverted`, its true elements hide, else its false ones.
pub fn causality(context: &mut Context<'_>, tensor: &str, inverted: bool) -> Causality {
    let key = (tensor.to_string(), inverted);
    if let Some(&known) = context.causalities.get(&key) {
        return known;
    }
    let mut usual = |known: bool, only: bool| {
        CALLS.iter().all(|&sizes| compare(context.evaluator(sizes, known), tensor, sizes, inverted, only) == Some(true))
    };
    let (hides_later, only_later) = (usual(true, false), usual(false, true));
    let found = if hides_later {
        let numbers = Numbers::behind(context, tensor);
        let seen = |sizes| once(context, tensor, sizes, inverted, true);
        // As long as the tables allow.
        let table = numbers.tables.first().map(|&rows| call(0, rows.min(LONGER[0].new)));
        let hides_later = LONGER.iter().all(|&s| seen(s).or_else(|| seen(table?)) == Some(true));
        Causality {
            hides_later,
            only_later: hides_later && only_later && everywhere(context, tensor, inverted, numbers),
        }
    } else {
        Causality { hides_later, only_later: false }
    };
    context.constants.forget(SMALL);
    context.causalities.insert(key, found);
    found
}

/// Whether `tensor`, which is causal in short calls, is also causal in long ones.
fn everywhere(context: &mut Context<'_>, tensor: &str, inverted: bool, numbers: Numbers) -> bool {
    let seen = |past, new| once(context, tensor, call(past, new), inverted, false);
    let Numbers { tables, lengths } = numbers;
    // The model may end where a table ends.
    let end = tables.iter().copied().find(|&rows| seen(rows, 1).is_none());
    let ends = |total: usize| end.is_some_and(|rows| rows < total);
    // A window shows only in longer calls.
    let pasts = PASTS.into_iter().chain(lengths.iter().map(|length| length + 3));
    let holds = |found: Option<bool>, total: usize| found.unwrap_or_else(|| ends(total));
    if lengths.len() > MOST_LENGTHS
        || !pasts.into_iter().all(|past| holds(seen(past, 1), past + 1))
        || !LONGER.iter().all(|s| holds(seen(s.past, s.new), s.total()))
    {
        return false;
    }
    // Any row of a table may differ from the others.
    let rows = tables.last().copied().unwrap_or(0);
    rows <= MOST_ROWS
        && (0..rows).step_by(ROWS).all(|past| {
            let new = ROWS.min(rows - past);
            holds(seen(past, new), past + new)
        })
}

/// Like [`compare`], in a call whose values are not kept; `only` if the attention mask may be anything.
fn once(context: &Context<'_>, tensor: &str, sizes: Sizes, inverted: bool, known: bool) -> Option<bool> {
    compare(&mut context.new_evaluator(sizes, known), tensor, sizes, inverted, !known)
}

/// Whether `tensor` in a call of `sizes` hides all later keys and, if `only`, no others. `None` if this is not known.
fn compare(evaluator: &mut Evaluator<'_>, tensor: &str, sizes: Sizes, inverted: bool, only: bool) -> Option<bool> {
    let value = evaluator.value(tensor).ok()?;
    let data = value.data.as_ref()?;
    let (&columns, above) = value.shape.split_last()?;
    let rows = above.last().copied().unwrap_or(1);
    if columns < sizes.total() || ![1, sizes.new].contains(&rows) || data.is_empty() {
        return None;
    }
    let boolean = value.kind == kinds::BOOL;
    let hides = |x: f64| if boolean { (x != 0.0) == inverted } else { x <= HIDDEN };
    let shows = |x: f64| if boolean { (x != 0.0) != inverted } else { x == 0.0 };
    let fits = |row: ndarray::ArrayView1<'_, f64>, query: usize| {
        let own = sizes.past + query;
        row.iter().take(sizes.total()).enumerate().all(|(key, &x)| match key > own {
            true => hides(x),
            false => !only || shows(x),
        })
    };
    Some(data.rows().into_iter().enumerate().all(|(i, row)| match rows {
        1 => (0..sizes.new).all(|query| fits(row, query)),
        _ => fits(row, i % rows),
    }))
}

/// Constants that a mask is computed from.
struct Numbers {
    /// Longest dimension of each stored table.
    tables: BTreeSet<usize>,
    /// Constants that may be lengths.
    lengths: BTreeSet<usize>,
}

impl Numbers {
    fn behind(context: &mut Context<'_>, tensor: &str) -> Self {
        let (mut tables, mut lengths) = (BTreeSet::new(), BTreeSet::new());
        let (mut seen, mut queue) = (BTreeSet::new(), vec![tensor]);
        let index = context.index;
        while let Some(name) = queue.pop() {
            if !context.constants.may_follow(1) || !seen.insert(name) {
                continue;
            }
            let maker = index.maker(name);
            let stored = maker.map_or(index.initializer(name).is_some(), |node| node.is_onnx("Constant"));
            let values = match context.value(name, USUAL[0]) {
                Ok(value) if stored && value.shape.iter().any(|&d| d >= SHORTEST_TABLE) => {
                    tables.extend(value.shape.iter().max());
                    Vec::new()
                }
                Ok(value) if stored => value.data.iter().flatten().copied().collect(),
                _ => context.constant(name).into_iter().collect(),
            };
            lengths.extend(values.into_iter().map(f64::abs).filter(|x| LENGTHS.contains(x)).map(|x| x as usize));
            // What feeds a Shape has token dimensions, not mask lengths.
            let inputs = maker.filter(|node| !node.is_onnx("Shape")).map_or(&[][..], |node| &node.input);
            queue.extend(inputs.iter().map(String::as_str).filter(|i| !i.is_empty()));
        }
        Self { tables, lengths }
    }
}
