"""What only SparkExecutionProvider, the library's own, is asked for."""

import re

import driver
import pytest

if driver.PROVIDER != "SparkExecutionProvider":
    pytest.skip("only where SPARK_TEST_PROVIDER=SparkExecutionProvider", allow_module_level=True)


def test_only_the_operators_are_taken(scenario):
    """Nodes of ONNX's own domain stay on the CPU, with copies between; results are the CPU's."""
    got = scenario("neighbours").result
    assert got["placed"] == [["MemcpyFromHost", "SparkExecutionProvider"], ["MemcpyToHost", "SparkExecutionProvider"],
                             ["Neg", "CPUExecutionProvider"], ["SparkAttention", "SparkExecutionProvider"],
                             ["SparkPrune", "SparkExecutionProvider"]]
    assert got["difference"] <= 1e-5


@pytest.mark.skipif(driver.HIP, reason="the other provider is on the stand-in for the CUDA driver")
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_provider_on_the_same_device(scenario, order):
    """Nothing is copied between the two, and both queue their work on one stream."""
    got = scenario("beside", order)
    assert got.result["placed"] == [["Identity", "NeighbourExecutionProvider"],
                                    ["SparkAttention", "SparkExecutionProvider"],
                                    ["SparkPrune", "SparkExecutionProvider"]]
    assert got.result["difference"] <= 1e-5
    work = got.trace[got.trace.index("-- run 0"):got.trace.index("-- done")]
    copies = [line.split() for line in work if line.startswith("copy") and line.endswith("device to device")]
    launches = [line.split() for line in work if line.startswith("launch")]
    assert len(copies) == 2 and launches
    assert {line[1] for line in copies} == {line[3] for line in launches} == {"stream1"}


def test_no_memory_is_taken_after_the_first_run(scenario):
    """The driver is asked for memory by the first run only, also where outputs are ONNX Runtime's to allocate."""
    lines = scenario("plain", "6").trace
    starts = [i for i, line in enumerate(lines) if line.startswith("-- run")]
    assert len(starts) == 6
    assert any(line.startswith(driver.MEMORY) for line in lines[:starts[1]])
    assert not any(line.startswith(driver.MEMORY) for line in lines[starts[1]:starts[5]])


def test_two_sessions_on_two_threads(scenario):
    assert scenario("side_by_side").result == {"equal": True}


def test_registered_again(scenario):
    """The library may be unregistered and registered again in one process."""
    assert scenario("again").result == [None, None]


@pytest.mark.parametrize("devices", ["0", "3"])
def test_devices_that_onnx_runtime_does_not_see(scenario, devices):
    """Where ONNX Runtime finds no GPU, as in containers, the driver's own devices are offered."""
    assert scenario("devices", GPU_SIM_DEVICES=devices).result == int(devices)


def test_a_whole_model(scenario):
    """A rewritten model, everything but the operators on the CPU."""
    assert scenario("language").result["difference"] <= 1e-5


@pytest.mark.parametrize("key_bytes", ["", "32"])
def test_a_rewritten_folder_keeps_recent_keys(scenario, key_bytes):
    """As GenAI runs it, with the last keys dense behind the rows of a shared buffer. The model rounds activations to
    int8, which makes much of a little rounding; the first layer's buffers have met none of it."""
    got = scenario("folder", "160", key_bytes).result
    assert got["difference"] <= 3e-2 and got["rows"] == [True, True]
    assert all(got["free"])


def test_a_fault_is_not_hidden(scenario):
    """A kernel that faults is the run's error, and nothing runs on the CPU instead."""
    got = scenario("plain", "1", GPU_SIM_FAIL="kernel:2:700", SCENARIO_ENDS_AT_ONCE="1")
    # The stand-in for the CUDA driver runs a kernel at once, so that the next call hears of it.
    told = "SparkExecutionProvider: .*" if driver.HIP else ""
    assert re.search(f"{told}failed: {driver.ILLEGAL_ADDRESS}", got.result["runs"][0])
    assert "Falling back" not in got.errors
