"""Pages that are generated stay equal to what they are generated from."""

from __future__ import annotations

from pathlib import Path

from runtime.manual import manual

DOCS = Path(__file__).parent.parent / "docs"


def test_counting_page_is_up_to_date() -> None:
    """`python -m runtime.manual > docs/counting.md` brings it up to date."""
    assert (DOCS / "counting.md").read_text() == manual()
