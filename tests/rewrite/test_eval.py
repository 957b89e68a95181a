"""`spark-ort eval` measures what a compressed cache costs, beside rivals."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .command import ROOT, binary_path, environment, rewrite, spark_ort
from .exports.build import BUNDLED

TEXT = ROOT / "src/rewrite/calibration.txt"
# A real model, which is not part of the project.
REAL = ROOT.parent / "shared/models/smollm2-135m-int4"
NOVEL = ROOT.parent / "shared/text/persuasion.txt"
SMALL = ("--contexts", 256, "--decode", 32, "--passages", 2, "--threads", 1, "--calibration-tokens", 512)


def measure(*arguments, text=TEXT, **options):
    """The report of a measurement."""
    return json.loads(spark_ort("eval", *arguments, "--text", text, "--json", "-", **options).stdout)


def by_name(report):
    return {row["name"]: row for row in report["rows"]}


@pytest.fixture(scope="module")
def report(exports):
    """Everything, on a small model of float32."""
    settings = "0/16/16,0.5/8/8,0.8/4/4,0.8/4/4+64"
    rivals = "all,prune0.5-values,int4-keys"
    return measure(exports["genai-cpu-fp32"], "--settings", settings, "--rivals", rivals, "--shared-buffer", *SMALL)


def test_the_original_and_a_lossless_rewrite_agree(report):
    rows = by_name(report)
    assert rows["original"]["divergence"]["value"] == 0 and rows["original"]["agreement"]["value"] == 1
    assert rows["0/16/16"]["divergence"]["value"] < 1e-4
    assert all(row["tokens"] == 64 and row["shared_buffer"] for row in report["rows"])


def test_error_follows_what_is_kept(report):
    """Recent keys in the shared buffer help; fewer bits and fewer tokens do harm; intervals hold their value."""
    error = {name: row["divergence"]["value"] for name, row in by_name(report).items()}
    assert error["0.8/4/4+64"] < error["0.8/4/4"] / 2
    assert error["0/16/16"] < error["0.5/8/8"] < error["0.8/4/4"]
    assert error["int8+64"] < error["int4+64"]
    assert error["hadamard4+64"] < error["hadamard3+64"]
    assert error["oscar4+64"] < error["oscar2+64"]
    assert error["ort-int8"] < error["ort-int4"]
    for row in report["rows"]:
        for figure in ("divergence", "divergence_p99", "agreement", "loss", "loss_increase"):
            assert row[figure]["low"] <= row[figure]["value"] <= row[figure]["high"], (row["name"], figure)


def test_pictures_show_every_row(exports, tmp_path):
    """One SVG: error against share, error against bytes, speed against bytes; simulations have no speed."""
    picture = tmp_path / "eval.svg"
    measure(exports["genai-cpu-fp32"], "--settings", "0.5/8/8", "--rivals", "int8", "--plot", picture, *SMALL)
    root = ElementTree.parse(picture).getroot()
    texts = ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")]
    assert [texts.count(name) for name in ("original", "0.5/8/8", "int8+64")] == [1, 3, 1]
    for wanted in ("pruned key channels, share", "cache, bytes per token", "decode, tokens/s"):
        assert wanted in texts, wanted


def test_a_picture_may_be_png(exports, tmp_path):
    picture = tmp_path / "eval.PNG"
    measure(exports["genai-cpu-fp32"], "--settings", "0.5/8/8", "--plot", picture, *SMALL)
    header = picture.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (3 * 620, 440)


def test_rivals_are_all_there_and_cost_what_they_store(report):
    rows = by_name(report)
    assert report["absent"] == []
    # 4 layers of 2 heads of 64 channels, of key and value: 16 rows a token.
    expected = {"int8+64": 16 * 68, "int4+64": 16 * 40, "hadamard3+64": 16 * 32, "oscar2+64": 16 * 24,
                "think0.5+64": 8 * (64 + 128), "prune0.5-values+64": 8 * (128 + 8 + 32 + 4),
                "int4-keys+64": 8 * (40 + 128), "snapkv0.5+64": 8 * 128, "ort-int8": 16 * 64, "ort-int4": 16 * 32}
    assert {name: rows[name]["bytes_per_token"] for name in expected} == expected
    assert rows["int8+64"]["kind"] == "dense simulation" and rows["ort-int8"]["kind"] == "onnxruntime"


def test_a_rewritten_model_is_the_setting_that_made_it(exports, tmp_path):
    """A model on disk and a temporary one give the same figures, and a table names both."""
    model = tmp_path / "model.onnx"
    original = exports[BUNDLED]
    rewrite(original / "model.onnx", model, "--uniform-rows", "--calibration-tokens", 512)
    rows = measure(original, model, "--settings", "0.5/8/8", *SMALL)["rows"]
    assert [row["kind"] for row in rows] == ["original", "rewritten", "rewritten"]
    same = ("divergence", "agreement", "loss", "bytes_per_token", "ratio", "key_bits")
    assert [rows[1][key] for key in same] == [rows[2][key] for key in same]
    table = spark_ort("eval", original, model, "--text", TEXT, *SMALL).stdout
    assert str(model) in table and "KL, nats" in table and "growing caches" in table


def test_chunks_of_a_prompt(exports):
    """A lossless cache does not mind chunks; one that loses something is then read before decoding begins."""
    settings = ("--settings", "0/16/16,0.8/4/4+64", "--shared-buffer", "--chunk", 64)
    rows = by_name(measure(exports["genai-cpu-fp32"], *settings, *SMALL))
    assert rows["0/16/16"]["divergence"]["value"] < 1e-3 < rows["0.8/4/4+64"]["divergence"]["value"]


def test_drawn_magnitudes_and_row_formats_are_settings(exports):
    """Each is another model than the plain setting, and closer to the original than zeros are."""
    settings = ",".join(f"0.8/16/16{more}" for more in ("", ":normal", ":exponential", ":none", ":v2"))
    rows = by_name(measure(exports["genai-cpu-fp32"], "--settings", settings, "--shared-buffer", *SMALL))
    error = {name: row["divergence"]["value"] for name, row in rows.items()}
    assert len({error[name] for name in error}) == len(error) - 1, "at 16 bits both formats are the same"
    assert max(error["0.8/16/16:normal"], error["0.8/16/16:exponential"]) < error["0.8/16/16:none"]


def test_a_template_wraps_generated_tasks(exports):
    loss = {}
    for template in ("{prompt}", "Human: {prompt}\\nComputer: "):
        options = ("--tasks", "needle", "--samples", 2, "--template", template)
        rows = measure(exports["genai-cpu-fp32"], *options, *SMALL)["rows"]
        loss[template] = next(row["loss"]["value"] for row in rows if row["task"] == "needle")
    first, second = loss.values()
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--settings", "0.5/8"), "no RATIO/KEY_BITS/VALUE_BITS"),
        (("--settings", "0.5/8/7"), "--settings 0.5/8/7: value bits: 7 is not 16, 8 or 4"),
        (("--settings", "basis500/8"), "--settings basis500/8: key bytes: 500 is not a multiple of 4 from 8 to 68"),
        (("--rivals", "int5"), "is no rival"),
        (("--contexts", "9999999"), "the model's context is"),
        (("--contexts", "0"), "--contexts is 0"),
        (("--contexts", str(2**64 - 1)), "at most 1073741824 tokens can be asked for"),
        (("--decode", str(2**64 - 1)), "at most 1073741824 tokens can be asked for"),
        (("--decode", str(2**30)), "the model's context is"),
        (("--shared-buffer", "--capacity", "10"), "has no room"),
        (("--tokenizer", "nowhere.json"), "there is no nowhere.json"),
        (("--plot", "eval.pdf"), "pictures are .svg or .png files"),
        (("--plot", "nowhere/eval.svg"), "there is no folder nowhere"),
        (("--template", "<{prompt}>"), "--tasks names none"),
        (("--settings", "0.5/8/8:v3"), "no RATIO/KEY_BITS/VALUE_BITS"),
        (("--json", "nowhere/eval.json"), "there is no folder nowhere"),
        (("--settings", "0.5/8/8:median"), "no RATIO/KEY_BITS/VALUE_BITS"),
    ],
)
def test_what_cannot_be_measured_is_refused(exports, arguments, message):
    done = spark_ort("eval", exports[BUNDLED], "--text", TEXT, *arguments, check=False)
    assert done.returncode != 0 and message in done.stderr
    assert not re.search("calibrating|prompts", done.stderr), "nothing is measured before that"


def test_what_is_read_is_not_written_to(exports, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text())
    done = spark_ort("eval", exports[BUNDLED], "--text", text, "--json", text, check=False)
    assert done.returncode != 0 and "is a file that is read or made" in done.stderr, done.stderr
    assert text.read_text() == TEXT.read_text()


@pytest.mark.parametrize("name", ["libspark_ort.so", "tokenizer.json", "special_tokens_map.json"])
def test_files_of_a_folder_are_not_written_to(name, exports, tmp_path):
    """Those that GenAI reads."""
    folder = shutil.copytree(exports[BUNDLED], tmp_path / "folder")
    (folder / name).touch()
    before = (folder / name).read_bytes()
    done = spark_ort("eval", folder, "--text", TEXT, "--json", folder / name, *SMALL, check=False)
    assert done.returncode != 0 and "is a file that is read or made" in done.stderr, done.stderr
    assert (folder / name).read_bytes() == before


def test_what_is_named_twice_is_measured_once(exports):
    options = ("--settings", "0.5/8/8,0.50/8/8", "--rivals", "int8,int8+64", "--contexts", "256,256")
    rows = measure(exports["genai-cpu-fp32"], *options, *SMALL[2:])["rows"]
    assert [row["name"] for row in rows] == ["original", "0.5/8/8", "int8+64"]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_before_the_first_figure_leaves_old_ones(number, status, exports, tmp_path):
    files = [tmp_path / "report.json", tmp_path / "plot.svg"]
    for file in files:
        file.write_text("old")
    # One prompt after the other, of which the first takes a while.
    options = ("--contexts", 1024, "--passages", 1, "--decode", 512, "--chunk", 1, "--threads", 1)
    arguments = ["eval", exports["optimum-fp32"], "--text", TEXT, *options, "--json", files[0], "--plot", files[1]]
    command = [str(argument) for argument in (binary_path(), *arguments)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("original: prompts"):
            break
    process.send_signal(number)
    table, error = process.communicate(timeout=60)
    assert process.returncode == status and table == "" and "nothing was measured" in error, error
    assert [file.read_text() for file in files] == ["old", "old"]


def test_an_interrupt_keeps_what_there_is(exports, tmp_path):
    settings = ",".join(["0.5/8/8", *(f"0.5/8/8+{recent}" for recent in range(1, 500))])
    arguments = ["eval", exports[BUNDLED], "--text", TEXT, "--settings", settings, *SMALL]
    command = [str(argument) for argument in (binary_path(), *arguments, "--json", tmp_path / "report.json")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("0.5/8/8: prompts"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    table, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "original" in table and "interrupted" in error and "interrupted" not in table
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"] and report["rows"][0]["tokens"] == 64


@pytest.mark.skipif(not REAL.is_dir() and not os.environ.get("SPARK_EVAL_MODEL"), reason=f"there is no {REAL}")
def test_recent_keys_help_a_real_model(figure):
    """A short run: ratio 0.7 with 4 bits needs recent keys, and has them in the shared buffer of a GenAI folder."""
    model = Path(os.environ.get("SPARK_EVAL_MODEL", REAL))
    text = NOVEL if NOVEL.is_file() else TEXT
    options = ("--contexts", 384, "--decode", 24, "--passages", 1, "--calibration-tokens", 512, "--shared-buffer")
    rows = by_name(measure(model, "--settings", "0.7/4/4,0.7/4/4+64", *options, text=text, timeout=300))
    without, recent = rows["0.7/4/4"]["divergence"]["value"], rows["0.7/4/4+64"]["divergence"]["value"]
    figure(f"real model, 0.7/4/4: KL {without:.4f} nats without recent keys, {recent:.4f} with 64")
    assert recent < without / 2 and recent < 0.05


QUESTIONS = ("maple", "cedar", "olive", "north", "quartz", "raven")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of questions about secret numbers in running text, and how they are worded."""
    folder = tmp_path_factory.mktemp("questions")
    text = TEXT.read_text()
    lines = []
    for number, name in enumerate(QUESTIONS):
        secret = str(10_007 + 13_131 * number)
        before, after = (text[start : start + 900] for start in (2000 * number, 2000 * number + 1000))
        context = f"{before}\nThe secret number of {name} is {secret}. Remember it.\n{after}"
        lines.append({"input": name, "context": context, "answers": [secret], "all_classes": None,
                      "dataset": "passage_count", "length": len(context)})
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    wording = "{context}\nWhat is the secret number of {input}? It is"
    (folder / "prompts.json").write_text(json.dumps({"passage_count": wording}))
    (folder / "lengths.json").write_text(json.dumps({"passage_count": 6}))
    return folder


def ask(model, questions, *options, **others):
    words = ("--tasks", questions / "asked.jsonl", "--task-prompts", questions / "prompts.json")
    words += ("--task-lengths", questions / "lengths.json", "--threads", 1, "--calibration-tokens", 512)
    return spark_ort("eval", model, *words, *options, **others)


def test_questions_are_answered_from_the_cache(exports, questions):
    """The original knows the numbers, and so does a pruned cache; one of nearly nothing does not."""
    done = ask(exports["optimum-fp32"], questions, "--settings", "0.5/8/8,0.97/4/4", "--json", "-")
    report = json.loads(done.stdout)
    assert report["rows"] == [] and report["text"] is None
    score = {answers["name"]: answers["score"]["value"] for answers in report["answers"]}
    assert score["original"] == 1 and score["0.5/8/8"] >= 5 / 6 and score["0.97/4/4"] < score["0.5/8/8"]
    assert all(answers["questions"] == len(answers["predictions"]) == len(QUESTIONS) for answers in report["answers"])


def test_long_questions_lose_their_middle(exports, questions):
    """What is in the middle cannot be known then; fewer samples are fewer questions."""
    done = ask(exports["genai-cpu-fp32"], questions, "--contexts", 200, "--samples", 2, "--json", "-")
    [answers] = json.loads(done.stdout)["answers"]
    assert answers["questions"] == 2 and answers["score"]["value"] == 0
    assert answers["timing"]["prompt_tokens"] <= 2 * 200


def test_questions_as_a_table(exports, questions):
    text = ask(exports["genai-cpu-fp32"], questions, "--samples", 2).stdout
    assert "passage_count" in text and "2 questions" in text and "score, %" in text and "100.00" in text


@pytest.mark.parametrize(
    "options, file, message",
    [
        ((), "{}", "caused by: line 1: missing field `context`"),
        ((), '{"context": "", "answers": ["a"], "dataset": "vcsum"}', "the data set vcsum is scored by Chinese words"),
        ((), "", "has no questions"),
        (("--template", "none"), None, "has no {prompt} in it"),
        (("--contexts", 4), None, "tokens without its text, and --contexts allows 4"),
        (("--rivals", "int8"), None, "--rivals of any name needs a text: --text names one"),
        (("--task-lengths", TEXT), None, "is no table of data sets"),
        (("--plot", "score.svg"), None, "--plot score.svg needs a text: --text names one"),
        ((), {"prompts.json": {"passage_count": "nothing"}}, "the wording of passage_count has no {context} in it"),
        (("--task-lengths", "lengths.json"), {"lengths.json": {"passage_count": 0}}, "passage_count has 0 tokens"),
    ],
)
def test_questions_that_cannot_be_asked(exports, questions, tmp_path, options, file, message):
    for name in ("prompts.json", "lengths.json", "asked.jsonl"):
        (tmp_path / name).write_text((questions / name).read_text())
    changed = file if isinstance(file, dict) else {}
    for name, table in changed.items():
        (tmp_path / name).write_text(json.dumps(table))
    if isinstance(file, str):
        (tmp_path / "asked.jsonl").write_text(file)
    options = [tmp_path / option if option in changed else option for option in options]
    words = ["--tasks", tmp_path / "asked.jsonl", "--task-prompts", tmp_path / "prompts.json", *options]
    done = spark_ort("eval", exports["genai-cpu-fp32"], *words, check=False)
    assert done.returncode == 1 and message in done.stderr
