"""Scenarios in processes of their own, with what they print and what the stand-ins saw."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass
class Outcome:
    """`result` is what the scenario returned, `trace` the lines of the stand-ins, `errors` standard error."""

    result: object
    trace: list
    errors: str

    def lines(self, beginning):
        return [line for line in self.trace if line.startswith(beginning)]


@pytest.fixture
def scenario(tmp_path):
    def run(name, *arguments, **environment):
        trace = tmp_path / "trace"
        trace.unlink(missing_ok=True)
        # Nothing is left in, or taken from, the user's own cache of kernels.
        own = {
            "GPU_SIM_TRACE": str(trace),
            "SCENARIO_FOLDER": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        process = subprocess.run([sys.executable, FOLDER / "scenarios.py", name, *arguments], capture_output=True,
                                 text=True, env={**os.environ, **own, **environment}, timeout=600, check=False)
        assert process.returncode == 0, process.stderr
        lines = trace.read_text().splitlines() if trace.exists() else []
        return Outcome(json.loads(process.stdout.splitlines()[-1]), lines, process.stderr)

    return run
