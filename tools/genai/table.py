"""Prints what measure.py said of models as a table: `python table.py NAME=FILE ...`, one JSON line a context in each
file."""

import json
import sys
from pathlib import Path

MIB = 2**20
print(
    "| context | read at once | model | prompt, tokens/s | decode, tokens/s | cache, MiB "
    "| peak memory, MiB | of it beyond the loaded model |"
)
print("|---|---|---|---|---|---|---|---|")
runs = []
for argument in sys.argv[1:]:
    name, file = argument.split("=", 1)
    runs += [(json.loads(line), name) for line in Path(file).read_text().splitlines()]
for found, name in sorted(runs, key=lambda run: (run[0]["context"], run[0]["chunk"])):
    figures = [f"{found['prompt_rate']:.1f}", f"{found['decode_rate']:.2f}", f"{found['cache'] / MIB:.0f}"]
    figures += [f"{found['peak'] / MIB:.0f}", f"{(found['peak'] - found['loaded']) / MIB:.0f}"]
    chunk = found["chunk"] or "all"
    print(f"| {found['context']:,} | {chunk} | {name} | {' | '.join(figures)} |")
