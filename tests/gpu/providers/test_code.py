"""Kernels for a device that the library carries no code for: compiled once by hipRTC or NVRTC, then kept on disk."""

import driver
import pytest

# Wave64 as the device of the other tests, and known to the oldest hipRTC that may be installed.
OTHER = {"GPU_SIM_ARCH": "gfx906:sramecc+:xnack-"} if driver.HIP else {}
ARCH = "gfx906" if driver.HIP else "sm_90"


def test_compiled_once_and_kept(scenario, tmp_path):
    """One compilation, which takes a while; whatever then happens to the file costs another, never an error."""
    kept = tmp_path / "cache/spark-ort" / driver.FOLDER
    first = scenario("plain", "1", **OTHER)
    if "No such file" in (first.result["session"] or ""):
        pytest.skip("no hipRTC on this machine: Debian has it in libamdhip64-5")
    assert first.result == {"session": None, "runs": [None]}
    if not driver.HIP and not first.lines(driver.COMPILE):
        pytest.skip("the library carries code for NVIDIA GPUs")
    assert len(first.lines(driver.COMPILE)) == 1
    [file] = kept.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700 and file.stat().st_mode & 0o777 == 0o600

    second = scenario("plain", "1", **OTHER)
    assert second.result == first.result and not second.lines(driver.COMPILE)

    # From here on, a compilation is seen by its failure, which is quick.
    fails = {**OTHER, "GPU_SIM_FAIL": f"{driver.COMPILE}:1:6"}
    whole = file.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]
    for damaged in [whole[:-1], whole[:100], b"", changed]:
        file.write_bytes(damaged)
        assert f"no kernels for device 0, {ARCH}" in scenario("plain", **fails).result["session"]
    file.write_bytes(whole)
    file.chmod(0o666)
    assert "no kernels for device 0" in scenario("plain", **fails).result["session"]
    file.chmod(0o600)
    assert scenario("plain", "1", **fails).result == first.result

    # Code that the device refuses is forgotten.
    refuses = {**OTHER, "GPU_SIM_FAIL": f"{driver.LOAD}:1:209"}
    got = scenario("plain", "1", **{**refuses, "GPU_SIM_NO_RTC": "1"})
    assert "no kernels" in got.result["session"] and not list(kept.iterdir())
