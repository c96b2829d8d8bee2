"""The recorded cases of Test-Time Speculation, and the drafter that conf/recorded/tts.yaml declares for them.

Two kinds: single steps (loss, gradient, weights after it) and whole greedy answers over a table, with an
update every few rounds. Numbers were derived in float64 and are compared so; what Adam makes of them is
compared less strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from harness.config import build
from harness.conformance.case import Case, Check, Targets, close, equal
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome

_EXACT, _ADAM = 1e-9, 1e-6
_FILE = files("conf") / "recorded" / "tts.yaml"


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") == "tts"


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case.

    Raises:
        KeyError: a case of another layout.
    """
    return _answer(case.data) if "rounds" in case.data else _single_steps(case.data)


@dataclass(frozen=True)
class TableTarget:
    """The part of a target that a drafter of tables asks for."""

    probs: Tensor
    """[V, V]: the distribution of the next token, by the token before it."""

    @property
    def device(self) -> torch.device:
        """Where drafts belong."""
        return self.probs.device

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.probs)

    def logits(self, pending: int, draft: Draft) -> Tensor:
        """Logits [1, 1+n, V] after the pending token and every drafted one."""
        return self.probs[[pending, *draft.tokens[0].tolist()]].log()[None]


def learner_of(data: dict[str, Any], theta: Any, stride: int) -> Any:
    """The declared drafter with a case's settings, at its first round.

    Raises:
        KeyError: a setting is missing.
    """
    settings = data["settings"]
    declared = OmegaConf.merge(
        OmegaConf.create(_FILE.read_text(encoding="utf-8")),
        {
            "drafter": {
                "stride": stride,
                "recipe": {
                    "learning_rate": settings["lr"],
                    "proximal": settings["lam"],
                    "position_decay": settings["pos_decay"],
                    "normalised": settings["weights_normalised"],
                },
                "base": {"theta": theta, "draft_length": settings["gamma"]},
            }
        },
    )
    return build(declared.drafter, "conf/recorded/tts.yaml: drafter")


def began(drafter: Any, target: TableTarget, first: int) -> Any:
    """The drafter behind a prompt of one token, with `first` pending."""
    drafter.bind(target)
    drafter.reset(1)
    drafter.observe(Outcome(committed=[[first]], pending=[first]))
    return drafter


def verified(target: TableTarget, pending: int, draft: Draft) -> tuple[Outcome, int]:
    """The outcome of a greedy round, and how many drafted tokens it keeps."""
    logits, tokens = target.logits(pending, draft), draft.tokens[0].tolist()
    wanted = logits[0].argmax(-1).tolist()
    kept = next((i for i, token in enumerate(tokens) if token != wanted[i]), len(tokens))
    outcome = Outcome(
        committed=[[pending, *tokens[:kept]]], pending=[wanted[kept]], draft=draft, logits=logits
    )
    return outcome, kept


def _single_steps(data: dict[str, Any]) -> list[Check]:
    found: list[Check] = []
    for name, one in enumerate(data["cases"]):
        target = TableTarget(_double(one["target"]))
        pending, *drafted = one["tokens"]
        drafter = began(learner_of(one, one["theta"], stride=1), target, pending)
        draft = Draft.chain(torch.tensor([drafted]), torch.tensor([len(drafted)]))
        lane = drafter.lanes[0]
        drafter.observe(verified(target, pending, draft)[0])
        learner = lane.learner
        (example,) = lane.examples
        after = learner.loss([example], learner.guesses([example]).detach())
        found += [
            *_losses(f"{name}: before", learner.terms, one["loss_before"]),
            close(f"{name}: gradient", learner.module.logits.grad, _double(one["gradient"]), _EXACT),
            close(f"{name}: after", drafter.base.logits, _double(one["theta_after_one_adam_step"]), _ADAM),
            *_losses(f"{name}: after", after, one["loss_after_same_round"]),
        ]
    return found


def _answer(data: dict[str, Any]) -> list[Check]:
    target = TableTarget(_double(data["target"]))
    drafter = learner_of(data, data["theta0"], data["settings"]["stride"])
    pending = data["first_token"]
    began(drafter, target, pending)
    lane = drafter.lanes[0]
    emitted, found = [pending], list[Check]()
    for one in data["rounds"]:
        name, before = f"round {one['round']}", lane.num_updates
        draft = drafter.propose([data["settings"]["gamma"]])
        outcome, kept = verified(target, pending, draft)
        found += [
            equal(f"{name}: root", pending, one["root"]),
            equal(f"{name}: draft", draft.tokens[0].tolist(), one["draft"]),
            equal(f"{name}: accepted", kept, one["accepted"]),
            equal(f"{name}: bonus", outcome.pending[0], one["bonus"]),
        ]
        drafter.observe(outcome)
        (pending,) = outcome.pending
        emitted += [*outcome.committed[0][1:], pending]
        found.append(equal(f"{name}: update", lane.num_updates > before, one["update"]))
        if one["update"]:
            found += _losses(name, lane.learner.terms, one["loss"])
            found.append(close(f"{name}: after", drafter.base.logits, _double(one["theta_after"]), _ADAM))
    return [
        *found,
        equal("emitted", emitted, data["emitted"]),
        equal("optimizer steps", lane.num_updates, data["optimizer_steps"]),
    ]


def _losses(name: str, ours: Sequence[Tensor], theirs: dict[str, float]) -> list[Check]:
    keys = ("kl_target", "kl_proximal", "total")
    return [
        close(f"{name}: {key}", one, _double(theirs[key]), _ADAM if "after" in name else _EXACT)
        for key, one in zip(keys, ours, strict=True)
    ]


def _double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
