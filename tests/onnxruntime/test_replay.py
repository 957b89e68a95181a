"""The cases give the same with another number of threads, and however an input is left out."""

import os
import pathlib
import subprocess
import sys

import pytest

import replay

FOLDER = pathlib.Path(__file__).parent
LIBRARY = os.environ.get("SPARK_ORT_LIBRARY", str(FOLDER.parents[1] / "target/release/libspark_ort.so"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, FOLDER / "cases.py", LIBRARY, folder], check=True)
    return folder


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(cases, threads):
    subprocess.run([sys.executable, FOLDER / "replay.py", LIBRARY, cases, str(threads)], check=True)


@pytest.mark.parametrize("types", ["f32-same", "f32-u8", "f16-same", "f16-u8"])
@pytest.mark.parametrize(("absent", "empty"), [("absent", "empty"), ("packed", "packed-empty")])
def test_absent_and_empty_mean_the_same(cases, absent, empty, types):
    _, expected, _ = replay.read(cases / f"{absent}-{types}.npz")
    _, got, _ = replay.read(cases / f"{empty}-{types}.npz")
    assert [list(replay.differences(*pair)) for pair in zip(got, expected)] == [[]] * len(expected)
