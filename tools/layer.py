"""Shows what the operators save and what that costs, on one attention layer with synthetic inputs.

The uncompressed layer is ONNX Runtime's own GroupQueryAttention, in float32; the compressed ones are SparkPrune and
SparkAttention with the same inputs. All read a prompt, then decode token by token, each feeding its own cache back.
"""

import os
import pathlib
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS = 32, 8
PROMPT, DECODED = 1000, 16
# Share of a key's channels that is pruned, bits of the kept ones, bits of values.
SETTINGS = [(0.0, 16, 16), (0.5, 16, 16), (0.8, 16, 16), (0.5, 8, 8), (0.7, 4, 4), (0.8, 4, 4)]
DEFAULT_LIBRARY = pathlib.Path(__file__).parents[1] / "target/release/libspark_ort.so"
LIBRARY = os.environ.get("SPARK_ORT_LIBRARY", str(DEFAULT_LIBRARY))


def synthetic_inputs(size, generator):
    """Queries, keys and values `[1, tokens, heads * size]` before rotation.

    Tokens come from a small vocabulary in a slowly drifting context, so keys are correlated. Channels of keys have
    log-normal scales and a few outliers, equal in the two channels that rotation mixes; queries make up for half of it.
    How much channels then differ in what they add to scores is like in a small trained LLaMA (deviation 0.6 of the
    log).
    """
    tokens, width = PROMPT + DECODED, 96
    words = generator.normal(size=(300, width))[generator.zipf(1.3, tokens) % 300]
    context = generator.normal(size=(tokens, width))
    for t in range(1, tokens):
        context[t] = 0.95 * context[t - 1] + np.sqrt(1 - 0.95**2) * context[t]
    hidden = (words + context) / np.sqrt(2)

    pairs = (KV_HEADS, size // 2)
    key_scale = np.exp(generator.normal(0, 0.7, pairs)) * np.where(generator.random(pairs) < 0.04, 6, 1)
    query_scale = np.exp(generator.normal(0, 0.4, pairs)) / np.sqrt(key_scale)
    key_scale, query_scale = np.tile(key_scale, 2), np.tile(query_scale, 2)
    key_weight = generator.normal(size=(KV_HEADS, size, width)) / np.sqrt(width)
    offset = generator.normal(size=(KV_HEADS, size))
    group = HEADS // KV_HEADS
    # Query heads look for tokens like the current one, each in its own way.
    query_weight = 0.5 * np.repeat(key_weight, group, axis=0)
    query_weight += np.sqrt(0.75 / width) * generator.normal(size=query_weight.shape)
    key = (np.einsum("tw,hdw->thd", hidden, key_weight) + offset) * key_scale
    query = np.einsum("tw,hdw->thd", hidden, query_weight) * np.repeat(query_scale, group, axis=0)
    value = np.einsum("tw,hdw->thd", hidden, generator.normal(size=(KV_HEADS, size, width)) / np.sqrt(width))
    # Attention of trained models is neither uniform nor on one token: scores get a standard deviation of 3.
    scores = np.einsum("thd,shd->ths", query[-64:], np.repeat(key, group, axis=1)) / np.sqrt(size)
    query *= 3 / scores.std(axis=2).mean()
    return [tensor.reshape(1, tokens, -1).astype(np.float32) for tensor in (query, key, value)]


def rotary_caches(size):
    angles = np.outer(np.arange(PROMPT + DECODED), 10000.0 ** -(np.arange(size // 2) / (size // 2)))
    return {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}


def session(nodes, inputs, outputs, constants):
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "layer",
        [tensor(name, *of) for name, of in inputs.items()],
        [tensor(name, *of) for name, of in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [
        helper.make_opsetid(domain, version) for domain, version in [("", 17), ("com.microsoft", 1), ("ai.spark", 1)]
    ]
    options = ort.SessionOptions()
    options.register_custom_ops_library(LIBRARY)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def token_inputs(size, element=TensorProto.FLOAT):
    return {"query": (element, [1, "L", HEADS * size]), "key": (element, [1, "L", KV_HEADS * size]),
            "value": (element, [1, "L", KV_HEADS * size])}


def cache_tensors(prefix, key_width, value_width, rows, element=TensorProto.FLOAT):
    return {f"{prefix}_key": (element, [1, KV_HEADS, rows, key_width]),
            f"{prefix}_value": (element, [1, KV_HEADS, rows, value_width])}


def uncompressed(size, element):
    """GroupQueryAttention in float32 or float16."""
    inputs = token_inputs(size, element) | cache_tensors("past", size, size, "P", element)
    lengths = {"seqlens_k": (TensorProto.INT32, [1]), "total_sequence_length": (TensorProto.INT32, [])}
    outputs = {"output": (element, [1, "L", HEADS * size])} | cache_tensors("present", size, size, "S", element)
    constants = rotary_caches(size)
    if element == TensorProto.FLOAT16:
        constants = {name: value.astype(np.float16) for name, value in constants.items()}
    node = helper.make_node("GroupQueryAttention", [*inputs, *lengths, *constants], [*outputs], domain="com.microsoft",
                            num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1)
    return session([node], inputs | lengths, outputs, constants)


def compressed(size, ratio, key_bits, value_bits, saliency):
    """SparkPrune and SparkAttention, with the caches in float32 containers."""
    kept = size - int(ratio * size)
    # The operators say how wide rows are; an empty cache may have any width.
    widths = ["key row", "value row"]
    inputs = token_inputs(size) | cache_tensors("past", *widths, "P")
    present = cache_tensors("present", *widths, "S")
    observed = {"observed_saliency": (TensorProto.FLOAT, [1, KV_HEADS, size])}
    output = {"output": (TensorProto.FLOAT, [1, "L", HEADS * size])}
    constants = rotary_caches(size) | {"query_saliency": saliency}
    wired = [*inputs, "", "", "cos_cache", "sin_cache", "", "", "query_saliency"]
    attributes = dict(domain="ai.spark", num_heads=HEADS, kv_num_heads=KV_HEADS, kept_channels=kept, key_bits=key_bits,
                      value_bits=value_bits, do_rotary=1)
    nodes = [helper.make_node("SparkPrune", wired, [*present, "", *observed], **attributes),
             helper.make_node("SparkAttention", wired, [*output], **attributes)]
    return session(nodes, inputs, output | present | observed, constants)


def generate(layer, tensors):
    """Reads the prompt, then decodes: all outputs of the prompt, the decoded tokens' outputs, the caches, the times."""
    inputs = {each.name: each.shape for each in layer.get_inputs()}
    names = [each.name for each in layer.get_outputs()]
    dtype = np.float16 if "float16" in layer.get_inputs()[0].type else np.float32
    tensors = [tensor.astype(dtype) for tensor in tensors]
    # GroupQueryAttention wants the width of a head even of an empty cache.
    width = inputs["key"][2] // KV_HEADS
    caches = {name: np.zeros([1, KV_HEADS, 0, width], dtype) for name in inputs if "past" in name}
    prompt, decoded, times, past = None, [], [], 0
    for length in [PROMPT] + [1] * DECODED:
        total = past + length
        feeds = caches | dict(zip(["query", "key", "value"], [tensor[:, past:total] for tensor in tensors]))
        if "seqlens_k" in inputs:
            feeds |= {"seqlens_k": np.array([total - 1], np.int32), "total_sequence_length": np.array(total, np.int32)}
        start = time.perf_counter()
        results = dict(zip(names, layer.run(names, feeds)))
        times.append(time.perf_counter() - start)
        caches = {"past_key": results["present_key"], "past_value": results["present_value"]}
        prompt = prompt or results
        if past:
            decoded.append(results["output"].astype(np.float32))
        past = total
    return prompt, np.concatenate(decoded, axis=1), caches, times


def show(label, caches, decoded, reference, times, size):
    """One line of the table, all of it measured: sizes are those of the tensors that ONNX Runtime returned."""
    rows = KV_HEADS * (PROMPT + DECODED)
    key, value = caches["past_key"].nbytes / rows, caches["past_value"].nbytes / rows
    error = np.sqrt(np.mean((decoded - reference) ** 2) / np.mean(reference**2))
    print(
        f"{label:<22} {key:5.0f} {value:6.0f} {key + value:6.0f} {(key + value) / (4 * size):8.1%} "
        f"{rows * (key + value):13,.0f} {error:10.5f} {times[0] * 1e3:9.0f} {np.median(times[1:]) * 1e3:8.2f}",
        flush=True,
    )


def main():
    print(
        f"One attention layer: {HEADS} query heads, {KV_HEADS} KV heads; a prompt of {PROMPT} tokens, "
        f"then {DECODED} decoded ones.\n"
        "Inputs are synthetic: random, with correlated tokens and outlier channels in the keys. They show sizes\n"
        "exactly and errors by order of magnitude; they say nothing of a trained model's answers."
    )
    for size in [64, 128]:
        tensors = synthetic_inputs(size, np.random.default_rng(size))
        print(
            f"\nHead size {size}\n"
            "                       bytes a token and KV head   share of       bytes of    error of"
            "  prompt   a decoded\n"
            "ratio / key / value      key  value    sum  float16     the cache  the output        ms  token, ms"
        )
        _, reference, caches, times = generate(uncompressed(size, TensorProto.FLOAT), tensors)
        show("none, float32", caches, reference, reference, times, size)
        _, decoded, caches, times = generate(uncompressed(size, TensorProto.FLOAT16), tensors)
        show("none, float16", caches, decoded, reference, times, size)
        # What calibration does: the saliency that queries show, of geometric mean 1 in every head.
        saliency = np.ones((KV_HEADS, size), np.float32)
        prompt, *_ = generate(compressed(size, *SETTINGS[0], saliency), tensors)
        saliency = prompt["observed_saliency"][0]
        saliency /= np.exp(np.log(saliency).mean(axis=1, keepdims=True))
        for ratio, key_bits, value_bits in SETTINGS:
            _, decoded, caches, times = generate(compressed(size, ratio, key_bits, value_bits, saliency), tensors)
            show(f"{ratio} / {key_bits} / {value_bits}", caches, decoded, reference, times, size)
    print(
        "\nratio: share of a key's channels that is pruned; key and value: bits of a kept key channel and of a\n"
        "value. Error: root mean square of the decoded tokens' difference from float32 GroupQueryAttention, relative\n"
        "to its outputs'. \"none\" is ONNX Runtime's GroupQueryAttention. Query saliency was measured on this very\n"
        "prompt."
    )


if __name__ == "__main__":
    main()
