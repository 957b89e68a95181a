"""Hatchling's build hook: compiles the operator library and the command line, and puts both into the wheel.

By default they are built for this machine. With SPARK_ORT_MANYLINUX=2_28 in the environment `cargo zigbuild` links them
against that glibc, whatever this machine has, and the wheel's name says so.
"""

import json
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = ("libspark_ort.so", "spark-ort")


class CargoBuild(BuildHookInterface):
    def initialize(self, version, build_data):
        glibc = os.environ.get("SPARK_ORT_MANYLINUX")
        machine = platform.machine()
        built = self.build(f"{machine}-unknown-linux-gnu", glibc)
        build_data["pure_python"] = False
        local = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        # Nothing in it depends on the version of Python.
        build_data["tag"] = f"py3-none-manylinux_{glibc}_{machine}" if glibc else f"py3-none-{local}"
        # An editable install has the source folder on its path, and finds them in target.
        if version != "editable":
            build_data["force_include"] |= {str(built / name): f"spark_ort/{name}" for name in FILES}

    def build(self, target, glibc):
        """Runs cargo; the folder of what it built."""
        if shutil.which("cargo") is None:
            raise SystemExit("spark-ort is written in Rust and cargo is not on the PATH; see https://rustup.rs")
        command, folder = ["cargo", "build"], Path()
        if glibc:
            command = ["cargo", "zigbuild", "--target", f"{target}.{glibc.replace('_', '.')}"]
            folder = Path(target)
        subprocess.run([*command, "--release", "--locked"], cwd=self.root, check=True)
        metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
        found = json.loads(subprocess.run(metadata, cwd=self.root, check=True, stdout=subprocess.PIPE).stdout)
        return Path(found["target_directory"]) / folder / "release"
