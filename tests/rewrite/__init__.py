"""The rewriter and the command line: `python -m pytest tests/rewrite`."""
