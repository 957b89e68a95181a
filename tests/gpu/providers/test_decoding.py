"""Decoding on an execution provider with a GPU, the cache in device memory."""

import driver
import pytest

TYPES = [("f32", "f32"), ("f32", "u8"), ("f16", "f16"), ("f16", "u8")]
TOLERANCE = {"f32": 1e-5, "f16": 2e-3}
# Of ONNX Runtime's names of kernels, the ones that a step of decoding may have.
PLACED = [["SparkAttention", driver.PROVIDER], ["SparkPrune", driver.PROVIDER]]


def runs(trace):
    """The lines of each run on the GPU."""
    found, inside = [], None
    for line in trace:
        if line.startswith("-- run"):
            inside = []
            found.append(inside)
        elif line.startswith("-- done"):
            inside = None
        elif inside is not None:
            inside.append(line)
    return [lines for lines in found if any(line.startswith("launch") for line in lines)]


@pytest.mark.parametrize("T,C", TYPES)
def test_results_are_the_cpu_providers(scenario, T, C):
    """The same rows to the byte, outputs within rounding; every node on the GPU."""
    got = scenario("shared", T, C)
    assert got.result["placed"] == PLACED
    assert got.result["rows"] == [True, True]
    assert got.result["difference"] <= TOLERANCE[T]


def test_more_sequences_than_fit_one_launch(scenario):
    got = scenario("shared", "f32", "u8", "0", "67")
    assert got.result["rows"] == [True, True] and got.result["difference"] <= TOLERANCE["f32"]


@pytest.mark.parametrize("C", ["u8", "bf16"])
def test_bfloat16(scenario, C):
    for step in scenario("bfloat16", C).result:
        assert step["rows"] == [True, True]
        assert step["difference"] <= 8e-3


def test_one_stream_and_no_wait(scenario):
    """All kernels go to the session's stream. Between the first and the last one of a run, nobody waits and nothing is
    copied; past rows are not either. The first run may take memory from the driver."""
    steps, streams = runs(scenario("shared").trace), set()
    assert len(steps) == 8
    for number, step in enumerate(steps):
        step = [line for line in step if number or not line.startswith(driver.MEMORY)]
        kernels = [i for i, line in enumerate(step) if line.startswith("launch")]
        assert len(kernels) >= 2
        streams.update(line.split()[3] for line in step if line.startswith("launch"))
        between = step[kernels[0]:kernels[-1]]
        assert all(line.startswith("launch") for line in between), between
        assert not any("spark_grow" in line for line in step)
    assert len(streams) == 1 and "null" not in streams


def test_decoding_copies_only_lengths_and_no_memory_is_taken(scenario):
    """What the host gives is on the device already, lengths aside, which stay on the host. The first call may take
    memory from the driver."""
    steps = runs(scenario("shared").trace)
    assert len(steps) == 8
    for number, step in enumerate(steps):
        assert not [line for line in step if line.startswith(("copy", *(driver.MEMORY if number else ())))]


@pytest.mark.parametrize("device", [0, 1])
def test_the_sessions_device(scenario, device):
    got = scenario("shared", "f16", "u8", str(device), GPU_SIM_DEVICES="2")
    assert got.result["placed"] == PLACED and got.result["rows"] == [True, True]
    assert [line.split()[2] for line in got.lines(driver.LOAD)] == [str(device)]


def test_a_device_loads_kernels_once(scenario):
    got = scenario("sessions", "0,1,0,1", GPU_SIM_DEVICES="2")
    assert got.result["equal"]
    assert sorted(line.split()[2] for line in got.lines(driver.LOAD)) == ["0", "1"]


@pytest.mark.skipif(not driver.HIP, reason="NVIDIA GPUs have no other waves")
def test_waves_of_32(scenario):
    """As RDNA has, whose code hipRTC compiles: the kernels for a device with matrix cores are others."""
    rdna = {"GPU_SIM_ARCH": "gfx1030", "GPU_SIM_WAVE": "32"}
    if "No such file" in (scenario("plain", "1", **rdna).result["session"] or ""):
        pytest.skip("no hipRTC on this machine: Debian has it in libamdhip64-5")
    got = scenario("shared", "f16", "u8", **rdna)
    assert got.result["rows"] == [True, True] and got.result["difference"] <= TOLERANCE["f16"]
    assert got.lines("launch spark_prefill_128") and not any("quantised" in line for line in got.trace)
