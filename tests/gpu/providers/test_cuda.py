"""What only ONNX Runtime's own CUDA execution provider is asked for."""

import driver
import pytest

if driver.PROVIDER != "CUDAExecutionProvider":
    pytest.skip("only where SPARK_TEST_PROVIDER=CUDAExecutionProvider", allow_module_level=True)


def test_graphs_are_refused(scenario):
    """A captured graph would go on with the lengths of one call. The error says what to switch off."""
    got = scenario("captured")
    assert got.lines("cuStreamBeginCapture")
    assert "SparkPrune_node': the stream is being captured" in got.result["runs"][0]
    assert "enable_cuda_graph=0" in got.result["runs"][0]


def test_no_memory_is_taken_after_the_first_run(scenario):
    """Workspaces come from ONNX Runtime's arena, which has the memory of the first run."""
    lines = scenario("plain", "6").trace
    starts = [i for i, line in enumerate(lines) if line.startswith("-- run")]
    assert any(line.startswith(driver.MEMORY) for line in lines[:starts[1]])
    assert not any(line.startswith(driver.MEMORY) for line in lines[starts[1]:starts[5]])
