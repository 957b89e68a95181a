"""Instructions that a turn of a kernel's loop takes, counted in the assembly that a compiler makes of `ops`.

The sources name the parts of a loop by SPARK_NOTE: a turn's begin and its rows, what runs rarely, what only some
settings run. A turn is the blocks of the innermost loop around its note, without those that only run behind a note
which the setting asked for does not have.

    python -m tests.gpu.device_code.loops spark_decode_quantised_16x4 --setting key8 value8 --inner 2
    python -m tests.gpu.device_code.loops spark_decode_16x4 --setting key16 value16
"""

import argparse
import functools
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = Path(__file__).parents[3] / "ops"
# Instructions that take a SIMD four times as long as the others (AMD's ISA documents: transcendental ones).
QUARTER_RATE = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_f32|v_mul_(lo|hi)_[ui]32")


@dataclass
class Block:
    """Instructions that run one after the other, and where they go from there."""

    notes: list[str] = field(default_factory=list)
    opcodes: list[str] = field(default_factory=list)
    after: set[str] = field(default_factory=set)


@functools.cache
def assembly(compiler: str, arch: str, kernel: str) -> str:
    """Of `kernel` alone, so that it takes seconds."""
    others = re.compile(rf"^SPARK_KERNEL\((?!{kernel},).*$", re.MULTILINE)
    source = others.sub("", (SOURCES / "spark.hip").read_text())
    command = [compiler, "-x", "hip", f"-I{SOURCES}", f"--offload-arch={arch}", "-std=c++17", "-O3", "-DSPARK_COUNTED"]
    command += ["-nogpuinc", "-nogpulib", "--cuda-device-only", "-S", "-o", "-", "-"]
    run = subprocess.run(command, input=source, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{run.stderr[-4000:]}")
    return run.stdout


def blocks(text: str, kernel: str) -> dict[str, Block]:
    """The blocks of `kernel`, in order."""
    body = text.split(f"\n{kernel}:", 1)[1].split("\n.Lfunc_end")[0]
    found = {"entry": Block()}
    name, open_ended = "entry", True

    def begin(label: str) -> None:
        nonlocal name, open_ended
        if open_ended:
            found[name].after.add(label)
        name, open_ended = label, True
        found[name] = Block()

    for number, line in enumerate(body.splitlines()):
        line = line.strip()
        if label := re.match(r"(\.LBB\w+):", line):
            begin(label[1])
        elif note := re.match(r"; spark (.*)", line):
            found[name].notes.append(note[1].strip())
        elif instruction := re.match(r"([a-z]\w+)(?:\s+(\S+))?", line):
            opcode, target = instruction.groups()
            found[name].opcodes.append(opcode)
            if opcode.startswith("s_cbranch"):
                found[name].after.add(target)
                begin(f"after line {number}")
            elif opcode in ("s_branch", "s_endpgm"):
                found[name].after |= {target} if opcode == "s_branch" else set()
                open_ended = False
    return found


def reachable(graph: dict[str, Block], first: str, without: set[str]) -> set[str]:
    """Blocks that are reached from `first` by ways that avoid `without`."""
    seen, todo = set(), [first]
    while todo:
        at = todo.pop()
        if at in graph and at not in seen and at not in without:
            seen.add(at)
            todo += graph[at].after
    return seen


def loops(graph: dict[str, Block], entry: str) -> dict[str, set[str]]:
    """The natural loops that are reached from `entry`: blocks by header."""
    before: dict[str, set[str]] = {name: set() for name in graph}
    for name, block in graph.items():
        for target in block.after & graph.keys():
            before[target].add(name)
    found = {}
    for header in graph:
        # Blocks that are reached by way of the header only, and those of them that lead back to it.
        behind = reachable(graph, entry, set()) - reachable(graph, entry, {header})
        own, todo = {header}, [b for b in before[header] if b in behind]
        if not todo:
            continue
        while todo:
            at = todo.pop()
            if at not in own:
                own.add(at)
                todo += before[at]
        found[header] = own
    return found


def turn(graph: dict[str, Block], setting: set[str], inner: int) -> tuple[int, Counter[str]]:
    """Rows of a turn of the loop over stored rows, and its instructions, with `inner` turns of each loop inside."""
    # Settings have loops of their own where the code differs much; bits of 0 stand for any.
    ((inside, rows),) = {
        (name, int(rows))
        for name, block in graph.items()
        for note in block.notes
        if note.startswith("rows ")
        for _, rows, *bits in [note.split()]
        if all(b in setting or b in ("key0", "value0") for b in bits)
    }
    _, header, loop = min((len(own), header, own) for header, own in loops(graph, "entry").items() if inside in own)
    skipped = {
        name
        for name in loop
        if any(not note.startswith("rows ") and note not in setting for note in graph[name].notes)
    }
    # One turn: without the way back.
    once = {name: Block(graph[name].notes, graph[name].opcodes, graph[name].after & loop - {header}) for name in loop}
    runs = reachable(once, header, skipped)
    nested = set().union(*loops({name: once[name] for name in runs}, header).values())
    sums: Counter[str] = Counter()
    for name in runs:
        for opcode in once[name].opcodes:
            sums[opcode] += inner if name in nested else 1
    return rows, sums


def kinds(opcodes: Counter[str]) -> dict[str, int]:
    """Opcodes by the unit that takes them."""
    sums: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        if re.match(r"v_(smf|mf)mac?|v_mfma|v_wmma", opcode):
            sums["matrix"] += count
        elif opcode.startswith("v_"):
            sums["vector"] += count
            if QUARTER_RATE.match(opcode):
                sums["of them quarter rate"] += count
        elif opcode.startswith("ds_"):
            sums["LDS"] += count
        elif re.match(r"(global|buffer|flat)_", opcode):
            sums["memory"] += count
        else:
            sums["waits" if opcode.startswith(("s_waitcnt", "s_nop")) else "scalar"] += count
    return dict(sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel")
    parser.add_argument("--compiler", default="clang-15")
    parser.add_argument("--arch", default="gfx90a")
    parser.add_argument("--setting", nargs="*", default=[], help="notes of parts that run")
    parser.add_argument("--inner", type=int, default=1, help="turns of loops inside: key rows come by 1 KiB a turn")
    parser.add_argument("--opcodes", action="store_true", help="count each opcode too")
    args = parser.parse_args()
    if not shutil.which(args.compiler):
        parser.error(f"no {args.compiler} on this machine")
    graph = blocks(assembly(args.compiler, args.arch, args.kernel), args.kernel)
    rows, opcodes = turn(graph, set(args.setting), args.inner)
    print(f"{args.kernel}, {args.arch}, {' '.join(args.setting)}: {rows} row pairs a turn; a row pair takes")
    for kind, count in sorted(kinds(opcodes).items()):
        print(f"{count / rows:7.2f} {kind}")
    if args.opcodes:
        for opcode, count in opcodes.most_common():
            print(f"{count:5} {opcode}")


if __name__ == "__main__":
    main()
