//! Names of the inputs, and errors that name them.

use thiserror::Error;

use crate::spec;

/// An input of both operators, in the order of the inputs of [`spec::ATTENTION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Input {
    Query,
    Key,
    Value,
    PastKey,
    PastValue,
    SeqlensK,
    TotalSequenceLength,
    CosCache,
    SinCache,
    PositionIds,
    PastKeyRecent,
    QuerySaliency,
    AttentionBias,
    KeyBasis,
    QueryBasis,
}

impl Input {
    /// All inputs. AttentionBias and QueryBasis are `SparkAttention`'s only.
    pub const ALL: [Self; 15] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::PastKey,
        Self::PastValue,
        Self::SeqlensK,
        Self::TotalSequenceLength,
        Self::CosCache,
        Self::SinCache,
        Self::PositionIds,
        Self::PastKeyRecent,
        Self::QuerySaliency,
        Self::AttentionBias,
        Self::KeyBasis,
        Self::QueryBasis,
    ];

    /// Position among a node's inputs.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in the operators' contract.
    pub fn name(self) -> &'static str {
        spec::ATTENTION.inputs[self.index()].name
    }

    /// An error about this input.
    pub fn error(self, problem: impl Into<String>) -> CallError {
        CallError::Input { input: self, problem: problem.into() }
    }
}

/// Why a call cannot be carried out.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    /// An attribute is missing or out of range.
    #[error("attribute {name}: {problem}")]
    Attribute {
        /// the attribute
        name: &'static str,
        /// what was found and expected
        problem: String,
    },
    /// An input is missing, misshapen or out of range.
    #[error("input {} ({}): {problem}", .input.index(), .input.name())]
    Input {
        /// the input
        input: Input,
        /// what was found and expected
        problem: String,
    },
    /// An output cannot be written where the host wants it.
    #[error("output {name}: {problem}")]
    Output {
        /// the output
        name: &'static str,
        /// what was found and expected
        problem: String,
    },
}

impl CallError {
    /// An error about attribute `name`.
    pub fn attribute(name: &'static str, problem: impl Into<String>) -> Self {
        Self::Attribute { name, problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_those_of_the_schema() {
        assert_eq!(Input::ALL.len(), spec::ATTENTION.inputs.len());
        for (place, input) in Input::ALL.into_iter().enumerate() {
            assert_eq!(input.index(), place);
            assert_eq!(input.name().replace('_', ""), format!("{input:?}").to_lowercase());
        }
    }
}
