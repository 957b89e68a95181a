//! The execution providers that a GenAI folder names.

use serde_json::{Map, Value};

use crate::plugin;

/// Providers, as GenAI names them, that the operators have kernels for.
const KNOWN: [&str; 3] = ["cpu", "cuda", "rocm"];

/// The options by which a provider captures launches in a graph, which the operators refuse.
const GRAPHS: [&str; 2] = ["enable_cuda_graph", "enable_hip_graph"];

/// This library's own provider.
const OURS: &str = plugin::name();

/// Names `provider` after those that these session options name, unless they name it.
pub fn add(session: &mut Value, provider: &str) {
    if names(session).contains(&provider) {
        return;
    }
    if !session["provider_options"].is_array() {
        session["provider_options"] = Value::Array(Vec::new());
    }
    let options = Map::from_iter([(provider.to_string(), Value::Object(Map::new()))]);
    session["provider_options"].as_array_mut().into_iter().for_each(|list| list.push(options.clone().into()));
}

/// Switches off in these session options the capture of graphs.
pub fn disable_graphs(session: &mut Value) {
    let named = session["provider_options"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut);
    for options in named.flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
        for name in GRAPHS {
            options.entry(name).and_modify(|value| *value = "0".into());
        }
    }
}

/// Warns of what these session options ask for and the operators do not do.
pub fn warnings(session: &Value) -> Vec<String> {
    let names = names(session);
    let foreign: Vec<&str> = names.iter().copied().filter(|name| !KNOWN.contains(name) && *name != OURS).collect();
    let mut warnings = Vec::new();
    if names.contains(&OURS) {
        warnings.push(format!(
            "the host must register {} with ONNX Runtime before it loads the folder: \
             onnxruntime_genai.register_execution_provider_library",
            OURS
        ));
        if names.iter().all(|name| *name == OURS || *name == "cpu") {
            warnings.push(format!(
                "the folder names {} alone: GenAI then keeps the cache in host memory, and every step copies all of it \
                 to the GPU and back",
                OURS
            ));
        }
    } else if !foreign.is_empty() {
        warnings.push(format!(
            "the folder asks for the execution provider {}, which these operators have no kernels for: ONNX Runtime \
             runs them on the CPU, and copies queries, results and caches to and fro in every call. Without it in \
             provider_options all runs on the CPU",
            foreign.join(", ")
        ));
    }
    let mut without = session.clone();
    disable_graphs(&mut without);
    if without != *session {
        let options = GRAPHS.join(" or ");
        warnings.push(format!("{options} is 0 in the new folder: a graph would go on with the lengths of one call"));
    }
    warnings
}

fn names(session: &Value) -> Vec<&str> {
    let options = session["provider_options"].as_array().into_iter().flatten();
    options.filter_map(Value::as_object).flat_map(Map::keys).map(String::as_str).collect()
}
