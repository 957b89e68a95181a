"""Conformance of the operators with docs/operators.md and docs/format.md: `python -m pytest tests/operators`."""
