"""The committed generated code is what the .proto files generate now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import screentest.v1

COMMITTED = Path(screentest.v1.__file__).parent
GENERATE = Path(__file__).parents[2] / "proto" / "generate.py"


def test_committed_code_is_what_the_proto_files_generate(tmp_path: Path) -> None:
    # protoc finds the plugin for type stubs on PATH, where the interpreter's own programs are not always.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        [sys.executable, str(GENERATE), str(tmp_path)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    generated = _sources(tmp_path / "screentest" / "v1")
    committed = _sources(COMMITTED)
    assert committed.keys() == generated.keys()
    changed = [name for name in generated if generated[name] != committed[name]]
    assert not changed, f"{changed} are not what the .proto files say; run `make proto`"


def _sources(folder: Path) -> dict[str, str]:
    """File name to text, without the package marker, which is written by hand."""
    paths = [*folder.glob("*_pb2*.py"), *folder.glob("*_pb2*.pyi")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}
