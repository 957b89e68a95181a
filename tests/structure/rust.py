"""Rust sources as the structure tests see them: code without comments and strings, functions, `use` paths."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A comment, a string, a raw string or a character: quotes and braces inside them are no code.
OPAQUE = re.compile(
    r"//[^\n]*|/\*.*?\*/|b?r(#*)\".*?\"\1|b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])'", re.DOTALL)


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.rs"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code(text: str) -> str:
    """`text` with comments and literals blanked out; lines stay where they are."""
    return OPAQUE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def shipped(text: str) -> str:
    """`text` up to its unit tests, which stand at the end of a file."""
    begin = re.compile(r"^#\[cfg\((?:all\()?test\b[^\n]*\]\n(?:#\[[^\n]*\]\n)*mod \w+ \{", re.MULTILINE)
    return begin.split(text, maxsplit=1)[0]


def end_of_block(text: str, start: int) -> int:
    """The end of the block that opens at `start`."""
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    raise ValueError("a block without an end")


def functions(text: str) -> list[tuple[str, int, int]]:
    """(name, line, number of lines) of every function with a body."""
    bare, found = code(text), []
    for match in re.finditer(r"\bfn (\w+)", bare):
        # The body, or the semicolon of a declaration; arrays in the signature have semicolons too.
        depth = 0
        for at in range(match.end(), len(bare)):
            depth += (bare[at] in "([") - (bare[at] in ")]")
            if depth == 0 and bare[at] in "{;":
                break
        if bare[at] == "{":
            line = bare.count("\n", 0, match.start())
            found.append((match[1], line + 1, bare.count("\n", 0, end_of_block(bare, at)) - line + 1))
    return found


def expand(tree: str) -> list[str]:
    """The paths of a `use` tree: `a::{b, c::d}` is a::b and a::c::d."""
    tree = tree.strip()
    start = tree.find("{")
    if start < 0:
        return [re.sub(r"\s+as\s+\w+$", "", tree)] if tree else []
    paths, depth, item = [], 0, ""
    for letter in tree[start + 1:tree.rindex("}")] + ",":
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            paths += [tree[:start] + path for path in expand(item)]
            item = ""
        else:
            item += letter
    return paths


class Crate:
    """The files of a crate as modules, and which file uses which."""

    def __init__(self, folder: str, root: str):
        self.files, base = {}, ROOT / folder
        for path in files(folder):
            parts = list(path.relative_to(base).with_suffix("").parts)
            if parts == [root]:
                parts = []
            elif parts[-1] == "mod":
                parts.pop()
            self.files[tuple(parts)] = path

    def resolve(self, module: tuple[str, ...], path: str) -> tuple[str, ...] | None:
        """The module whose file `path`, written in `module`, names something of."""
        parts = [part.strip() for part in path.split("::")]
        if parts[0] == "crate":
            at, parts = (), parts[1:]
        elif parts[0] in ("self", "super"):
            at = module
            while parts and parts[0] in ("self", "super"):
                at = at[:-1] if parts[0] == "super" else at
                parts = parts[1:]
        elif (*module, parts[0]) in self.files:
            at = module
        else:
            return None
        for part in parts:
            if (*at, part) not in self.files:
                break
            at = (*at, part)
        return at

    def uses(self) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
        """Which modules each one uses, tests left out. What a parent re-exports of its children with `pub use` is not
        counted: that is how a folder is put together."""
        graph = {}
        for module, path in self.files.items():
            bare = code(shipped(path.read_text()))
            trees = re.findall(r"^\s*use\s+([^;]+);", bare, re.MULTILINE)
            paths = [item for tree in trees for item in expand(" ".join(tree.split()))]
            paths += re.findall(r"\b(?:crate|super|self)(?:::\w+)+", re.sub(r"\buse\s[^;]*;", "", bare))
            found = {self.resolve(module, item) for item in paths} - {None, module}
            graph[module] = found
        return graph
