"""Keys in a calibrated basis: what a rewritten model holds, what it costs, and what is refused."""

import json

import numpy as np
import onnx
import pytest

from .command import ROOT, inspect, rewrite, spark_ort

BASIS = ("--basis", "calibrated")
FEWER = ("--calibration-tokens", 1024)
TEXT = ROOT / "src/rewrite/calibration.txt"


@pytest.fixture(scope="module")
def model(exports, tmp_path_factory):
    """(rewritten model, report)"""
    target = tmp_path_factory.mktemp("basis") / "model.onnx"
    options = (*BASIS, "--key-bytes", 24, "--value-bits", 4, *FEWER)
    return target, rewrite(exports["genai-cpu-fp32"] / "model.onnx", target, *options)


def test_matrices_keep_products_and_sort_directions(model):
    graph = onnx.load(model[0], load_external_data=False).graph
    tensors = {t.name: t for t in graph.initializer}
    value = lambda node, i: onnx.numpy_helper.to_array(tensors[node.input[i]])  # noqa: E731
    found = 0
    for node in graph.node:
        if node.op_type == "SparkAttention":
            key, query, saliency = value(node, 13), value(node, 14), value(node, 11)
            product = np.einsum("hij,hkj->hik", key.astype(float), query.astype(float))
            assert np.abs(product - np.eye(key.shape[1])).max() < 1e-3
            assert (np.diff(saliency) <= 0).all() and (saliency > 0).all()
            attributes = {a.name: a.i for a in node.attribute}
            eight, four = attributes["key_directions_8"], attributes["key_directions_4"]
            two = attributes["kept_channels"] - eight - four
            assert 20 <= 2 + eight + (four + 1) // 2 + (two + 3) // 4 <= 24
            assert (attributes["row_format"], attributes["version"]) == (3, 2)
            prune = next(n for n in graph.node if n.op_type == "SparkPrune" and n.input[3] == node.input[3])
            assert [prune.input[i] for i in (11, 13)] == [node.input[i] for i in (11, 13)] and len(prune.input) == 14
            found += 1
    assert found == 4


def test_the_report_names_directions(model):
    path, report = model
    assert report["model"] == inspect(path)
    rows = report["model"]["layer_rows"] or [report["model"]["rows"]]
    assert {(r["row_format"], r["key_row_bytes"], r["recovery"]) for r in rows} == {(3, 24, "none")}
    assert all(sum(r["planes"].values()) == r["kept_channels"] for r in rows)
    assert "keys in a calibrated basis of 64 directions" in spark_ort("inspect", path).stdout
    assert not report["warnings"]


def test_error_is_less_than_of_pruned_channels_and_falls_with_bytes(exports):
    """Whether caches grow or share a buffer, whose tail then holds recent keys in the basis."""
    settings = "basis24/8+16,basis32/8+16,basis64/8+16,0.7/4/8+16:v2,0/16/8+16:v2"
    small = ("--contexts", 400, "--decode", 48, "--passages", 2, "--threads", 1, *FEWER)
    source = exports["genai-cpu-fp32"] / "model.onnx"
    for more in ((), ("--shared-buffer",)):
        done = spark_ort("eval", source, "--settings", settings, "--text", TEXT, "--json", "-", *small, *more)
        error = {row["name"]: row["divergence"]["value"] for row in json.loads(done.stdout)["rows"]}
        assert error["basis32/8+16"] < error["0.7/4/8+16:v2"], error
        assert error["basis64/8+16"] < error["basis32/8+16"] < error["basis24/8+16"], error
        assert error["basis64/8+16"] < error["0/16/8+16:v2"] + 1e-4, error


def test_a_folder_uses_all_of_its_rows(exports, tmp_path):
    report = rewrite(exports["genai-cpu-fp32"], tmp_path / "out", *BASIS, "--value-bits", 4, *FEWER)
    for r in report["model"]["layer_rows"] or [report["model"]["rows"]]:
        assert r["key_row_bytes"] == r["value_row_bytes"] == 36 and r["tail_window"] == 64
        planes = r["planes"]
        used = 2 + planes["eight"] + (planes["four"] + 1) // 2 + (planes["two"] + 3) // 4
        assert 33 <= used <= 36, planes


def test_a_recipe_mixes_bases_with_channels(exports, tmp_path):
    source = exports["genai-cpu-fp32"] / "model.onnx"
    layers = [{"layer": n, "ratio": 0.5, "key_bits": 8, "value_bits": 8} for n in range(4)]
    layers[2] = {"layer": 2, "ratio": 0, "key_bits": 8, "value_bits": 8, "row_format": 3, "key_bytes": 28}
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"spark_recipe": 1, "layers": layers}))
    report = rewrite(source, tmp_path / "out.onnx", "--recipe", recipe, *FEWER)
    rows = report["model"]["layer_rows"]
    assert [(r["row_format"], r["key_row_bytes"]) for r in rows] == [(1, 56), (1, 56), (3, 28), (1, 56)]


BASIS_LAYER = {"ratio": 0, "key_bits": 8, "value_bits": 8, "row_format": 3, "key_bytes": 28}


@pytest.mark.parametrize(
    "fields, problem",
    [
        ({"ratio": 0.5}, "ratio: 0.5, but row_format 3 prunes no channels of keys: it is to be 0"),
        ({"key_bits": 16}, "key_bits: 16, but row_format 3 has the bits that key_bytes have room for: it is to be 8"),
        ({"key_bytes": None}, "missing field `key_bytes`, the size of a key row of row_format 3"),
        ({"key_bytes": 72}, "key_bytes: 72 is not a multiple of 4 from 8 to 68, as heads of 64 channels need"),
        ({"value_bits": 5}, "value_bits: 5 is not 16, 8 or 4"),
        ({"row_format": 2}, "key_bytes: only a calibrated basis has rows of a size to be chosen"),
    ],
)
def test_a_recipe_says_what_is_written(fields, problem, exports, tmp_path):
    layers = [{"layer": n, **BASIS_LAYER} for n in range(4)]
    layers[2].update(fields)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"spark_recipe": 1, "layers": layers}))
    source = exports["genai-cpu-fp32"] / "model.onnx"
    done = rewrite(source, tmp_path / "out.onnx", "--recipe", recipe, *FEWER, check=False)
    assert done.returncode == 1 and f"--recipe: {recipe}: layer 2: {problem}" in done.stderr, done.stderr
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "options, problem",
    [
        (("--calibrate", "off"), "calibrate: a basis is found by calibration"),
        (("--calibrate", "random"), "calibrate: a basis from random tokens"),
        (("--calibration-tokens", 100), "calibrate: 100 tokens of the bundled sample, but a basis needs 512"),
        (("--key-bytes", 30), "key-bytes: 30 is not a multiple of 4 from 8 to 68"),
        (("--key-bytes", 72), "key-bytes: 72 is not"),
        (("--ratio", 0.5), "cannot be used with"),
        (("--recovery", "none"), "cannot be used with"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_options_that_do_not_fit_are_refused(options, problem, dry, exports, tmp_path):
    source = exports["genai-cpu-fp32"] / "model.onnx"
    done = rewrite(source, tmp_path / "out.onnx", *BASIS, *options, *dry, check=False)
    assert problem in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_key_bytes_alone_are_refused(exports, tmp_path):
    done = rewrite(exports["genai-cpu-fp32"] / "model.onnx", tmp_path / "out.onnx", "--key-bytes", 32, check=False)
    assert "--basis" in done.stderr


def test_its_format_alone_is_refused(exports, tmp_path):
    done = rewrite(exports["genai-cpu-fp32"] / "model.onnx", tmp_path / "out.onnx", "--row-format", 3, check=False)
    assert "are asked for by --basis calibrated" in done.stderr


def test_keys_that_are_rotated_elsewhere_are_refused(exports, tmp_path):
    done = rewrite(exports["optimum-fp32"] / "model.onnx", tmp_path / "out.onnx", *BASIS, *FEWER, check=False)
    assert "expected attention that rotates its keys, as with do_rotary" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_for_a_gpu(exports, tmp_path):
    given = (*BASIS, *FEWER, "--provider", "SparkExecutionProvider")
    report = rewrite(exports["genai-cpu-fp32"], tmp_path / "out", *given)
    assert report["model"]["rows"]["row_format"] == 3
    config = json.loads((tmp_path / "out/genai_config.json").read_text())
    assert "SparkExecutionProvider" in json.dumps(config["model"]["decoder"]["session_options"])


def test_a_dry_run_knows_the_size_alone(exports, tmp_path):
    report = rewrite(exports["genai-cpu-fp32"] / "model.onnx", tmp_path / "out.onnx", *BASIS, "--dry-run")
    assert report["output"] is None and report["model"]["rows"]["key_row_bytes"] == 32
    assert "planes" not in report["model"]["rows"]
