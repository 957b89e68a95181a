"""Prints what measure.py and llama.py said of models as a table: `python table.py NAME=FILE ...`, one JSON line a run
in each file. Of several runs alike, made in turns with the other models, the median is printed; "relative" is the speed
of decoding relative to the first NAME's in the same turn.
"""

import json
import sys
from pathlib import Path
from statistics import median

MIB = 2**20
print(
    "| context | read at once | model | prompt, tokens/s | decode, tokens/s | relative | cache, MiB "
    "| peak memory, MiB | of it beyond the loaded model |"
)
print("|---|---|---|---|---|---|---|---|---|")
names, runs = [], {}
for argument in sys.argv[1:]:
    name, file = argument.split("=", 1)
    names.append(name)
    for run in map(json.loads, Path(file).read_text().splitlines()):
        runs.setdefault((run["context"], run["chunk"], len(names) - 1), []).append(run)
for (context, chunk, number), turns in sorted(runs.items()):
    def middle(value):
        return median(value(turn) for turn in turns)

    first = runs.get((context, chunk, 0), [])
    ratios = [turn["decode_rate"] / other["decode_rate"] for turn, other in zip(turns, first)]
    figures = [f"{middle(lambda turn: turn['prompt_rate']):.1f}", f"{middle(lambda turn: turn['decode_rate']):.2f}"]
    figures += [f"{median(ratios):.2f}" if ratios else ""]
    figures += [f"{middle(lambda turn: turn[kind]) / MIB:.0f}" for kind in ("cache", "peak")]
    known = all("loaded" in turn for turn in turns)
    figures += [f"{middle(lambda turn: turn['peak'] - turn['loaded']) / MIB:.0f}" if known else ""]
    print(f"| {context:,} | {chunk or 'all'} | {names[number]} | {' | '.join(figures)} |")
