"""A panel in a container fetches by the depot's inner name what was signed for the browser's."""

from __future__ import annotations

import pytest

from screentest_ui import panel_artifacts

SIGNED = "http://127.0.0.1:8333/screentest/clip.mp4?X-Amz-Signature=abc"


def test_inner_name_is_where_it_goes_and_the_signed_one_is_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCREENTEST_DEPOT_URL", "http://depot:8333")
    request = panel_artifacts._from_here(SIGNED)
    assert request.full_url == SIGNED.replace("127.0.0.1", "depot")
    assert request.get_header("Host") == "127.0.0.1:8333"


def test_without_an_inner_name_the_link_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCREENTEST_DEPOT_URL", raising=False)
    request = panel_artifacts._from_here(SIGNED)
    assert request.full_url == SIGNED
    assert not request.has_header("Host")
