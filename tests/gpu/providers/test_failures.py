"""Errors of the driver become errors of ONNX Runtime that say which node and which call."""

import re

import driver
import pytest


@pytest.mark.parametrize("nth,operator", [(1, "SparkPrune"), (4, "SparkAttention")])
@pytest.mark.parametrize("code", [719, 2])
def test_a_launch_fails(scenario, nth, operator, code):
    """The call fails; the next one works."""
    first, second = scenario("plain", GPU_SIM_FAIL=f"{driver.LAUNCH}:{nth}:{code}").result["runs"]
    assert second is None
    failed = rf"{driver.LAUNCH} of spark_\w+ \(grid .*\) failed: {driver.ERRORS[code]} \({code}\)"
    assert re.search(rf"{operator}_node': {failed}", first)


def test_a_kernel_faults(scenario):
    """What happens on the device later is what ONNX Runtime hears of when it waits."""
    got = scenario("plain", "1", GPU_SIM_FAIL="kernel:2:700", SCENARIO_ENDS_AT_ONCE="1")
    assert "illegal memory access" in got.result["runs"][0]


def test_memory_runs_out(scenario):
    """Whichever allocation is the first to fail, it is an error; those that an operator makes name its node."""
    messages = []
    for nth in range(1, 40):
        got = scenario("exact", GPU_SIM_FAIL=f"{driver.ALLOCATE}:{nth}+:2")
        if not got.lines("injected"):
            break
        messages.append(got.result["session"] or got.result["runs"][0])
    assert len(messages) > 8 and all(messages)
    for words in ["SparkPrune_node': output present_key", "SparkAttention_node': output output"]:
        assert any(words in m for m in messages), messages
    assert any(
        re.search(r"Spark\w+_node': no device memory for a workspace of \d+ bytes", m) for m in messages
    ), messages


def test_no_memory_to_unpack_rows(scenario):
    """Each block of queries decodes them then, to the same numbers."""
    whole = scenario("long_piece")
    assert whole.result["error"] is None
    # The last memory that is taken before the rows are unpacked.
    unpacks = next(i for i, line in enumerate(whole.trace) if line.startswith("launch spark_unpack_64"))
    workspace = sum(line.startswith(driver.MEMORY[0]) for line in whole.trace[:unpacks])
    # Who asks the driver, asks again once it has given back what it does not need.
    got = scenario("long_piece", GPU_SIM_FAIL=f"{driver.ALLOCATE}:{workspace}-{workspace + 1}:2")
    assert got.lines("injected") and not got.lines("launch spark_unpack_64")
    assert got.result == whole.result


def test_less_memory_than_the_inputs(scenario):
    got = scenario("plain", "1", GPU_SIM_MEMORY="40000")
    # ONNX Runtime's own words where an allocator of a plugin gives nothing.
    assert re.search("memory|Allocation failed", got.result["session"] or got.result["runs"][0])


def test_a_device_that_is_gone(scenario):
    """When a session is made. ONNX Runtime's own provider for ROCm asks for the device before the operators do."""
    nth = 3 if driver.PROVIDER == "ROCMExecutionProvider" else 1
    message = scenario("plain", GPU_SIM_FAIL=f"{driver.PROPERTIES}:{nth}:100").result["session"]
    call = "hipGetDeviceProperties(0)" if driver.HIP else "cuDeviceGetAttribute(75)"
    assert f"_node': {call} failed: {driver.ERRORS[100]} (100)" in message


def test_no_code_for_the_device(scenario):
    """The error says which device it is, what the library has and what to install."""
    arch, package = ("gfx906", "hip-runtime-amd") if driver.HIP else ("sm_90", "NVRTC")
    got = scenario("plain", GPU_SIM_ARCH="gfx906", GPU_SIM_FAIL=f"{driver.COMPILE}:1:6")
    message = got.result["session"]
    if not driver.HIP and not got.lines("injected"):
        pytest.skip("the library carries code for NVIDIA GPUs")
    assert re.search(f"Spark(Prune|Attention)_node': no kernels for device 0, {arch}: ", message)
    carried = ["kernels for gfx90a", "SPARK_HIP_ARCHS=gfx906"] if driver.HIP else []
    for words in [f"{driver.COMPILE} for {arch} returned", package, *carried]:
        assert words in message, message


def test_addresses(scenario):
    """Device memory that kernels could not read, or would overwrite, is refused before anything is launched."""
    got = scenario("addresses").result
    assert got["right"] is None and got["shared"] is None
    assert "input 0 (query)" in got["odd query"] and "multiple of 4" in got["odd query"]
    assert "input 3 (past_key)" in got["odd past_key"] and "multiple of 4" in got["odd past_key"]
    assert "output present_key: shares part of the memory of past_key" in got["partly shared"]
    assert "output present_key: shares memory with past_value" in got["crossed"]
    assert "output output: shares memory with query" in got["output over query"]


def test_what_the_host_cannot_see(scenario):
    """Positions beyond the caches read their nearest rows, invalid saliencies read as 1."""
    assert scenario("unchecked").result == {"positions": True, "saliency": True}
