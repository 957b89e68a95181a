"""The command `spark-ort`, with the ONNX Runtime of this Python."""

import os
import sys

from ._command import environment, file


def main() -> None:
    """Becomes the program."""
    program = file("spark-ort")
    os.execve(program, [program, *sys.argv[1:]], environment())


if __name__ == "__main__":
    main()
