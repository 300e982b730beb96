"""The page of the fault suite names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import fault_tests

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_fault_table_names_exists() -> None:
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", sources))
    assert fault_tests() - defined == set()
    assert len(fault_tests()) > 60
