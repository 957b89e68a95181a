//! Generates the Rust types of ONNX models from the schema that ONNX publishes where models are rewritten, and embeds the kernels of `ops`.

#[path = "ops/build.rs"]
mod ops;

fn main() {
    #[cfg(feature = "rewrite")]
    generate_onnx();
    // ONNX Runtime unloads libraries of operators; what threads and lazy statics leave would leak each time.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    ops::main();
}

#[cfg(feature = "rewrite")]
fn generate_onnx() {
    use protobuf_codegen::{Codegen, Customize};

    let schema = "src/onnx/onnx.proto";
    println!("cargo::rerun-if-changed={schema}");
    Codegen::new()
        .pure()
        .include("src/onnx")
        .input(schema)
        .customize(Customize::default().lite_runtime(true))
        .cargo_out_dir("onnx")
        .run_from_script();
}
