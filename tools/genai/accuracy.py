"""What rewritten folders lose in ONNX Runtime GenAI itself, by the logits that it hands out.

    python accuracy.py ORIGINAL FOLDER ... --text FILE [--contexts 2048,6000] [--decode 128] [--chunk N] [--json FILE]

A prompt of the text is read, then the tokens that really follow are appended one by one (teacher forcing), as
genai_config.json has it: past and present share a buffer of the prompt's and these tokens' length and --spare more.
KL divergence is that of the next-token predictions from the original's, in nats. The one after the prompt is left out,
since attention within a prompt that is read at once is exact. --chunk reads prompts in chunks of so many tokens.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def predictions(folder, tokens, context, spare, chunk):
    """Log probabilities [decoded, vocabulary] of the tokens behind each decoded one, and tokens decoded a second."""
    config = og.Config(str(folder))
    if chunk:
        config.overlay(json.dumps({"search": {"chunk_size": chunk}}))
    model = og.Model(config)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(tokens) + spare, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(tokens[:context])
    made, start = [], time.perf_counter()
    for number, token in enumerate(tokens[context:]):
        generator.append_tokens(np.array([token], np.int32))
        made.append(log_probabilities(generator.get_logits()[0, -1]))
        if sys.stderr.isatty():
            print(f"\r{folder}: {number + 1} of {len(tokens) - context}", end="", file=sys.stderr)
    return np.array(made), len(made) / (time.perf_counter() - start)


def divergence(expected, found):
    """KL divergence of each token's prediction, nats."""
    return (np.exp(expected) * (expected - found)).sum(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--contexts", default="2048", help="tokens of prompts, separated by commas")
    parser.add_argument("--decode", type=int, default=128, help="tokens appended one by one")
    parser.add_argument("--spare", type=int, default=64, help="rows that the buffer has beyond these tokens")
    parser.add_argument("--chunk", type=int, help="read prompts in chunks of so many tokens")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()

    text = og.Tokenizer(og.Model(str(options.original))).encode(options.text.read_text())
    figures = []
    print("| prompt | folder | KL, nats | 99th percentile | same next token, % | decode, tokens/s |")
    print("|---|---|---|---|---|---|")
    for context in map(int, options.contexts.split(",")):
        length = context + options.decode
        if len(text) < length:
            parser.error(f"{options.text} has {len(text)} tokens, and a prompt of {context} needs {length}")
        tokens = np.array(text[:length], np.int32)
        expected, _ = predictions(options.original, tokens, context, options.spare, options.chunk)
        for folder in options.folders:
            found, speed = predictions(folder, tokens, context, options.spare, options.chunk)
            kl = divergence(expected, found)
            same = 100 * float((expected.argmax(-1) == found.argmax(-1)).mean())
            figures.append({
                "context": context, "folder": folder.name, "kl": float(kl.mean()),
                "kl_99": float(np.percentile(kl, 99)), "same": same, "tokens_per_second": speed,
            })
            cells = [f"{context:,}", folder.name, f"{kl.mean():.4f}", f"{np.percentile(kl, 99):.3f}", f"{same:.1f}"]
            print(f"| {' | '.join(cells)} | {speed:.1f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
