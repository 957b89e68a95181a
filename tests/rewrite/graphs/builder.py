"""Small decoder models, made node by node: what surrounds attention, and the tools to spell attention itself."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}
VOCABULARY, WIDTH = 23, 24
INT64 = TensorProto.INT64
# Whether logits depend on attention must show: what attention adds is a good part of them.
GAIN = 1.5


class Graph:
    """A graph that grows. Numbers and arrays among the inputs of a node become initializers, None an absent input."""

    def __init__(self, dtype=np.float32, opset=18, seed=0):
        self.dtype, self.opset, self.element = dtype, opset, FLOATS[dtype]
        self.rng = np.random.default_rng(seed)
        self.nodes, self.inputs, self.outputs, self.initializers, self.value_info = [], [], [], {}, []
        self.memory = {}

    def name(self, base):
        """A name that nothing has yet."""
        self.memory[base] = number = self.memory.get(base, 0) + 1
        return f"{base}_{number}"

    def constant(self, value, name=None):
        """The initializer `value`; plain floats have the type of the model, plain integers are int64."""
        if isinstance(value, float):
            value = self.dtype(value)
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(self.dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if name is None and array.size < 100:
            name = self.memory.setdefault(key, None)
            if name is None:
                name = self.memory[key] = self.name("constant")
        name = name or self.name("table")
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, *shape, name=None, scale=None):
        """A random initializer that keeps the size of what it multiplies."""
        scale = scale or shape[0] ** -0.5
        array = self.rng.standard_normal(shape) * scale
        return self.constant(array.astype(self.dtype), name or self.name("weight"))

    def add(self, operator, *inputs, outputs=1, domain="", name=None, **attributes):
        """A node; gives the name of its output, or the list of them. `outputs` are names, or how many."""
        names = [self.name(operator) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        inputs = ["" if i is None else i if isinstance(i, str) else self.constant(i) for i in inputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        name = name or f"node_{self.name(operator)}"
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def input(self, name, element, shape):
        """Declares an input, once."""
        if name not in [i.name for i in self.inputs]:
            self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, name, element, shape):
        self.outputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def once(self, key, make):
        """What `make` makes, made only at the first call with `key`: layers share it."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def model(self):
        """The ModelProto, inputs with the cache last."""
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            sorted(self.inputs, key=lambda i: i.name.startswith("past")),
            self.outputs,
            list(self.initializers.values()),
            value_info=self.value_info,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10 if self.opset < 23 else 11)

    # Inputs of a call, and its lengths.

    def mask(self):
        """attention_mask `[B,S]`"""
        return self.input("attention_mask", INT64, self.dims("batch", "total"))

    def positions(self):
        """position_ids `[B,L]`"""
        return self.input("position_ids", INT64, self.dims("batch", "tokens"))

    static = {}

    def dims(self, *names):
        """A shape, each dimension by its name unless the model fixes it."""
        return [self.static.get(n, n) for n in names]

    def past(self, layer, part, heads, size):
        shape = [*self.dims("batch"), heads, *self.dims("past"), size]
        return self.input(f"past_key_values.{layer}.{part}", self.element, shape)

    def present(self, layer, part, heads, size):
        shape = [*self.dims("batch"), heads, *self.dims("total"), size]
        return self.output(f"present.{layer}.{part}", self.element, shape)

    def size(self, tensor, axis):
        """Dimension `axis` of a tensor, `[1]`."""
        return self.add("Gather", self.add("Shape", tensor), np.array([axis]), axis=0)

    def batch(self):
        return self.once("batch size", lambda: self.size("input_ids", 0))

    def new(self):
        """L"""
        return self.once("new tokens", lambda: self.size("input_ids", 1))

    def old(self):
        """P"""
        return self.once("past tokens", lambda: self.size("past_key_values.0.key", 2))

    def total(self):
        """S"""
        return self.once("all tokens", lambda: self.add("Add", self.old(), self.new()))

    def scalar(self, vector):
        """`[1]` to a scalar."""
        return self.add("Squeeze", vector, np.array([0]))

    def range(self, start, end):
        """Integers from `start` to before `end`, each `[1]`."""
        return self.add("Range", self.scalar(start), self.scalar(end), np.array(1))

    def cast(self, tensor, element=None):
        return self.add("Cast", tensor, to=self.element if element is None else element)


class Shape:
    """Heads and sizes of a model."""

    def __init__(self, query_heads=4, kv_heads=2, size=32, layers=2):
        self.query_heads, self.kv_heads, self.size, self.layers = query_heads, kv_heads, size, layers

    @property
    def groups(self):
        return self.query_heads // self.kv_heads


def decoder(attend, shape=None, dtype=np.float32, opset=18, static=None, inferred=False, seed=0):
    """A model whose layers are `attend(graph, layer, shape, hidden)`: from `[B,L,WIDTH]` to `[B,L,query_heads*size]`.

    `inferred`: it says of every tensor between nodes what shape it has, as exports of PyTorch do.
    """
    shape = shape or Shape()
    graph = Graph(dtype, opset, seed)
    graph.static = static or {}
    graph.input("input_ids", INT64, graph.dims("batch", "tokens"))
    for layer in range(shape.layers):
        for part in ("key", "value"):
            graph.past(layer, part, shape.kv_heads, shape.size)
    hidden = graph.add("Gather", graph.weight(VOCABULARY, WIDTH, scale=1.0), "input_ids")
    for layer in range(shape.layers):
        attended = attend(graph, layer, shape, hidden)
        mixed = graph.add("MatMul", attended, graph.weight(shape.query_heads * shape.size, WIDTH))
        hidden = graph.add("Add", hidden, mixed)
    graph.add("MatMul", hidden, graph.weight(WIDTH, VOCABULARY), outputs=["logits"])
    graph.output("logits", graph.element, graph.dims("batch", "tokens") + [VOCABULARY])
    for layer in range(shape.layers):
        for part in ("key", "value"):
            graph.present(layer, part, shape.kv_heads, shape.size)
    return onnx.shape_inference.infer_shapes(graph.model()) if inferred else graph.model()


def projections(graph, shape, hidden):
    """Query, key and value `[B,L,H*D]` of a layer."""
    widths = [shape.query_heads * shape.size, shape.kv_heads * shape.size, shape.kv_heads * shape.size]
    scales = [GAIN * WIDTH**-0.5] * 2 + [2 * WIDTH**-0.5]
    return [graph.add("MatMul", hidden, graph.weight(WIDTH, w, scale=s)) for w, s in zip(widths, scales)]


def split_heads(graph, tensor, heads, size):
    """`[B,L,H*D]` to `[B,H,L,D]`"""
    apart = graph.add("Reshape", tensor, np.array([0, 0, heads, size]))
    return graph.add("Transpose", apart, perm=[0, 2, 1, 3])


def join_heads(graph, tensor, shape):
    """`[B,H,L,D]` to `[B,L,H*D]`"""
    turned = graph.add("Transpose", tensor, perm=[0, 2, 1, 3])
    return graph.add("Reshape", turned, np.array([0, 0, shape.query_heads * shape.size]))


def append(graph, layer, part, new, shape):
    """`[B,Hk,S,D]`: the past with the new rows behind it, an output of the model."""
    past = graph.past(layer, part, shape.kv_heads, shape.size)
    return graph.add("Concat", past, new, outputs=[f"present.{layer}.{part}"], axis=2)


def tables(size, rows=64):
    """cos and sin `[rows,size/2]` of rotary positions."""
    angles = np.outer(np.arange(rows), 100.0 ** (-np.arange(size // 2) / (size // 2)))
    return np.cos(angles), np.sin(angles)
