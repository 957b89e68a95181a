"""Every code block of README.md and docs/ runs as it stands, and every link leads somewhere.

Blocks of a file share a folder with model.onnx, a GenAI folder llama, a folder llama-onnx for Optimum, and what earlier
blocks made. Rust is compiled by `cargo test --doc` instead. Blocks marked `python optimum` run where Optimum is.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Lines of shell blocks that other steps of `make test` run, or that this environment is the result of.
ELSEWHERE = {"pip install ."}


def blocks(page):
    return [(language, code) for language, code in BLOCK.findall(page.read_text())]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request):
    return request.param


@pytest.fixture
def workplace(exports, tmp_path):
    """A folder like that of a reader."""
    shutil.copy(exports("optimum-fp32") / "model.onnx", tmp_path)
    shutil.copy(exports("optimum-fp32") / "tokenizer.json", tmp_path)
    shutil.copytree(exports("genai-cpu-fp32"), tmp_path / "llama")
    shutil.copytree(exports("optimum-fp32"), tmp_path / "llama-onnx")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(command, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"


def shell(code, folder):
    lines = []
    for line in code.splitlines():
        plain = line.split("  #")[0].strip()
        if plain.startswith("make "):
            # That there is such a target.
            subprocess.run(["make", "-n", *plain.split()[1:]], cwd=ROOT, check=True, capture_output=True)
        elif plain not in ELSEWHERE:
            lines.append(line)
    run(["bash", "-euc", "\n".join(lines)], folder)


def known(code, folder):
    """That the command line has what a block asks of it, whose model is not at hand."""
    commands = code.replace("\\\n", " ").splitlines()
    shell("\n".join(line for line in commands if line.startswith("make ")), folder)
    for _, command, *options in (line.split() for line in commands if line.startswith("spark-ort ")):
        run(["bash", "-euc", f"spark-ort {command} --help > help"], folder)
        help = (folder / "help").read_text()
        missing = [option for option in options if option.startswith("--") and option not in help]
        assert not missing, f"spark-ort {command} has no {missing}"


def within(part, whole):
    """Whether JSON is there, perhaps among more."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and within(part[key], whole[key]) for key in part)
    return part == whole


def test_blocks(page, workplace):
    for language, code in blocks(page):
        match language.split():
            case ["python", *needs]:
                if all(importlib.util.find_spec(name) for name in needs):
                    run([sys.executable, "-c", code], workplace)
            case ["sh"]:
                shell(code, workplace)
            case ["sh", "other-model"]:
                known(code, workplace)
            case ["json"]:
                found = json.loads((workplace / "llama-spark/genai_config.json").read_text())
                assert within(json.loads(code), found)
            case ["json", "recipe"]:
                (workplace / "recipe.json").write_text(code)
                shell("spark-ort rewrite model.onnx out.onnx --recipe recipe.json --dry-run", workplace)
            case ["cpp"]:
                assert code in (ROOT / "examples/plain_loop.cpp").read_text()
            case ["pbtxt"]:
                assert code in (workplace / "models/llama/config.pbtxt").read_text()
            case [rust] if rust.startswith("rust"):
                library = (ROOT / "src/lib.rs").read_text()
                assert (
                    f"docs/{page.name}" in library
                ), f"{page.name} is missing among the documentation tests of src/lib.rs"
            case _:
                pytest.fail(f"{page.name}: no way to run a block of '{language}'")


def test_no_code_is_unmarked(page):
    """Indented blocks would escape the test above."""
    text = BLOCK.sub("", page.read_text())
    assert not re.findall(r"^\n(?: {4}|\t)\S.*$", text, re.MULTILINE)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_links(page):
    for target in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", page.read_text())):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target
