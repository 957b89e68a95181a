"""Whole rewritten models: where ONNX Runtime places their nodes. Its own kernels cannot run on the stand-ins."""

import os
import pathlib
import re

import driver
import pytest

# Those that this ONNX Runtime can load at all.
MODELS = ["dynamo18-fp32", "optimum-fp32", "genai-cpu-fp32", "genai-cuda-fp16", "genai-dml-fp16"]
LAYERS = 4


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_on_the_gpu(scenario, name):
    folder = os.environ.get("SPARK_TEST_EXPORTS") or pytest.skip("SPARK_TEST_EXPORTS: tools/rocm.sh makes them")
    [model] = pathlib.Path(folder, name, "pruned").rglob("*.onnx")
    got = scenario("load", str(model))
    provider, placed = None, {}
    for line in got.errors.splitlines():
        if found := re.search(r"placed on \[(\w+)\]", line):
            provider = found[1]
        elif found := re.search(r"VerifyEachNodeIsAssignedToAnEp\]\s+(Spark\w+) \(", line):
            placed[found[1], provider] = placed.get((found[1], provider), 0) + 1
    assert placed == {("SparkAttention", driver.PROVIDER): LAYERS, ("SparkPrune", driver.PROVIDER): LAYERS}
    assert len(got.lines(driver.LOAD)) == 1
