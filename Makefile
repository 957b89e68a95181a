.DEFAULT_GOAL := help
.PHONY: help build venv demo layer test test-versions test-rocm clean

help:
	@echo 'make demo           rewrite a bundled model, generate with it and with the original, compare them'
	@echo 'make layer          what the operators save and what they cost, on one attention layer'
	@echo 'make test           everything: format, lints, Rust and Python tests, ONNX Runtime versions, valgrind'
	@echo 'make test-versions  the ONNX Runtime versions of tests/hosts, the ones that make test leaves out included'
	@echo 'make test-rocm      the operators on the ROCm execution provider, by emulation: no GPU is needed'
	@echo 'make build          target/release/libspark_ort.so and target/release/spark-ort'
	@echo 'make venv           .venv, the Python packages of tools/requirements.txt'
	@echo 'make clean          remove target, .venv, .venv-ort-*, .venv-rocm and caches'

build:
	@tools/setup.sh build

venv:
	@tools/setup.sh venv

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

clean:
	rm -rf target .venv .venv.lock .venv-ort-* .venv-rocm* .pytest_cache
	find tests tools -name __pycache__ -prune -exec rm -rf {} +
