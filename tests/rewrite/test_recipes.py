"""`spark-ort rewrite --recipe`: ratio, bits and row format by layer."""

import json
import shutil

import numpy as np
import onnx
import pytest

from .command import inspect, rewrite, session, spark_ort
from .exports.drive import Driver, decode
from .exports.prompts import load

OFF = ("--calibrate", "off")
LAYERS = 4
# One setting a layer: ratio, bits of keys and of values, row format.
MIXED = [(0, 16, 16, 1), (0.5, 8, 8, 1), (0.5, 8, 4, 2), (0.7, 4, 4, 1)]


def recipe(path, settings, **fields):
    names = ("ratio", "key_bits", "value_bits", "row_format")
    layers = [{"layer": number, **dict(zip(names, setting))} for number, setting in enumerate(settings)]
    path.write_text(json.dumps({"spark_recipe": 1, "layers": layers, **fields}))
    return path


def options(setting):
    return [x for pair in zip(("--ratio", "--key-bits", "--value-bits", "--row-format"), setting) for x in pair]


def operators(path):
    """Attributes of each layer's two operators."""
    nodes = [n for n in onnx.load(path, load_external_data=False).graph.node if n.domain == "ai.spark"]
    layers = {int(n.input[3].split(".")[1]): {} for n in nodes}
    for node in nodes:
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        layers[int(node.input[3].split(".")[1])][node.op_type] = found
    return [layers[i] for i in range(LAYERS)]


@pytest.fixture(scope="module")
def single(exports, tmp_path_factory):
    """single(name, number, *options): the path of an export with one setting of MIXED in all layers."""

    def get(name, number, *more):
        target = tmp_path_factory.mktemp("single") / "model.onnx"
        rewrite(exports[name] / "model.onnx", target, *OFF, *options(MIXED[number]), *more)
        return target

    return get


def test_equal_layers_are_one_setting(exports, tmp_path):
    """Not a byte differs from a model that was rewritten by options."""
    source, setting = exports["optimum-fp32"] / "model.onnx", (0.7, 4, 4, 1)
    rewrite(source, tmp_path / "a.onnx", *options(setting), "--recent", 16)
    rewrite(source, tmp_path / "b.onnx", "--recipe", recipe(tmp_path / "r", [setting] * LAYERS), "--recent", 16)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("name", ["optimum-fp32", "genai-cpu-fp32", "dynamo23-fp32"])
def test_each_layer_is_as_if_it_were_all(name, exports, single, tmp_path):
    """Attributes, and, after a prompt, whose attention is exact, the rows bit for bit; inspect says them."""
    target = tmp_path / "model.onnx"
    file = recipe(tmp_path / "recipe.json", MIXED, about="a test")
    report = rewrite(exports[name] / "model.onnx", target, *OFF, "--recipe", file)
    alone = [single(name, number) for number in range(LAYERS)]
    attributes = operators(target)
    assert attributes == [operators(alone[layer])[layer] for layer in range(LAYERS)]
    model = onnx.load(target, load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import}["ai.spark"] == 2

    tokens = np.array([load()[0]["tokens"]])
    mixed = Driver(session(target))
    mixed.feed(tokens)
    for layer, path in enumerate(alone):
        other = Driver(session(path))
        other.feed(tokens)
        for part in ("key", "value"):
            past = f"past_key_values.{layer}.{part}"
            assert mixed.cache[past].tobytes() == other.cache[past].tobytes(), (layer, part)

    found = inspect(target)
    assert found == report["model"] and found["rows"] == found["layer_rows"][0]
    keys = ("ratio", "key_bits", "value_bits", "row_format")
    assert [tuple(rows[key] for key in keys) for rows in found["layer_rows"]] == MIXED
    widths = [(r["key_row_bytes"], r["value_row_bytes"]) for r in found["layer_rows"]]
    assert widths == [(148, 128), (56, 68), (56, 36), (32, 40)]
    layers = found["interface"]["layers"]
    assert [(l["key"]["width"] * 4, l["value"]["width"] * 4) for l in layers] == widths
    assert found["bytes_per_token"] == 2 * sum(map(sum, widths))
    text = spark_ort("inspect", target).stdout
    assert "rows         by layer\n  0          ratio 0: 64 of 64 key channels at 16 bits" in text
    expected = "ratio 0.5: 32 of 64 key channels at 8 bits, values at 4 bits, row format 2; 56 + 36 bytes per token"
    assert f"\n  2          {expected}" in text


def test_equal_neighbours_are_one_line(exports, tmp_path):
    file = recipe(tmp_path / "recipe.json", [MIXED[1], MIXED[1], MIXED[1], MIXED[3]])
    rewrite(exports["optimum-fp32"] / "model.onnx", tmp_path / "out.onnx", *OFF, "--recipe", file, "--recent", 8)
    text = spark_ort("inspect", tmp_path / "out.onnx").stdout
    assert "\n  0 to 2     ratio 0.5" in text and "\n  3          ratio 0.7" in text
    assert "\n             the last 8 keys also dense (" in text


def test_a_mixed_model_answers(exports, tmp_path):
    """In plain loops, where a lossless first layer is followed by others; and by `generate`."""
    file = recipe(tmp_path / "recipe.json", [MIXED[0], MIXED[1], MIXED[1], MIXED[1]])
    out = tmp_path / "out.onnx"
    rewrite(exports["genai-cpu-fp32"] / "model.onnx", out, "--recipe", file, "--recent", 16)
    prompt = load()[0]
    answer, _ = decode(session(out), [prompt["tokens"]], steps=7)
    assert answer[0].tolist() == prompt["answer"]


def test_a_folder_needs_rows_of_one_size(exports, tmp_path):
    """GenAI has one size for all layers: rows are padded where the recipe says so, or refused."""
    source, settings = exports["genai-cpu-fp32"], [MIXED[1]] * 3 + [MIXED[3]]
    file = recipe(tmp_path / "recipe.json", settings)
    done = spark_ort("rewrite", source, tmp_path / "out", *OFF, "--recipe", file, check=False)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    for text in ("recipe.json: layer 0 needs rows of 68 bytes and layer 3 rows of 40", "alike", "spark-ort tune"):
        assert text in done.stderr
    report = rewrite(source, tmp_path / "out", *OFF, "--recipe", recipe(file, settings, uniform_rows=True))
    rows = report["model"]["layer_rows"]
    assert {(r["key_row_bytes"], r["value_row_bytes"]) for r in rows} == {(68, 68)}
    assert [r["kept_channels"] for r in rows] == [46, 46, 46, 64] and {r["tail_window"] for r in rows} == {64}
    config = json.loads((tmp_path / "out/genai_config.json").read_text())
    assert config["model"]["decoder"]["head_size"] == 68 // 4
    # Of one size without padding: keys at 8 or 4 bits beside values of 8.
    equal = recipe(file, [MIXED[1]] * 3 + [(0.7, 4, 8, 1)])
    report = rewrite(source, tmp_path / "equal", *OFF, "--recipe", equal)
    assert [r["kept_channels"] for r in report["model"]["layer_rows"]] == [46, 46, 46, 64]


def test_errors_name_file_layer_and_field(exports, tmp_path):
    file, good = tmp_path / "recipe.json", [MIXED[1]] * LAYERS
    source = exports["optimum-fp32"] / "model.onnx"

    def refused(message, *more):
        done = spark_ort("rewrite", source, tmp_path / "out.onnx", *OFF, "--recipe", file, *more, check=False)
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert not (tmp_path / "out.onnx").exists()

    refused("--recipe: " + str(file))
    recipe(file, [*good[:2], (0.5, 7, 8, 1), good[3]])
    refused(f"--recipe: {file}: layer 2: key_bits: 7 is not 16, 8 or 4")
    recipe(file, [*good[:3], (1.5, 8, 8, 1)])
    refused(f"{file}: layer 3: ratio: 1.5 is not at least 0 and below 1")
    recipe(file, [*good[:3], (0.5, 8, 8, 4)])
    refused(f"{file}: layer 3: row_format: 4 is not 1, 2 or 3")
    recipe(file, [*good[:2], (0.5, 8, 8, 3), good[3]])
    refused(f"{file}: layer 2: missing field `key_bytes`")
    recipe(file, good[:3])
    refused(f"{file}: it is for 3 layers, the model has 4")
    recipe(file, good, model={"layers": 4, "head_dim": 128, "kv_heads": 2})
    refused("a model with 4 layers of 2 KV heads of 128 channels, this one has 4 layers of 2 KV heads of 64 channels")
    recipe(file, good, colour="blue")
    refused("unknown field `colour`")
    recipe(file, good)
    text = json.loads(file.read_text())
    text["layers"][1]["bits"] = 8
    file.write_text(json.dumps(text))
    refused(f"{file}: layer 1: unknown field `bits`")
    file.write_text(json.dumps(text).replace('"bits": 8', '"ratio": 0'))
    refused(f"{file}: layer 1: the field ratio is there twice; leave one out")
    del text["layers"][1]
    file.write_text(json.dumps(text))
    refused("layer 1 is missing")
    recipe(file, good)
    refused("cannot be used with", "--ratio", 0.5)
    done = spark_ort("rewrite", source, tmp_path / "o.onnx", *OFF, "--recipe", file, "--json", file, check=False)
    assert done.returncode == 1 and "is a file that is read or made" in done.stderr


def test_metadata_of_other_models_is_refused(exports, tmp_path):
    """A list of rows that does not fit the model's layers."""
    out = tmp_path / "out.onnx"
    rewrite(exports["optimum-fp32"] / "model.onnx", out, *OFF, "--recipe", recipe(tmp_path / "r", MIXED))
    model = onnx.load(out, load_external_data=False)
    entry = next(p for p in model.metadata_props if p.key == "ai.spark.rows_by_layer")
    good = json.loads(entry.value)
    shutil.copy(out, tmp_path / "good.onnx")
    for rows in (good[:3], [*good[:3], {**good[3], "head_dim": 32}], [*good[:3], {"head_dim": 64}]):
        entry.value = json.dumps(rows)
        onnx.save(model, out)
        done = spark_ort("inspect", out, check=False)
        assert done.returncode == 1 and "metadata 'ai.spark.rows_by_layer'" in done.stderr
