"""Continues a text with an ONNX Runtime GenAI folder, rewritten or not: nothing in here is about SparK.

    python genai_generate.py FOLDER NEW TEXT
"""

import sys

import onnxruntime_genai as og

folder, new, text = sys.argv[1:]
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
tokens = tokenizer.encode(text)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(tokens) + int(new), do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(tokens)
stream = tokenizer.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
print()
