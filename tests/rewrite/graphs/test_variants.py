"""Each spelling of attention, rewritten without loss: the same logits, nothing of the old attention left."""

import onnx
import pytest

from ..command import rewrite, session

from .compare import WITHIN, calls, dead_nodes, difference, logits, unread_initializers
from .variants import VARIANTS

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off".split()
OLD = {"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention", "IsNaN", "Tile"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("variants")


def rewritten(folder, name, *options):
    """(the variant, its model, the rewritten one, the report), written to `folder`."""
    variant = VARIANTS[name]
    source = folder / "model.onnx"
    onnx.save(variant.model(), source)
    target = folder / "rewritten.onnx"
    report = rewrite(source, target, "--force", *options)
    assert isinstance(report, dict), report.stderr
    return variant, variant.model(oracle=True), onnx.load(target), report


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def check_graph(variant, model, report):
    """The report and the graph say what must have become of the variant."""
    assert report["model"]["source"] == variant.source
    operators = [n.op_type for n in model.graph.node]
    assert not OLD & set(operators)
    assert operators.count("SparkAttention") == operators.count("SparkPrune") == variant.shape.layers
    assert not dead_nodes(model.graph)
    assert not unread_initializers(model.graph)
    for node in model.graph.node:
        if node.op_type == "SparkAttention":
            biased = len(node.input) > 12 and bool(node.input[12]) and "keep_float16" not in node.input[12]
            assert (attributes(node)["causal"], biased) == variant.masking


def conversations(variant):
    """Calls that the variant's model can take: single sequences and batches, padded or not."""
    settings = dict(chunk=variant.chunk, static=variant.static)
    fixed = (variant.static or {}).get("batch")
    for batch in [fixed] if fixed else [1, 2]:
        for padding in variant.padding if batch > 1 and variant.padding else [None]:
            yield calls(batch, padding, **settings)


def check_logits(variant, model, other):
    """The rewritten model answers as the original does, all through each conversation."""
    theirs, ours = session(model), session(other)
    for conversation in conversations(variant):
        expected, _ = logits(theirs, conversation, feeds=variant.feeds)
        found, _ = logits(ours, conversation, feeds=variant.feeds)
        error, call = difference(found, expected)
        assert error < (variant.within or WITHIN[variant.dtype]), f"call {call} of a batch of {len(conversation[0][0])}"


@pytest.mark.parametrize("name", VARIANTS)
def test_same_logits(folder, name):
    """Without loss, a rewritten model is the same model, and nothing of the old attention is left."""
    variant, model, other, report = rewritten(folder, name, *LOSSLESS)
    check_graph(variant, other, report)
    check_logits(variant, model, other)


FEW = ["gqa-float16-packed", "gqa", "mha-bias", "attention-bool", "scale Mul product", "float16"]
WIDTHS = {"key": 32 // 8 * 2 + 4 + 2 * 32, "value": 2 * 32}


@pytest.mark.parametrize(
    "options", ["--recent 4", "--cache-type uint8", "--uniform-rows", "--recent 4 --cache-type uint8"]
)
@pytest.mark.parametrize("name", FEW)
def test_options(folder, name, options):
    """What options add to a model changes no logit, and the cache is declared as they say."""
    variant, model, other, report = rewritten(folder, name, *LOSSLESS, *options.split())
    check_graph(variant, other, report)
    check_logits(variant, model, other)
    inputs = {i.name: i.type.tensor_type for i in other.graph.input}
    outputs = {o.name: o.type.tensor_type for o in other.graph.output}
    element = onnx.TensorProto.UINT8 if "uint8" in options else inputs["past_key_values.0.key"].elem_type
    size = onnx.helper.tensor_dtype_to_np_dtype(element).itemsize
    for part, width in WIDTHS.items():
        width = max(WIDTHS.values()) if "uniform" in options else width
        present = outputs[f"present.0.{part}"]
        assert (present.elem_type, present.shape.dim[3].dim_value) == (element, width // size)
        assert inputs[f"past_key_values.0.{part}"].elem_type == element
    recent = [f"past_key_values.{i}.key_recent" for i in range(variant.shape.layers)]
    assert [n for n in inputs if "recent" in n] == ("recent" in options) * recent


@pytest.mark.parametrize("options", ["--calibrate off", "--calibrate random --calibration-tokens 64"])
@pytest.mark.parametrize("name", ["gqa", "repeat expand"])
def test_outputs_without_shapes(folder, name, options):
    """ONNX lets outputs be declared by their type alone."""
    model = VARIANTS[name].model()
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, folder / "bare.onnx")
    options = LOSSLESS[:-2] + options.split()
    report = rewrite(folder / "bare.onnx", folder / "rewritten.onnx", "--force", *options)
    assert isinstance(report, dict), report.stderr
    check_logits(VARIANTS[name], model, onnx.load(folder / "rewritten.onnx"))


@pytest.mark.parametrize("change", [{"causal": 0}, {"scale": 0.5}, {"local_window_size": 12}])
def test_differences_show(folder, change):
    """The comparison that the other tests rest on notices a wrong attribute."""
    variant, model, other, _ = rewritten(folder, "attention-causal", *LOSSLESS)
    for node in other.graph.node:
        if node.op_type == "SparkAttention":
            kept = [a for a in node.attribute if a.name not in change]
            del node.attribute[:]
            node.attribute.extend(kept + [onnx.helper.make_attribute(k, v) for k, v in change.items()])
    with pytest.raises(AssertionError, match="call [01] of a batch"):
        check_logits(variant, model, other)


def test_missing_mask_shows(folder):
    """The comparison notices when padding is not masked."""
    variant, model, other, _ = rewritten(folder, "mha-bias", *LOSSLESS)
    for node in other.graph.node:
        if node.op_type == "SparkAttention":
            del node.input[12:]
    with pytest.raises(AssertionError, match="of a batch of 2"):
        check_logits(variant, model, other)
