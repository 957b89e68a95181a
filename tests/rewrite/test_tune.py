"""`spark-ort tune` finds settings by layer within a budget, and what it measures is what the operators do."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .command import ROOT, binary_path, environment, inspect, rewrite, session, spark_ort
from .exports.build import BUNDLED
from .exports.drive import Driver

TEXT = ROOT / "src/rewrite/calibration.txt"
LAYERS, KV_HEADS, ORIGINAL = 4, 2, 4096
SMALL = {"--context": 192, "--decode": 16, "--passages": 1, "--verify": 2, "--verify-decode": 32, "--threads": 1,
         "--calibration-tokens": 512, "--text": TEXT}
CANDIDATES = ("--candidates", "0.5/8/8,0.5/4/4,0.8/4/4")


def small(*options):
    """Options, and those of SMALL that are not among them."""
    return [*options, *(x for name, value in SMALL.items() if name not in options for x in (name, value))]


def tune(model, output, *options):
    return json.loads(spark_ort("tune", model, "--output", output, *small(*options), "--json", "-").stdout)


@pytest.fixture(scope="module")
def tuned(exports, tmp_path_factory):
    """The recipe of a file, and the report."""
    recipe = tmp_path_factory.mktemp("tuned") / "recipe.json"
    return recipe, tune(exports["optimum-fp32"] / "model.onnx", recipe, "--budget", "0.22", *CANDIDATES)


def test_a_recipe_is_within_its_budget_and_runs(exports, tuned, tmp_path):
    """What rewriting by it gives is what was promised; a model with more room has less error."""
    recipe, report = tuned
    assert report["original_bytes_per_token"] == ORIGINAL and report["budget"] == int(0.22 * ORIGINAL)
    out = tmp_path / "out.onnx"
    rewritten = rewrite(exports["optimum-fp32"] / "model.onnx", out, "--recipe", recipe, "--calibration-tokens", 512)
    found = rewritten["model"]
    assert found["bytes_per_token"] <= report["budget"] and found == inspect(out)
    stated = json.loads(recipe.read_text())
    assert stated["model"] == {"layers": LAYERS, "head_dim": 64, "kv_heads": KV_HEADS}
    rows = found.get("layer_rows") or [found["rows"]] * LAYERS
    keys = ("ratio", "key_bits", "value_bits")
    assert [[r[key] for key in keys] for r in rows] == [[layer[key] for key in keys] for layer in stated["layers"]]
    logits = Driver(session(out)).feed(np.arange(40)[None])
    assert np.isfinite(logits).all()


def test_the_choice_is_the_best_of_all(tuned):
    """Over every combination of what was measured."""
    _, report = tuned
    costs = np.array([[np.inf if x is None else x for x in layer["divergence"]] for layer in report["layers"]])
    size = KV_HEADS * np.array([c["key_row_bytes"] + c["value_row_bytes"] for c in report["candidates"]])
    grid = np.indices((len(size),) * LAYERS).reshape(LAYERS, -1)
    total = sum(costs[layer][grid[layer]] for layer in range(LAYERS))
    within = size[grid].sum(0) <= report["budget"]
    assert within.any() and np.isclose(total[within].min(), report["expected_divergence"])
    chosen = [layer["chosen"] for layer in report["layers"]]
    assert size[chosen].sum() == report["bytes_per_token"] <= report["budget"]
    names = [c["name"] for c in report["candidates"]]
    lossless = names.index("0/16/16")
    assert "do_rotary" in report["no_basis"] and not any(name.startswith("basis") for name in names)
    assert not costs[:, lossless].any() and (costs >= 0).all() and costs.max() > 0


def test_the_better_one_is_written(tuned):
    """The recipe, where it is better than every setting of the same bytes in all layers, else the best of those."""
    recipe, report = tuned
    verified = report["verification"]
    error = {row["name"]: row["divergence"]["value"] for row in verified["rows"]}
    best = min(set(error) - {"original", "recipe"}, key=error.get)
    assert error["original"] == 0 and verified["best_uniform"] == best
    assert np.isclose(verified["change"]["value"], error["recipe"] - error[best])
    assert all(row["bytes_per_token"] <= report["budget"] for row in verified["rows"][1:])
    layers = json.loads(recipe.read_text())["layers"]
    written = ["/".join(f"{layer[key]:g}" for key in ("ratio", "key_bits", "value_bits")) for layer in layers]
    chosen = [report["candidates"][layer["chosen"]]["name"] for layer in report["layers"]]
    expected = chosen if verified["change"]["high"] < 0 else [best] * LAYERS
    assert written == expected


@pytest.mark.parametrize("name, recent", [("optimum-fp32", 0), ("genai-cuda-fp16", 16)])
def test_a_layer_is_measured_as_the_operators_run_it(name, recent, exports, tmp_path):
    """What is computed beside a model without loss agrees with a model that is rewritten so, by its own logits."""
    model, recipe = exports[name] / "model.onnx", tmp_path / "recipe.json"
    options = (*CANDIDATES, "--budget", 1000, "--recent", recent, "--verify", 0, "--calibrate", "off")
    report = tune(model, recipe, *options)
    names = [candidate["name"] for candidate in report["candidates"]]
    lossless = {"ratio": 0, "key_bits": 16, "value_bits": 16}
    base = tmp_path / "base.onnx"
    off = ("--calibrate", "off", "--recent", recent, "--cache-type", "uint8")
    rewrite(model, base, *off, "--ratio", 0, "--key-bits", 16, "--value-bits", 16)
    for layer, setting in ((0, "0.5/4/4"), (3, "0.8/4/4")):
        ratio, bits, _ = setting.split("/")
        lossy = {"ratio": float(ratio), "key_bits": int(bits), "value_bits": int(bits)}
        layers = [{"layer": i, **(lossy if i == layer else lossless)} for i in range(LAYERS)]
        recipe.write_text(json.dumps({"spark_recipe": 1, "layers": layers}))
        out = tmp_path / f"{layer}.onnx"
        rewrite(model, out, *off, "--recipe", recipe)
        options = ("--contexts", 192, "--decode", 16, "--passages", 1, "--threads", 1, "--text", TEXT)
        options += ("--tokenizer", model.with_name("tokenizer.json"))
        [_, row] = json.loads(spark_ort("eval", base, out, *options, "--json", "-").stdout)["rows"]
        measured = report["layers"][layer]["divergence"][names.index(setting)]
        assert measured > 1e-5 and np.isclose(measured, row["divergence"]["value"], rtol=0.1), (setting, measured, row)


def test_a_basis_is_measured_as_the_operators_run_it(exports, tmp_path):
    """Beside pruned channels, and one that takes just the budget in all layers."""
    model, recipe = exports["genai-cpu-fp32"] / "model.onnx", tmp_path / "recipe.json"
    options = ("--candidates", "0.5/4/4,basis20/8", "--budget", 700, "--recent", 8, "--verify", 0)
    report = tune(model, recipe, *options)
    names = [candidate["name"] for candidate in report["candidates"]]
    # 87 bytes for each of two KV heads in four layers; a value of 4 bits takes 36.
    assert report["no_basis"] is None and {"basis20/8", "basis48/4"} <= set(names), names
    out, base = tmp_path / "out.onnx", tmp_path / "base.onnx"
    more = ("--recent", 8, "--cache-type", "uint8", "--calibration-tokens", SMALL["--calibration-tokens"])
    lossless = {"ratio": 0, "key_bits": 16, "value_bits": 16}
    rewrite(model, base, *more, "--ratio", 0, "--key-bits", 16, "--value-bits", 16)
    layers = [{"layer": n, **lossless} for n in range(LAYERS)]
    layers[1] = {"layer": 1, "ratio": 0, "key_bits": 8, "value_bits": 8, "row_format": 3, "key_bytes": 20}
    recipe.write_text(json.dumps({"spark_recipe": 1, "layers": layers}))
    rewrite(model, out, *more, "--recipe", recipe)
    options = ("--contexts", 192, "--decode", 16, "--passages", 1, "--threads", 1, "--text", TEXT)
    options += ("--tokenizer", model.with_name("tokenizer.json"))
    [_, row] = json.loads(spark_ort("eval", base, out, *options, "--json", "-").stdout)["rows"]
    measured = report["layers"][1]["divergence"][names.index("basis20/8")]
    assert measured > 1e-5 and np.isclose(measured, row["divergence"]["value"], rtol=0.1), (measured, row)


def test_a_budget_below_all_candidates_is_filled(exports, tmp_path):
    """By what is tried beside them: the same bits with a larger ratio, and a basis."""
    model, recipe = exports["genai-cpu-fp32"] / "model.onnx", tmp_path / "recipe.json"
    # Eight rows of keys and of values; the only candidate takes 992 bytes.
    options = ("--candidates", "0.5/8/8", "--verify", 0, "--force")
    for budget, more, filled in ((700, (), {"basis16/8"}), (820, ("--no-basis",), {"0.8438/8/8"})):
        report = tune(model, recipe, *options, "--budget", budget, *more)
        assert filled <= {candidate["name"] for candidate in report["candidates"]}, report["candidates"]
        assert report["bytes_per_token"] <= budget
        rewritten = rewrite(model, tmp_path / f"{budget}.onnx", "--recipe", recipe, "--calibration-tokens", 512)
        assert rewritten["model"]["bytes_per_token"] == report["bytes_per_token"]


def test_a_basis_is_tried_but_not_against_a_request(exports, tmp_path):
    quick = ("--budget", "0.5", "--candidates", "0.5/4/4", "--verify", 0, "--context", 64, "--decode", 2)
    report = tune(exports["genai-cuda-fp16"], tmp_path / "recipe.json", *quick)
    assert report["no_basis"] is None
    assert any(candidate["name"].startswith("basis") for candidate in report["candidates"])
    without = tune(exports["genai-cpu-fp32"], tmp_path / "other.json", *quick, "--no-basis")
    assert without["no_basis"] is None
    assert not any(candidate["name"].startswith("basis") for candidate in without["candidates"])


def test_a_folder_has_rows_of_one_size(exports, tmp_path):
    """What GenAI needs; layers differ in what their rows hold."""
    recipe = tmp_path / "recipe.json"
    report = tune(exports["genai-cpu-fp32"], recipe, "--budget", "0.28")
    assert "basis68/8" in [candidate["name"] for candidate in report["candidates"]]
    assert report["uniform_rows"] and report["recent"] == 64
    sizes = {size for c in report["candidates"] for size in (c["key_row_bytes"], c["value_row_bytes"])}
    assert sizes == {68}, "the largest that has room for 0.28 of 4,096 bytes in 16 rows"
    assert len({(c["kept_channels"], c["name"]) for c in report["candidates"]}) == len(report["candidates"]) > 2
    more = ("--recipe", recipe, "--calibration-tokens", 512)
    found = rewrite(exports["genai-cpu-fp32"], tmp_path / "out", *more)["model"]
    assert found["bytes_per_token"] == report["bytes_per_token"] == 16 * 68
    assert {layer["key"]["width"] for layer in found["interface"]["layers"]} == {17}


def test_groups_share_a_setting(exports, tmp_path):
    recipe = tmp_path / "recipe.json"
    options = ("--budget", 900, "--group", 3, "--verify", 0, *CANDIDATES)
    report = tune(exports[BUNDLED] / "model.onnx", recipe, *options)
    assert [(layer["first_layer"], layer["last_layer"]) for layer in report["layers"]] == [(0, 2), (3, 3)]
    stated = json.loads(recipe.read_text())
    first, second, third = ({k: v for k, v in layer.items() if k != "layer"} for layer in stated["layers"][:3])
    assert first == second == third and "not verified" in stated["about"]


def test_people_get_tables(exports, tmp_path):
    recipe = tmp_path / "recipe.json"
    options = small("--budget", "22%", "--candidates", "0.5/4/4,0.5/4/4:v2", "--recent", 8)
    text = spark_ort("tune", exports[BUNDLED] / "model.onnx", "--output", recipe, *options).stdout
    for part in ("budget       901 bytes per token, 22.0 % of 4096", "0.5/4/4:v2", "layer 3", "* chosen", "KL, nats",
                 f"written      {recipe}: ", f"OUT --recipe {recipe} --recent 8"):
        assert part in text, part


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "0"), "neither a number of bytes"),
        (("--budget", "150%"), "neither a number of bytes"),
        (("--budget", "100"), "100 bytes per token are too few: the smallest setting that is tried, basis8/4, takes"),
        (("--budget", "351"), "the smallest setting that is tried, basis8/4, takes 352"),
        (("--budget", "100", "--no-basis"), "the smallest setting that is tried, 0.8125/4/4, takes 544"),
        (("--budget", "4000"), "are enough for rows without loss, which take 2208"),
        (("--budget", "900", "--candidates", "0.5/8/7"), "7 is not 16, 8 or 4"),
        (("--budget", "900", "--candidates", "0.5/8/8+16"), "--recent says how many"),
        (("--budget", "900", "--candidates", "basis500/8"),
         "--candidates basis500/8: key bytes: 500 is not a multiple of 4 from 8 to 68, as heads of 64 channels need"),
        (("--budget", "900", "--candidates", "basis32/8", "--no-basis"), "basis32/8: --no-basis is given too"),
        (("--budget", "900", "--group", "0"), "--group is 0"),
        (("--budget", "900", "--passages", "9999"), "take a longer text, or shorter prompts"),
        (("--budget", "900", "--context", "99999"), "the model's context is"),
        (("--budget", "900", "--decode", str(2**64 - 1)), "at most 1073741824 tokens can be asked for"),
        (("--budget", "900", "--verify-decode", str(2**30)), "the model's context is"),
        (("--budget", "900", "--output", "nowhere/recipe.json"), "there is no folder nowhere"),
        (("--budget", "900", "--output", "out.json", "--json", "out.json"), "out.json is a file that is read or made"),
        (("--budget", "900", "--output", "-", "--json", "-"), "--output - and --json - cannot both be stdout"),
    ],
)
def test_what_cannot_be_tuned_is_refused(exports, tmp_path, options, message):
    if "--output" not in options:
        options += ("--output", tmp_path / "recipe.json")
    done = spark_ort("tune", exports["genai-cpu-fp32"] / "model.onnx", *small(*options), check=False)
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
    # Only the smallest and the largest budget depend on what calibration finds.
    assert "error: --budget: " in done.stderr or "calibrating" not in done.stderr, done.stderr


def test_a_recipe_goes_to_stdout(exports, tmp_path):
    options = small("--output", "-", "--budget", "0.22", "--verify", 0, *CANDIDATES)
    done = spark_ort("tune", exports["optimum-fp32"] / "model.onnx", *options, cwd=tmp_path)
    assert len(json.loads(done.stdout)["layers"]) == LAYERS and not list(tmp_path.iterdir())


def test_a_basis_that_cannot_be_is_refused_at_once(exports, tmp_path):
    """Before anything is calibrated."""
    options = small("--budget", 900, "--candidates", "basis32/8", "--output", tmp_path / "recipe.json")
    done = spark_ort("tune", exports["optimum-fp32"] / "model.onnx", *options, check=False)
    assert done.returncode == 1 and "--candidates basis32/8: basis: " in done.stderr and "do_rotary" in done.stderr
    assert "calibrating" not in done.stderr and not list(tmp_path.iterdir())


def test_other_files_are_left_alone(exports, tmp_path):
    """An output that exists, and a model that is rewritten already."""
    (tmp_path / "recipe.json").write_text("mine")
    options = small("--output", tmp_path / "recipe.json", "--budget", 900)
    done = spark_ort("tune", exports[BUNDLED], *options, check=False)
    assert done.returncode == 1 and "exists; --force replaces it" in done.stderr
    out = tmp_path / "out.onnx"
    rewrite(exports["optimum-fp32"] / "model.onnx", out, "--calibrate", "off")
    done = spark_ort("tune", out, *options, "--force", check=False)
    assert done.returncode == 1 and "is rewritten already" in done.stderr
    assert (tmp_path / "recipe.json").read_text() == "mine"


@pytest.mark.parametrize("complete", [False, True])
def test_an_interrupt_keeps_what_there_is(complete, exports, tmp_path):
    """After a whole passage a recipe, which is not verified; before that none."""
    recipe = tmp_path / "recipe.json"
    options = small("--passages", 30, "--verify", 1, "--budget", "0.22", "--output", recipe)
    command = [str(argument) for argument in (binary_path(), "tune", exports["optimum-fp32"] / "model.onnx", *options)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("passage 2: layer 1" if complete else "passage 1: layer 1"):
            break
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and recipe.exists() == complete
    assert ("not verified" if complete else "no recipe is written") in text
    if complete:
        assert "1 passages" in text and len(json.loads(recipe.read_text())["layers"]) == LAYERS


def test_rounded_activations_hide_nothing(exports, tmp_path):
    """Weights of 4 bits round activations to int8, which adds more to any change than 8 bits of a cache cost."""
    options = ("--budget", "0.45", "--candidates", "0/8/8,0.5/4/4", "--verify", 0)
    report = tune(exports[BUNDLED] / "model.onnx", tmp_path / "recipe.json", *options)
    names = [candidate["name"] for candidate in report["candidates"]]
    least, more = ([layer["divergence"][names.index(name)] for layer in report["layers"]]
                   for name in ("0/8/8", "0.5/4/4"))
    assert max(least) < 1e-4 and all(a < b / 10 for a, b in zip(least, more))
