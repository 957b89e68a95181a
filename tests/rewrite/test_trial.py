"""The token that goes through a written model before it is put in place, in a process with limits."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .command import environment, rewrite, spark_ort
from .graphs.refused import OFF, small, write

LIMITS = ("--memory", 1 << 30, "--threads", 1)


def failing():
    """A model that loads and cannot run: its logits do not have as many elements as a Reshape wants."""
    model = small()
    logits = next(n for n in model.graph.node if "logits" in n.output)
    logits.output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 22], np.int64), "wrong"))
    model.graph.node.append(helper.make_node("Reshape", ["before", "wrong"], ["logits"], "impossible"))
    return model


def greedy():
    """A model that asks for 16 GiB when it runs."""
    model = small()
    size = numpy_helper.from_array(np.array([1 << 16, 1 << 16], np.int64), "size")
    model.graph.initializer.append(size)
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["input_ids"], ["lengths"]),
            helper.make_node("Mul", ["lengths", "size"], ["sizes"]),
            helper.make_node("ConstantOfShape", ["sizes"], ["large"], "greedy"),
            helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    return model


def test_exit_status(tmp_path):
    """0 of a model that runs, 1 of one that does not, with the reason, 3 without an ONNX Runtime."""
    runs, fails = write(tmp_path, small()), write(tmp_path, failing(), "failing.onnx")
    assert spark_ort("trial", runs, *LIMITS).stdout == ""
    done = spark_ort("trial", fails, *LIMITS, check=False)
    assert done.returncode == 1 and "impossible" in done.stderr
    nowhere = environment(ORT_DYLIB_PATH=None, VIRTUAL_ENV=None, PATH=tmp_path, LD_LIBRARY_PATH=None)
    assert spark_ort("trial", runs, *LIMITS, check=False, env=nowhere).returncode == 3


def warnings(tmp_path, model, *options):
    return rewrite(write(tmp_path, model), tmp_path / "out.onnx", "--force", *OFF, *options)["warnings"]


def test_warnings(tmp_path):
    """A model that never ran is written with a warning, one that needs too much memory too; --no-trial asks nothing."""
    assert not any("tried" in warning for warning in warnings(tmp_path, small()))
    assert any("neither" in warning and "impossible" in warning for warning in warnings(tmp_path, failing()))
    assert any("was not tried" in warning and "bytes of memory" in warning for warning in warnings(tmp_path, greedy()))
    assert not any("tried" in warning for warning in warnings(tmp_path, failing(), "--no-trial"))
