"""The README's Python code runs as it stands."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_there_is_code():
    assert BLOCKS


@pytest.mark.parametrize("code", BLOCKS)
def test_code_runs(code):
    # Cargo may have been told to build elsewhere.
    library = os.environ.get("SPARK_ORT_LIBRARY")
    if library:
        code = code.replace("target/release/libspark_ort.so", library)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout
