"""Generates src/screentest/v1 from screentest/v1/*.proto; `make proto` runs it, `make check` proves it current."""

from __future__ import annotations

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out_dir: Path) -> int:
    """Writes modules and type stubs below ``out_dir``; returns protoc's exit status."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "screentest" / "v1").glob("*.proto"))
    include = [f"-I{ROOT}", f"-I{well_known}"]
    messages = [f"--python_out={out_dir}", f"--mypy_out=quiet:{out_dir}"]
    # Only the file with a service gets stubs: the others must be importable without grpc.
    stubs = [f"--grpc_python_out={out_dir}", "screentest/v1/scheduler.proto"]
    return int(protoc.main(["protoc", *include, *messages, *sources]) or protoc.main(["protoc", *include, *stubs]))


if __name__ == "__main__":
    sys.exit(generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src"))
