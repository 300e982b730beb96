"""The golden files: the bytes of every example, with their text form above for people.

``python -m tests.contract.golden_messages`` writes them anew. Do that only when the contract was meant to change:
the bytes stand for what lies in streams and archives already.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from screentest import wire
from tests.contract import examples

FOLDER = Path(__file__).parent / "golden"
BYTES_MARK = "---- bytes, hex"
LINE_CHARACTERS = 96


def render(record: object) -> str:
    """Text form, mark, hex of the bytes in lines of equal length."""
    digits = wire.encode(record).hex()
    lines = [digits[start : start + LINE_CHARACTERS] for start in range(0, len(digits), LINE_CHARACTERS)]
    text = text_format.MessageToString(wire.to_wire(record), as_utf8=True)
    return "\n".join([text.rstrip("\n"), BYTES_MARK, *lines, ""])


def read(name: str) -> tuple[str, bytes]:
    """(text form, bytes) of a golden file."""
    text, _, digits = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").partition(BYTES_MARK)
    return text, bytes.fromhex("".join(digits.split()))


def names() -> set[str]:
    return {path.stem for path in FOLDER.glob("*.txt")}


def write_all() -> None:
    FOLDER.mkdir(exist_ok=True)
    for stale in names() - set(examples.MESSAGES):
        (FOLDER / f"{stale}.txt").unlink()
    for name, record in examples.MESSAGES.items():
        (FOLDER / f"{name}.txt").write_text(render(record), encoding="utf-8")


if __name__ == "__main__":
    write_all()
