"""Kernels for a device that the library carries no code for: compiled by hipRTC once, then kept on disk."""

import pytest

# Wave64 as the device of the other tests, and known to the oldest hipRTC that may be installed.
OTHER = {"ROCM_SIM_ARCH": "gfx906:sramecc+:xnack-"}


def test_compiled_once_and_kept(scenario, tmp_path):
    """One compilation, which takes a while; whatever then happens to the file costs another, never an error."""
    kept = tmp_path / "cache/spark-ort/hip"
    first = scenario("plain", "1", **OTHER)
    if "No such file" in (first.result["session"] or ""):
        pytest.skip("no hipRTC on this machine: Debian has it in libamdhip64-5")
    assert first.result == {"session": None, "runs": [None]}
    assert len(first.lines("hiprtcCompileProgram")) == 1
    [file] = kept.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700 and file.stat().st_mode & 0o777 == 0o600

    second = scenario("plain", "1", **OTHER)
    assert second.result == first.result and not second.lines("hiprtcCompileProgram")

    # From here on, a compilation is seen by its failure, which is quick.
    fails = {**OTHER, "ROCM_SIM_FAIL": "hiprtcCompileProgram:1:6"}
    whole = file.read_bytes()
    for damaged in [whole[:-1], whole[:100], b"", whole[:200] + b"\0" + whole[201:]]:
        file.write_bytes(damaged)
        assert "no kernels for device 0, gfx906" in scenario("plain", **fails).result["session"]
    file.write_bytes(whole)
    file.chmod(0o666)
    assert "no kernels for device 0" in scenario("plain", **fails).result["session"]
    file.chmod(0o600)
    assert scenario("plain", "1", **fails).result == first.result

    # Code that the device refuses is forgotten.
    refuses = {**OTHER, "ROCM_SIM_FAIL": "hipModuleLoadData:1:209"}
    got = scenario("plain", "1", **{**refuses, "ROCM_SIM_NO_RTC": "1"})
    assert "no kernels" in got.result["session"] and not list(kept.iterdir())
