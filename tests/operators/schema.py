"""The operators' schema as src/spec.rs has it; a Rust test there compares schema.json with it."""

import json
from pathlib import Path

SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text())
DOMAIN = SCHEMA["domain"]
OPERATORS = {operator["name"]: operator for operator in SCHEMA["operators"]}


def names(operator, what):
    """Names of the `inputs`, `outputs` or `attributes` of an operator, in order."""
    return [entry["name"] for entry in OPERATORS[operator][what]]


def defaults(operator):
    """Defaults of its attributes, None where every node has the attribute."""
    return {entry["name"]: entry["default"] for entry in OPERATORS[operator]["attributes"]}


def types(operator):
    """Element types of its inputs and outputs by name: T, C, int32, int64 or float32."""
    return {entry["name"]: entry["type"] for what in ("inputs", "outputs") for entry in OPERATORS[operator][what]}
