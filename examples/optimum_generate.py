"""Continues a text with Optimum and a rewritten model.

    spark-ort rewrite llama/model.onnx llama-spark/model.onnx     # and the .json files of llama beside it
    python optimum_generate.py llama-spark NEW TEXT
"""

import sys

import onnxruntime
import spark_ort
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder, new, text = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(spark_ort.library_path())
model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
tokenizer = AutoTokenizer.from_pretrained(folder)
told = model.generate(
    **tokenizer(text, return_tensors="pt", return_token_type_ids=False), max_new_tokens=int(new), do_sample=False
)
print(tokenizer.decode(told[0], skip_special_tokens=True))
