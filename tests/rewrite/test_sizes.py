"""Sizes beyond any machine, and outputs that cannot be written: refused at once, by the option."""

import pytest

from .command import ROOT, spark_ort
from .exports.build import BUNDLED

TEXT = ROOT / "src/rewrite/calibration.txt"
MOST = 2**30


def refused(*arguments):
    """What the program says on refusing these soon, before it measures anything."""
    done = spark_ort(*arguments, check=False, timeout=20)
    assert done.returncode in (1, 2) and done.stdout == "", done.stderr
    assert "a fault" not in done.stderr and "bad_alloc" not in done.stderr and "allocate" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--contexts", MOST, "--batch", 1024), f"--contexts {MOST} and --new 1 with --heads 32/8, --head-dim 128 and"),
        (("--new", MOST), f"--new {MOST} leaves no past token of --contexts 4096"),
        (("--heads", f"{2**64 - 1}/1"), f"--batch 1, --heads {2**64 - 1}/1 and --head-dim 128 are"),
        (("--batch", MOST), f"--batch {MOST}, --heads 32/8"),
        (("--head-dim", MOST), "must be a multiple of 8 from 32 to 256"),
        (("--head-dim", 100), "must be a multiple of 8 from 32 to 256"),
        (("--prefill", MOST), f"--prefill {MOST} with --heads 32/8"),
        (("--append", "--contexts", MOST), f"--append at --contexts {MOST}"),
        (("--settings", f"0.5/8/8+{2**64 - 1}"), "1048576 recent keys at most"),
        (("--settings", "basis64/8", "--heads", "65536/65536", "--contexts", 2), "2 GiB at most"),
        (("--json", "nowhere/layer.json"), "--json nowhere/layer.json: there is no folder nowhere"),
        (("--json", "/proc/layer.json"), "--json /proc/layer.json cannot be written"),
    ],
)
def test_of_a_layer(options, message):
    assert message in refused("bench", "attention", *options)


def test_of_models(exports, tmp_path):
    """In one line with what is needed and what there is."""
    for name in ("model.onnx", "model.onnx.data"):
        # Without the settings beside it, which limit the context.
        (tmp_path / name).symlink_to(exports[BUNDLED] / name)
    model = tmp_path / "model.onnx"
    needed = "needs 4096.00 GiB of memory, and"
    said = refused("generate", model, "--ids", "--prompt", "1", "-n", MOST)
    assert f"--max-new-tokens {MOST}: a cache of {MOST + 1} tokens {needed}" in said, said
    said = refused("eval", exports[BUNDLED], "--text", TEXT, "--shared-buffer", "--capacity", MOST)
    assert f"--capacity {MOST}: a cache of {MOST} tokens {needed}" in said, said
    said = refused("bench", "model", model, model, "--contexts", MOST)
    assert f"--contexts {MOST} and --new-tokens 32: a cache of {MOST + 32} tokens {needed}" in said, said


def test_of_the_context_that_a_folder_states(exports):
    said = refused("bench", "model", exports[BUNDLED], exports[BUNDLED], "--contexts", 8192)
    assert "--contexts 8192 and --new-tokens 32 need 8224 tokens, the context of" in said, said


def test_reports_in_no_folder(exports, tmp_path):
    for report in (tmp_path / "nowhere/report.json", "/proc/report.json"):
        said = refused("rewrite", exports[BUNDLED], tmp_path / "out", "--calibrate", "off", "--json", report)
        assert f"--json {report}" in said and not list(tmp_path.iterdir()), said
