//! What the two operators are, whatever computes them.

use ort::operator::{ComputeContext, ShapeInferenceContext};

use super::node::Failure;
use super::shape_inference;
use super::tensors::Inputs;
use crate::call::{AttentionSettings, Attributes, CallError, Input, PruneSettings, Settings};
use crate::spec;

/// An operator of the domain.
pub(super) trait Operation: Send + Sync + 'static {
    /// Name, inputs and outputs.
    const SPEC: &'static spec::Operator;
    /// The attributes of a node.
    type Settings: Send + Sync + 'static;

    /// Whether `input` is one that is read.
    fn reads(input: Input) -> bool;

    /// Reads and checks the attributes.
    fn settings(source: &impl Attributes) -> Result<Self::Settings, CallError>;

    /// Sets the shapes of the outputs as far as they are known.
    fn infer_shapes(context: &mut ShapeInferenceContext) -> ort::Result<()>;
}

/// The write path.
pub(super) struct SparkPrune;

impl Operation for SparkPrune {
    const SPEC: &'static spec::Operator = &spec::PRUNE;
    type Settings = PruneSettings;

    /// In the place of attention_bias is SparkAttention's output, which only orders the two: SparkAttention must have
    /// read the tail of a shared buffer before it is written.
    fn reads(input: Input) -> bool {
        !matches!(input, Input::AttentionBias | Input::QueryBasis)
    }

    fn settings(source: &impl Attributes) -> Result<PruneSettings, CallError> {
        PruneSettings::read(source)
    }

    fn infer_shapes(context: &mut ShapeInferenceContext) -> ort::Result<()> {
        shape_inference::prune(context)
    }
}

impl SparkPrune {
    /// Checks that the input `after` is there where a tail may be written.
    pub(super) fn check_after(settings: &Settings, context: &ComputeContext) -> Result<(), Failure> {
        let after = Input::AttentionBias.index();
        if settings.tail_window == 0 || context.num_inputs()? > after && context.input(after)?.is_some() {
            return Ok(());
        }
        let problem =
            format!("needs input {after} (after), the output of SparkAttention, which reads what is written here");
        Err(CallError::attribute("tail_window", problem).into())
    }
}

/// The read path.
pub(super) struct SparkAttention;

impl SparkAttention {
    /// Checks that queries have a basis where keys have one.
    pub(super) fn check_basis(settings: &Settings, inputs: &Inputs<'_>) -> Result<(), Failure> {
        match inputs.shape(Input::QueryBasis) {
            None if settings.planes.is_some() => Err(Input::QueryBasis.error("is required with row_format 3").into()),
            _ => Ok(()),
        }
    }
}

impl Operation for SparkAttention {
    const SPEC: &'static spec::Operator = &spec::ATTENTION;
    type Settings = AttentionSettings;

    fn reads(_: Input) -> bool {
        true
    }

    fn settings(source: &impl Attributes) -> Result<AttentionSettings, CallError> {
        AttentionSettings::read(source)
    }

    fn infer_shapes(context: &mut ShapeInferenceContext) -> ort::Result<()> {
        shape_inference::attention(context)
    }
}
