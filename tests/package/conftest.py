"""Tests of the installed package in an environment with the hosts that people run, and nothing of this repository on
the path: `.venv-hosts/bin/python -m pytest tests/package`. The models are those that tests/rewrite/exports leaves in
target.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import spark_ort

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("SPARK_TEST_MODELS") or ROOT / "target/exports")
EXACT = {"ratio": 0, "key_bits": 16, "value_bits": 16}


@pytest.fixture(scope="session", autouse=True)
def installed():
    """The package is not that of the source folder."""
    folder = Path(spark_ort.__file__).parent
    assert ROOT / "python" not in folder.parents, f"{folder} is no installed package"


@pytest.fixture(scope="session")
def exports():
    """exports(name): folder of an original model."""

    def folder(name):
        if not (MODELS / name).is_dir():
            pytest.fail(
                f"{MODELS / name} is not there: run `python -m pytest tests/rewrite/exports` in .venv first",
                pytrace=False,
            )
        return MODELS / name

    return folder


@pytest.fixture(scope="session")
def folder(exports, tmp_path_factory):
    """folder(name, kind): a GenAI folder, "original", "exact" (nothing pruned) or "pruned" (as the default is)."""

    @functools.cache
    def make(name, kind):
        if kind == "original":
            return exports(name)
        target = tmp_path_factory.mktemp(name) / kind
        spark_ort.rewrite(exports(name), target, threads=2, **(EXACT if kind == "exact" else {}))
        return target

    return make


@pytest.fixture(scope="session")
def prompts():
    """Passkey prompts, each of `tokens` and their `answer`."""
    return json.loads((ROOT / "tests/rewrite/exports/prompts.json").read_text())
