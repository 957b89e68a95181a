"""Rewritten exports, made once, and figures that are shown at the end."""

from functools import cache

import pytest
from .exports.build import build_all

from . import command

FIGURES = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def exports():
    """{name: folder} of the original exports."""
    return build_all()


@pytest.fixture(scope="session")
def original(exports):
    """original(name): a session on an export as it is."""
    return cache(lambda name: command.session(exports[name] / "model.onnx"))


@pytest.fixture(scope="session")
def rewritten(exports, tmp_path_factory):
    """rewritten(name, *options): the path of a rewritten export, made when first asked for."""

    @cache
    def path(name, *options):
        target = tmp_path_factory.mktemp(name) / "model.onnx"
        command.rewrite(exports[name] / "model.onnx", target, *options)
        return target

    return path


@pytest.fixture(scope="session")
def figure(pytestconfig):
    """figure(text): a line for the summary."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config):
    for text in config.stash.get(FIGURES, []):
        terminalreporter.write_line(text)
