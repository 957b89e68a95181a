"""The rules of ARCHITECTURE.md that a reader relies on: `python -m pytest tests/structure`. Needs Python alone.

What does not follow a rule yet is listed in known.py. Nothing may be added to a list; what is mended is to leave it.
"""

import re
import warnings

import pytest

from .known import CYCLES, LONG_FILES, LONG_FUNCTIONS, LONG_LINES, OUT_OF_PLACE
from .rust import Crate, ROOT, code, files, functions, name, shipped

SOURCES = files("src", "tools/spark-ort")
ALL = SOURCES + files("tests", "benches", "examples")
# Axis: what gives it away in code, and the folders that may know it.
AXES = {
    "instruction sets": (r"target_arch|target_feature|is_x86_feature_detected|_mm\d*_\w+", ["src/cpu/isa/"]),
    # A kernel may read one width only: it belongs to an instruction set and a row format both.
    "bit widths": (r"Bits::B(?:16|8|4)\b", ["src/format/", "src/cpu/isa/"]),
    "execution providers": (r'"\w+ExecutionProvider"', ["src/operators/provider/", "src/plugin/"]),
    "source operators": (r'"(?:GroupQuery|MultiHead)?Attention"', ["src/rewrite/source/"]),
}


def compare(found, known):
    """The list of exceptions only ever gets shorter."""
    found, known = set(found), set(known)
    assert not found - known, f"against the rule: {sorted(found - known)}"
    if known - found:
        warnings.warn(f"mended, take it off tests/structure/known.py: {sorted(known - found)}", stacklevel=2)


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_is_known_in_its_own_folder_only(axis):
    sign, folders = AXES[axis]
    # Names of operators and providers are strings, the others are code.
    text = (lambda path: shipped(path.read_text())) if '"' in sign else (lambda path: code(shipped(path.read_text())))
    found = [name(path) for path in files("src") if re.search(sign, text(path))]
    compare([path for path in found if not path.startswith(tuple(folders))], OUT_OF_PLACE[axis])


def cycles(graph):
    """The groups of modules that reach each other."""
    reach = {}
    for module in graph:
        seen, todo = set(), [module]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        reach[module] = seen
    return {tuple(sorted("::".join(m) for m in graph if m in reach[module] and module in reach.get(m, ())))
            for module in graph if module in reach[module]}


@pytest.mark.parametrize("folder, root", [("src", "lib"), ("tools/spark-ort", "main")])
def test_no_import_cycles(folder, root):
    compare(cycles(Crate(folder, root).uses()), CYCLES[folder])


def test_cycles_are_found():
    assert cycles({("a",): {("b",)}, ("b",): {("a",)}, ("c",): {("a",)}}) == {("a", "b")}


def test_files_are_below_400_lines():
    compare([name(path) for path in ALL if path.read_text().count("\n") >= 400], LONG_FILES)


def test_functions_are_below_80_lines():
    compare([f"{name(path)}: {function}" for path in ALL
             for function, _, lines in functions(path.read_text()) if lines >= 80], LONG_FUNCTIONS)


@pytest.mark.parametrize("folder", ["src", "tools", "tests", "benches", "examples", "python", "ops"])
def test_lines_are_up_to_120_columns(folder):
    suffixes = (".rs", ".py", ".sh", ".h", ".hip", ".cpp", ".cu")
    paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    long = [f"{name(path)}:{number}" for path in paths
            for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert len(long) <= LONG_LINES.get(folder, 0), long


def test_unsafe_functions_say_what_callers_must_keep_to():
    missing = []
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if not re.match(r"\s*(?:pub(?:\([^)]*\))? )?(?:const )?unsafe (?:extern \"\w+\" )?fn \w", line):
                continue
            above = number
            while above and re.match(r"\s*(?:///|#\[|#!\[)", lines[above - 1]):
                above -= 1
            if not any("# Safety" in text for text in lines[above:number]):
                missing.append(name(path))
    assert not missing, missing


def test_safety_comments_give_reasons():
    """"As the caller promises" says nothing about which promise, or why it is enough."""
    bare = re.compile(r"SAFETY: (?:as )?the caller(?:'s promise| promises| keeps to it)?\.?\s*$", re.IGNORECASE)
    found = [f"{name(path)}:{number}" for path in SOURCES
             for number, line in enumerate(path.read_text().splitlines(), 1) if bare.search(line)]
    assert not found, found
