.DEFAULT_GOAL := help
.PHONY: help build venv wheel demo layer test test-hosts test-versions test-rocm test-cuda test-plugin test-amd cuda bench-genai eval eval-genai zoo fuzz asan miri clean

help:
	@echo 'make demo           rewrite a bundled model, generate with it and with the original, compare them'
	@echo 'make layer          what the operators save and what they cost, on one attention layer'
	@echo 'make test           everything: format, lints, Rust and Python tests, ONNX Runtime versions, valgrind'
	@echo 'make test-versions  the ONNX Runtime versions of tests/onnxruntime, the ones that make test leaves out included'
	@echo 'make test-plugin    the operators on SparkExecutionProvider in ONNX Runtime 1.24 and later, by emulation'
	@echo 'make test-rocm      the operators on the ROCm execution provider, by emulation: no GPU is needed'
	@echo 'make test-amd       the kernels as clang 22 makes them for AMD GPUs: registers, instructions (100 MB, 10 to 20 minutes)'
	@echo 'make test-cuda      the operators on the CUDA execution provider, by emulation: no GPU is needed'
	@echo 'make cuda           the kernels on an NVIDIA GPU: checked against the CPU, timed'
	@echo 'make test-hosts     the package in GenAI, plain loops, Optimum (torch: several GB) and all ONNX Runtime versions'
	@echo 'make bench-genai    models in ONNX Runtime GenAI, original and rewritten, and in llama.cpp where that is built'
	@echo 'make eval           what compressed caches cost a real model, beside rivals (PyTorch to build it: several GB)'
	@echo 'make eval-genai     the same in ONNX Runtime GenAI, by the logits that it hands out'
	@echo 'make zoo            models of many families by the stock exporters, rewritten and compared (torch: several GB)'
	@echo 'make wheel          a Python wheel for any Linux with glibc 2.28 or later'
	@echo 'make build          target/release/libspark_ort.so and target/release/spark-ort'
	@echo 'make venv           .venv, the Python packages of tools/requirements.txt'
	@echo 'make fuzz           mutants of model files, configurations, rows and calls for an hour, or SECONDS_OF_FUZZING=N'
	@echo 'make asan           mutants and hostile calls with AddressSanitizer: a nightly toolchain is needed'
	@echo 'make miri           rows and calls in Miri: a nightly toolchain is needed'
	@echo 'make clean          remove target, .venv, .venv-* and caches'

build:
	@tools/setup.sh build

venv:
	@tools/setup.sh venv

wheel:
	@tools/setup.sh wheel

demo:
	@tools/demo.sh

layer:
	@tools/setup.sh layer

test:
	@tools/test.sh

test-versions:
	@tools/versions.sh

test-rocm:
	@tools/rocm.sh

test-cuda:
	@tools/cuda_ep.sh

test-plugin:
	@tools/plugin.sh

test-amd:
	@tools/amd_code.sh

cuda:
	@tools/cuda.sh build
	@tools/cuda.sh run

test-hosts:
	@tools/hosts.sh

eval:
	@tools/eval.sh

eval-genai:
	@tools/eval_genai.sh

zoo:
	@tools/zoo.sh

bench-genai:
	@tools/genai.sh
	@tools/peers.sh

fuzz:
	@tools/fuzz.sh

asan:
	@tools/nightly.sh asan

miri:
	@tools/nightly.sh miri

clean:
	rm -rf target .venv .venv.lock .venv-* .pytest_cache
	find tests tools python examples -name __pycache__ -prune -exec rm -rf {} +
