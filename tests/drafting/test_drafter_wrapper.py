"""DrafterWrapper passes everything on that a run asks of a drafter."""

from __future__ import annotations

from typing import Any

import pytest

from harness.drafting.drafter import Drafter
from harness.drafting.drafter_wrapper import DrafterWrapper
from methods.ngram import NGram

ASKED: dict[str, tuple[Any, ...]] = {
    "bind": (None,),
    "check": ([[1]],),
    "rehearse": (2, 8),
    "use_costs": (None, 2),
    "warm_up": (2,),
    "card": (),
    "new_call": (True,),
    "reset": (2,),
    "propose": ([4, 4],),
    "observe": (None,),
    "keep": ([0],),
}
READ = ("scope", "corpus", "taps", "num_drafted", "num_bytes", "weighs_costs")


class Telling(NGram):
    """Answers every call with its arguments and every question with its name."""


for _name in ASKED:
    setattr(Telling, _name, lambda self, *given, name=_name: (name, *given))
for _name in READ:
    setattr(Telling, _name, property(lambda self, name=_name: name))


@pytest.mark.parametrize("name", ASKED)
def test_a_call_reaches_the_inner_drafter(name: str) -> None:
    wrapper = DrafterWrapper(Telling())
    found = getattr(wrapper, name)(*ASKED[name])
    # What returns nothing is passed on as well, but its answer is dropped.
    assert found in ((name, *ASKED[name]), None)
    assert name in vars(DrafterWrapper), "a hook of the base class would answer instead"


@pytest.mark.parametrize("name", READ)
def test_a_fact_is_the_inner_drafters(name: str) -> None:
    assert getattr(DrafterWrapper(Telling()), name) == name


def test_nothing_that_a_run_asks_is_left_out() -> None:
    own = {name for name, value in vars(Drafter).items() if callable(value) and not name.startswith("_")}
    assert own - set(ASKED) == set()
