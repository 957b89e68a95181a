"""What does not follow the rules of test_structure.py yet."""

OUT_OF_PLACE = {
    "instruction sets": [],
    "bit widths": [
        "src/cpu/decode/kernels.rs",
        "src/cpu/decode/keys.rs",
        "src/cpu/decode/values.rs",
        "src/gpu/plan/tensors.rs",
    ],
    "execution providers": [],
    "source operators": [],
}
CYCLES = {
    "src": [
        ("rewrite::options", "rewrite::recent"),
    ],
    "tools/spark-ort": [],
}
LONG_FILES = []
LONG_FUNCTIONS = [
    "benches/cuda/measure.rs: measure",
    "src/cpu/isa/x86_64/avx512_vnni/inner_loop.rs: multiply_and_make",
    "src/onnx/evaluate/operators.rs: one",
    "src/onnx/evaluate/shapes.rs: infer",
    "src/rewrite/mod.rs: rewrite",
    "src/rewrite/source/onnx_attention.rs: check",
]
# How many lines of a folder may be longer than 120 columns.
LONG_LINES = {"src": 110, "tools": 30, "tests": 80, "examples": 8, "python": 3, "ops": 22}
