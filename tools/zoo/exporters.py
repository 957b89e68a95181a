"""The exporters: each a function of the folder of a Transformers model and the folder to write model.onnx to."""

import importlib.metadata
import runpy
import sys


def genai(provider, precision):
    """The model builder of ONNX Runtime GenAI."""

    def export(source, target):
        from onnxruntime_genai.models import builder

        options = ["-m", source, "-i", source, "-o", target, "-p", precision, "-e", provider, "-c", target / "cache"]
        sys.argv = ["builder", *map(str, options)]
        runpy.run_path(builder.__file__, run_name="__main__")

    return export


def optimum(source, target):
    """Optimum's export to ONNX."""
    from optimum.exporters.onnx import main_export

    main_export(str(source), target, task="text-generation-with-past", do_validation=False)


def dynamo(opset):
    """torch.onnx with dynamo=True, past keys and values of each layer as inputs."""

    def export(source, target):
        import torch
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        # As the model itself makes them.
        cache = model(torch.randint(3, 60, (2, 5)), use_cache=True).past_key_values
        past = [t.detach() for layer in cache.layers for t in (layer.keys, layer.values)]
        layers = len(past) // 2

        class Decoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask, position_ids, past):
                cache = transformers.DynamicCache()
                for layer in range(layers):
                    cache.update(past[2 * layer], past[2 * layer + 1], layer)
                settings = dict(attention_mask=attention_mask, position_ids=position_ids, use_cache=True)
                out = self.model(input_ids, past_key_values=cache, **settings)
                return out.logits, [t for layer in cache.layers for t in (layer.keys, layer.values)]

        inputs = (
            torch.randint(3, 60, (2, 3)),
            torch.ones(2, 8, dtype=torch.int64),
            torch.arange(5, 8).repeat(2, 1),
            past,
        )
        dynamic = torch.export.Dim.DYNAMIC
        two = {0: dynamic, 1: dynamic}
        parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        program = torch.onnx.export(
            Decoder(),
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=["input_ids", "attention_mask", "position_ids", *[f"past_key_values.{p}" for p in parts]],
            output_names=["logits", *[f"present.{p}" for p in parts]],
            dynamic_shapes=(two, two, two, [{0: dynamic, 2: dynamic}] * len(past)),
        )
        target.mkdir(exist_ok=True)
        program.save(target / "model.onnx")

    return export


def packages(exporters):
    """Loads what `exporters` need, and says the versions."""
    names = ["torch", "transformers"]
    import torch

    torch.set_num_threads(1)
    import transformers  # noqa: F401

    if any(name.startswith("GenAI") for name in exporters):
        import onnxruntime_genai.models.builder  # noqa: F401

        names.append("onnxruntime-genai")
    if "Optimum" in exporters:
        import optimum.exporters.onnx  # noqa: F401

        names.append("optimum-onnx")
    if any(name.startswith("torch") for name in exporters):
        import torch.onnx  # noqa: F401

        names.append("onnxscript")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
