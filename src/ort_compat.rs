//! What older ONNX Runtimes need.
//!
//! Up to 1.23, ONNX Runtime crashes while it loads a model in which a custom operator that infers shapes has an absent
//! optional input. The `ort` crate gives every operator a shape-inference function, so on these versions operators are
//! registered through a stand-in that has none; everything else it passes on.

use ort::sys::{OrtApi, OrtCustomOp, OrtCustomOpDomain, OrtStatusPtr};

/// First minor version that takes absent optional inputs and shape inference together.
const SHAPE_INFERENCE_SINCE: u32 = 24;

/// `api` as this library may use it with a host of `version` ("1.22.1").
pub(crate) fn adapt(mut api: OrtApi, version: &str) -> OrtApi {
    let minor = version.split('.').nth(1).and_then(|m| m.parse::<u32>().ok());
    // A version that cannot be read is taken for new.
    if version.starts_with("1.") && minor.is_some_and(|m| m < SHAPE_INFERENCE_SINCE) {
        REAL_ADD.set(api.CustomOpDomain_Add).ok();
        api.CustomOpDomain_Add = add_without_shape_inference;
    }
    api
}

type Add = unsafe extern "system" fn(*mut OrtCustomOpDomain, *const OrtCustomOp) -> OrtStatusPtr;

static REAL_ADD: std::sync::OnceLock<Add> = std::sync::OnceLock::new();

/// An operator as ONNX Runtime sees it, and the one it stands in for.
#[repr(C)]
struct StandIn {
    seen: OrtCustomOp,
    real: *const OrtCustomOp,
}

/// `CustomOpDomain_Add` of the table that ONNX Runtime hands to the `ort` crate here.
///
/// # Safety
/// As for ONNX Runtime's own function: `domain` is alive, and `real` is whole and lives as long as it.
unsafe extern "system" fn add_without_shape_inference(
    domain: *mut OrtCustomOpDomain,
    real: *const OrtCustomOp,
) -> OrtStatusPtr {
    // Lives as long as the library, as the domain does.
    // SAFETY: `real` is a whole OrtCustomOp, made by the `ort` crate, and lives as long as the domain.
    let stand_in = Box::leak(Box::new(StandIn { seen: unsafe { stand_in_for(&*real) }, real }));
    let add = REAL_ADD.get().expect("set before this function is handed out");
    // SAFETY: the arguments are those of the real function; ONNX Runtime reads the operator through the pointer.
    unsafe { add(domain, (stand_in as *const StandIn).cast()) }
}

/// A copy of `real` whose functions find it again, without shape inference.
fn stand_in_for(real: &OrtCustomOp) -> OrtCustomOp {
    /// A function of the stand-in that calls the same one of the real operator.
    macro_rules! pass_on {
        ($field:ident($($arg:ident: $type:ty),*) -> $result:ty) => {{
            /// # Safety
            /// As for the real operator's function; `op` is the `seen` of a [`StandIn`].
            unsafe extern "system" fn call(op: *const OrtCustomOp $(, $arg: $type)*) -> $result {
                // SAFETY: ONNX Runtime calls with the pointer it was given, a StandIn that is never freed, and only
                // functions that are there.
                unsafe {
                    let real = (*op.cast::<StandIn>()).real;
                    ((*real).$field.expect("a function that every operator has"))(real $(, $arg)*)
                }
            }
            real.$field.map(|_| call as _)
        }};
    }
    use ort::sys::{
        ONNXTensorElementDataType as Element, OrtCustomOpInputOutputCharacteristic as Characteristic, OrtKernelInfo,
        OrtMemType,
    };
    use std::ffi::{c_char, c_int, c_void};
    OrtCustomOp {
        version: real.version,
        CreateKernel: None,
        KernelCompute: None,
        InferOutputShapeFn: None,
        GetName: pass_on!(GetName() -> *const c_char),
        GetExecutionProviderType: pass_on!(GetExecutionProviderType() -> *const c_char),
        GetInputType: pass_on!(GetInputType(index: usize) -> Element),
        GetInputTypeCount: pass_on!(GetInputTypeCount() -> usize),
        GetOutputType: pass_on!(GetOutputType(index: usize) -> Element),
        GetOutputTypeCount: pass_on!(GetOutputTypeCount() -> usize),
        GetInputCharacteristic: pass_on!(GetInputCharacteristic(index: usize) -> Characteristic),
        GetOutputCharacteristic: pass_on!(GetOutputCharacteristic(index: usize) -> Characteristic),
        GetInputMemoryType: pass_on!(GetInputMemoryType(index: usize) -> OrtMemType),
        GetVariadicInputMinArity: pass_on!(GetVariadicInputMinArity() -> c_int),
        GetVariadicInputHomogeneity: pass_on!(GetVariadicInputHomogeneity() -> c_int),
        GetVariadicOutputMinArity: pass_on!(GetVariadicOutputMinArity() -> c_int),
        GetVariadicOutputHomogeneity: pass_on!(GetVariadicOutputHomogeneity() -> c_int),
        GetStartVersion: pass_on!(GetStartVersion() -> c_int),
        GetEndVersion: pass_on!(GetEndVersion() -> c_int),
        CreateKernelV2: pass_on!(
            CreateKernelV2(api: *const OrtApi, info: *const OrtKernelInfo, kernel: *mut *mut c_void) -> OrtStatusPtr
        ),
        // These know nothing of the operator.
        KernelComputeV2: real.KernelComputeV2,
        KernelDestroy: real.KernelDestroy,
        GetMayInplace: real.GetMayInplace,
        ReleaseMayInplace: real.ReleaseMayInplace,
        GetAliasMap: real.GetAliasMap,
        ReleaseAliasMap: real.ReleaseAliasMap,
    }
}
