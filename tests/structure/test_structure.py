"""The rules of ARCHITECTURE.md that a reader relies on: `python -m pytest tests/structure`. Needs Python alone."""

import re

import pytest

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


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_is_known_in_its_own_folder_only(axis):
    sign, folders = AXES[axis]
    # Names of operators and providers are strings, the others are code.
    text = (lambda path: shipped(path.read_text())) if '"' in sign else (lambda path: code(shipped(path.read_text())))
    found = [name(path) for path in files("src") if re.search(sign, text(path))]
    assert not [path for path in found if not path.startswith(tuple(folders))]


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
    assert not cycles(Crate(folder, root).uses())


def test_cycles_are_found():
    assert cycles({("a",): {("b",)}, ("b",): {("a",)}, ("c",): {("a",)}}) == {("a", "b")}


def test_files_are_below_400_lines():
    assert not [name(path) for path in ALL if path.read_text().count("\n") >= 400]


def test_functions_are_below_80_lines():
    assert not [f"{name(path)}: {function}" for path in ALL
                for function, _, lines in functions(path.read_text()) if lines >= 80]


@pytest.mark.parametrize("folder", ["src", "tools", "tests", "benches", "examples", "python", "ops"])
def test_lines_are_up_to_120_columns(folder):
    suffixes = (".rs", ".py", ".sh", ".h", ".hip", ".cpp", ".cu")
    paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    long = [f"{name(path)}:{number}" for path in paths
            for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120]
    assert not long


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


def test_paths_named_in_architecture_exist():
    """In text, whole paths in backquotes, where NAME, ARCH and vN stand for what is to be added; in the picture, names
    from the folder that they stand below."""
    text, picture = (ROOT / "ARCHITECTURE.md").read_text(), ""
    for block in re.findall(r"(?:^ {4}.*\n|^\n)+", text, re.MULTILINE):
        picture += block
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w.-]+\.(?:rs|py|md|toml))`", text)
    named = [path for path in named if not re.search(r"\b(?:NAME|ARCH|vN|aarch64)\b", path)]
    drawn = re.findall(r"(?<![\w/])[a-z_-]+(?:/[a-z_-]*)+|\b\w+\.rs\b", picture)
    assert len(named) > 20 and len(drawn) > 10
    assert not [path for path in named if not any((ROOT / base / path).exists() for base in ("", "src"))]
    bases = ["", "src", "src/cpu", "src/gpu", "src/rewrite"]
    assert not [path for path in drawn if not any((ROOT / base / path).exists() for base in bases)]
