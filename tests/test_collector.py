"""Python's collector, held back while a model is compiled, and as it was before afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from isa.collector import collector_paused, only_new_collected


class Ring:
    """An object that only the cyclic collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_made_inside_is_collected_and_what_was_there_before_is_not_looked_at() -> None:
    there_before = Ring()
    seen = weakref.ref(there_before)
    with collector_paused(), only_new_collected():
        made = weakref.ref(Ring())
        assert made() is not None
        del there_before
        gc.collect()
        assert made() is None
        assert seen() is not None
    gc.collect()
    assert seen() is None
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


def test_what_was_lost_before_is_collected_first() -> None:
    with collector_paused():
        lost = weakref.ref(Ring())
        assert lost() is not None
        with only_new_collected():
            assert lost() is None


def test_an_error_inside_lets_go_of_everything() -> None:
    with pytest.raises(ValueError, match="inside"), collector_paused(), only_new_collected():
        raise ValueError("inside")
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


def test_what_somebody_else_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with only_new_collected():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
