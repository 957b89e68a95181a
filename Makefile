.DEFAULT_GOAL := help
.PHONY: help build venv demo test test-versions clean

help:
	@echo 'make demo           build the library and show what it saves and what it costs, on one attention layer'
	@echo 'make test           everything: format, lints, Rust and Python tests, ONNX Runtime versions, valgrind'
	@echo 'make test-versions  the ONNX Runtime versions of tests/hosts, the ones that make test leaves out included'
	@echo 'make build          target/release/libspark_ort.so'
	@echo 'make venv           .venv, the Python packages of tools/requirements.txt'
	@echo 'make clean          remove target, .venv, .venv-ort-* and caches'

build:
	@tools/setup.sh build

venv:
	@tools/setup.sh venv

demo:
	@tools/setup.sh demo

test:
	@tools/test.sh

test-versions:
	@tools/versions.sh

clean:
	rm -rf target .venv .venv.lock .venv-ort-* .pytest_cache
	find tests tools -name __pycache__ -prune -exec rm -rf {} +
