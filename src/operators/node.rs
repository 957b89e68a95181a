//! The node that a kernel belongs to: its name in errors, its attributes, and the barrier against panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ort::operator::{KernelContext, ShapeInferenceContext};
use ort::{Error, ErrorCode};

use crate::call::{Attribute, Attributes, CallError};
use crate::gpu::GpuError;
use crate::gpu::plan::PlanError;

/// Operator and node name, for errors.
#[derive(Clone, Debug)]
pub(super) struct Node {
    operator: &'static str,
    name: String,
}

impl Node {
    pub(super) fn new(operator: &'static str, context: &KernelContext<'_>) -> Self {
        Self { operator, name: context.node_name().unwrap_or_default() }
    }

    /// Runs `work`; an error, and a panic too, becomes an error that names the node.
    pub(super) fn guard<R>(&self, work: impl FnOnce() -> Result<R, Failure>) -> ort::Result<R> {
        guard(&format!("{} node '{}'", self.operator, self.name), work)
    }
}

/// Runs `work`; an error, and a panic too, becomes an error about `subject`.
pub(super) fn guard<R>(subject: &str, work: impl FnOnce() -> Result<R, Failure>) -> ort::Result<R> {
    let (code, problem) = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(Failure::Call(e))) => (ErrorCode::InvalidArgument, e.to_string()),
        Ok(Err(Failure::Ort(e))) => (ErrorCode::InvalidArgument, e.to_string()),
        Ok(Err(Failure::Process(e))) => (ErrorCode::InvalidArgument, e.to_string()),
        // Not ExecutionProviderFailure: for that one ONNX Runtime's Python package runs the model again, on the CPU,
        // and says nothing.
        Ok(Err(Failure::Device(e))) => (ErrorCode::GenericFailure, e.to_string()),
        Ok(Err(Failure::Plugin(e))) => (ErrorCode::GenericFailure, e),
        Ok(Err(Failure::Workspace(bytes, why))) => {
            (ErrorCode::GenericFailure, format!("no device memory for a workspace of {bytes} bytes: {why}"))
        }
        Err(panic) => (ErrorCode::InvalidArgument, format!("internal error: {}", panic_message(&*panic))),
    };
    // A C string ends at a zero byte.
    let message = format!("{subject}: {problem}").replace('\0', "");
    Err(Error::new_with_code(code, message))
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Why a kernel could not do its work.
#[derive(Debug)]
pub(super) enum Failure {
    Call(CallError),
    Ort(Error),
    /// Of the process, such as its environment.
    Process(&'static str),
    /// Of a GPU.
    Device(GpuError),
    /// Of the execution provider of this library.
    Plugin(String),
    /// Why there is no device memory for a workspace of so many bytes.
    Workspace(usize, String),
}

impl From<GpuError> for Failure {
    fn from(error: GpuError) -> Self {
        Self::Device(error)
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::Device(error.into())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ort(error)
    }
}

impl Attributes for KernelContext<'_> {
    fn get(&self, name: &'static str) -> Option<Attribute> {
        // An array getter also succeeds for an attribute that no getter of one value reads.
        let other = || {
            KernelContext::get::<Vec<i64>>(self, name).is_some() || KernelContext::get::<Vec<f32>>(self, name).is_some()
        };
        None.or_else(|| KernelContext::get(self, name).map(Attribute::Int))
            .or_else(|| KernelContext::get(self, name).map(Attribute::Float))
            .or_else(|| KernelContext::get(self, name).map(Attribute::String))
            .or_else(|| other().then_some(Attribute::Other))
    }
}

impl Attributes for ShapeInferenceContext {
    fn get(&self, name: &'static str) -> Option<Attribute> {
        None.or_else(|| self.attr(name).ok().map(Attribute::Int))
            .or_else(|| self.attr(name).ok().map(Attribute::Float))
            .or_else(|| self.attr(name).ok().map(Attribute::String))
    }
}
