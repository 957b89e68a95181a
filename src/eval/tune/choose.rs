//! The choice of least cost within a budget: a knapsack with one item of each group, solved exactly.

/// What one setting of a group of layers takes and costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Bytes per token, over all layers of the group.
    pub bytes: usize,
    /// KL divergence in nats.
    pub cost: f64,
}

/// Infinite divergence, and others that no sum needs to tell apart.
const MOST_COST: f64 = 1e6;

/// The index of a choice of each group, so that their bytes are within `budget` and the sum of their costs is least;
/// of equal ones that with fewer bytes. `None`: the smallest choices together have more bytes.
pub fn choose(groups: &[Vec<Choice>], budget: usize) -> Option<Vec<usize>> {
    let all = || groups.iter().flatten().map(|choice| choice.bytes);
    let unit = all().fold(0, greatest_common_divisor).max(1);
    let most: usize = groups.iter().map(|group| group.iter().map(|choice| choice.bytes).max().unwrap_or(0)).sum();
    let units = budget.min(most) / unit;
    // The least cost of the groups so far with at most so many units; infinite: impossible.
    let mut least = vec![0.0; units + 1];
    let mut picks: Vec<Vec<usize>> = Vec::new();
    for group in groups {
        let mut next = vec![f64::INFINITY; units + 1];
        let mut picked = vec![0; units + 1];
        for (index, choice) in group.iter().enumerate() {
            let size = choice.bytes / unit;
            for held in size..=units {
                let cost = least[held - size] + choice.cost.min(MOST_COST);
                if cost < next[held] {
                    (next[held], picked[held]) = (cost, index);
                }
            }
        }
        least = next;
        picks.push(picked);
    }
    let best = *least.last()?;
    // The fewest units at which the cost is already least.
    let mut held = least.iter().position(|cost| *cost == best).filter(|_| best.is_finite())?;
    let mut chosen = vec![0; groups.len()];
    for (group, picked) in picks.iter().enumerate().rev() {
        chosen[group] = picked[held];
        held -= groups[group][picked[held]].bytes / unit;
    }
    Some(chosen)
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The least cost by trying every combination.
    fn by_force(groups: &[Vec<Choice>], budget: usize) -> Option<f64> {
        let Some((first, others)) = groups.split_first() else { return Some(0.0) };
        let with = |choice: &Choice| Some(choice.cost + by_force(others, budget.checked_sub(choice.bytes)?)?);
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    proptest! {
        #[test]
        fn is_the_best_of_all_combinations(
            groups in prop::collection::vec(prop::collection::vec((1usize..9, 0u8..50), 1..5), 1..5),
            budget in 0usize..160,
        ) {
            let choice = |&(bytes, cost): &(usize, u8)| Choice { bytes: 4 * bytes, cost: cost.into() };
            let groups: Vec<Vec<Choice>> = groups.iter().map(|group| group.iter().map(choice).collect()).collect();
            let chosen = choose(&groups, budget);
            prop_assert_eq!(chosen.is_some(), by_force(&groups, budget).is_some());
            if let Some(chosen) = chosen {
                let picked = || groups.iter().zip(&chosen).map(|(group, &index)| group[index]);
                prop_assert!(picked().map(|choice| choice.bytes).sum::<usize>() <= budget);
                let cost: f64 = picked().map(|choice| choice.cost).sum();
                prop_assert_eq!(Some(cost), by_force(&groups, budget));
            }
        }
    }

    #[test]
    fn equal_costs_take_fewer_bytes() {
        let group = |costs: [f64; 2]| vec![Choice { bytes: 8, cost: costs[0] }, Choice { bytes: 4, cost: costs[1] }];
        assert_eq!(choose(&[group([1.0, 1.0]), group([0.0, 1.0])], 1000), Some(vec![1, 0]));
        assert_eq!(choose(&[group([f64::INFINITY, f64::INFINITY])], 1000), Some(vec![1]));
        assert_eq!(choose(&[group([0.0, 0.0])], 3), None);
    }
}
