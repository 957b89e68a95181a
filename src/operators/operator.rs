//! One operator and one kernel as ONNX Runtime knows them, generic over what is computed, where, and the element types.

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::{PrimitiveTensorElementType, TensorElementType};

use super::Container;
use super::node::{Failure, Node, guard};
use super::operation::{Operation, SparkAttention, SparkPrune};
use crate::call::Input;
use crate::spec;

/// Where nodes run: the CPU, or an execution provider with a GPU.
pub(super) trait Place: Send + Sync + 'static {
    /// What ONNX Runtime calls the execution provider; `None`: the CPU.
    const PROVIDER: Option<&'static str>;
    /// What a kernel runs on, found when a session makes it.
    type Device: Copy + Send + Sync + 'static;

    /// Where `input`, `declared` by the operator, is to lie.
    fn place(_input: Input, declared: OperatorInput) -> OperatorInput {
        declared
    }
}

/// A place that computes O for tensors of T and caches of C.
pub(super) trait Computes<O: Operation, T, C>: Place {
    /// The device of a node, or why there is none: found here, not in the first run.
    fn device(context: &KernelContext<'_>) -> Result<Self::Device, Failure>;

    /// A call.
    fn compute(settings: &O::Settings, device: Self::Device, context: &ComputeContext) -> Result<(), Failure>;
}

/// Operator O at place P, for tensors of T and caches of C.
pub(super) struct OperatorAt<O, P, T, C>(PhantomData<(O, P, T, C)>);

impl<O, P, T, C> OperatorAt<O, P, T, C> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<O, P, T, C> Operator for OperatorAt<O, P, T, C>
where
    O: Operation,
    P: Computes<O, T, C>,
    T: PrimitiveTensorElementType + Send + Sync + 'static,
    C: Container,
{
    type Kernel<'attr> = KernelAt<O, P, T, C>;

    fn name(&self) -> &str {
        O::SPEC.name
    }

    fn execution_provider_type(&self) -> Option<&str> {
        P::PROVIDER
    }

    /// Versions of the domain that are served. ONNX Runtime holds models to the first one only, so that nodes say
    /// theirs themselves ([`spec::VERSION`]).
    fn versions(&self) -> RangeInclusive<u32> {
        let [first, last] = [spec::VERSIONS.start(), spec::VERSIONS.end()].map(|&v| v as u32);
        first..=last
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        O::SPEC.inputs.iter().zip(Input::ALL).map(|(input, place)| {
            let element = element::<T, C>(input.element);
            P::place(
                place,
                match input.required {
                    true => OperatorInput::required(element),
                    false => OperatorInput::optional(element),
                },
            )
        })
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        O::SPEC.outputs.iter().map(|output| {
            let element = element::<T, C>(output.element);
            match output.required {
                true => OperatorOutput::required(element),
                false => OperatorOutput::optional(element),
            }
        })
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let node = Node::new(O::SPEC.name, context);
        let (settings, device) = node.guard(|| {
            let settings = O::settings(context)?;
            let device = P::device(context)?;
            Ok((settings, device))
        })?;
        Ok(KernelAt { node, settings, device, types: PhantomData })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        guard(&format!("{} shape inference", O::SPEC.name), || Ok(O::infer_shapes(context)?))
    }
}

/// The kernel of one node. It holds what the node's attributes say and nothing of any call, since ONNX Runtime runs one
/// kernel from several threads at once.
pub(super) struct KernelAt<O: Operation, P: Place, T, C> {
    node: Node,
    settings: O::Settings,
    device: P::Device,
    types: PhantomData<fn() -> (T, C)>,
}

// The crate hands out `&mut self` although calls run side by side: no field may ever change after creation.
impl<O: Operation, P: Computes<O, T, C>, T, C> Kernel for KernelAt<O, P, T, C> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.node.guard(|| P::compute(&self.settings, self.device, context))
    }
}

/// Adds both operators at P to `domain`, for tensors of T and caches of T or of bytes.
pub(super) fn add<P, T>(domain: OperatorDomain) -> ort::Result<OperatorDomain>
where
    T: PrimitiveTensorElementType + Container,
    P: Computes<SparkPrune, T, T> + Computes<SparkPrune, T, u8>,
    P: Computes<SparkAttention, T, T> + Computes<SparkAttention, T, u8>,
{
    domain
        .add(OperatorAt::<SparkPrune, P, T, T>::new())?
        .add(OperatorAt::<SparkPrune, P, T, u8>::new())?
        .add(OperatorAt::<SparkAttention, P, T, T>::new())?
        .add(OperatorAt::<SparkAttention, P, T, u8>::new())
}

fn element<T: PrimitiveTensorElementType, C: Container>(element: spec::Type) -> TensorElementType {
    match element {
        spec::Type::T => T::into_tensor_element_type(),
        spec::Type::C => C::into_tensor_element_type(),
        spec::Type::Int32 => TensorElementType::Int32,
        spec::Type::Int64 => TensorElementType::Int64,
        spec::Type::Float32 => TensorElementType::Float32,
    }
}
