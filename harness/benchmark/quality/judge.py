"""QualityJudge: how good outputs are where the acceptor does not promise vanilla's.

Everything is computed outside the clock, by plain forwards of the target over prompt and output.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from harness.benchmark.scenarios.turn_runner import TurnResult
from harness.benchmark.session import Session
from harness.decoding.sampling import DecodingParams, TokenSampler

_MILLION = 1_000_000


class QualityJudge:
    """Judges the results of a run."""

    def __init__(self, session: Session, params: DecodingParams) -> None:
        self._session, self._params = session, params
        acceptor = session.plan.acceptor
        # What forced acceptance writes means nothing, and is marked so.
        self._target = None if acceptor.lossless or acceptor.forced else session.engine.reference
        self._likelihood = lru_cache(maxsize=256)(self._under_target)

    def judge(self, one: TurnResult) -> Mapping[str, int]:
        """Quantities of the ledger by name; nothing where output must be vanilla's."""
        if self._target is None:
            return {}
        output, request = tuple(one.generation.output_ids), one.request
        agreeing, surprisal = self._likelihood(tuple(request.prompt), output, request.key)
        found = {"num_agreeing": agreeing, "surprisal_unat": surprisal}
        score = self._session.plan.task.score(one.call.conversation, self._session.decode(output))
        return found if score is None else {**found, "score_ppm": round(_MILLION * score)}

    @torch.no_grad()
    def _under_target(self, prompt: tuple[int, ...], output: tuple[int, ...], key: int) -> tuple[int, int]:
        """How many of the tokens plain decoding would have drawn, and their surprisal in millionths of a
        nat."""
        target = self._target
        assert target is not None
        ids = torch.tensor([[*prompt, *output[:-1]]])
        logits = target.trace(ids, ())[0][:, len(prompt) - 1 :]
        wanted = torch.tensor(output, device=logits.device)
        sampler = TokenSampler(self._params, [key], target.vocab_size, target.device)
        agreeing = 0
        surprisal = 0.0
        # In pieces: the noise of every position is as wide as the vocabulary.
        for begin in range(0, len(output), 64):
            part = logits[:, begin : begin + 64]
            index = torch.arange(begin, begin + part.shape[1], device=logits.device)
            here = wanted[begin : begin + 64]
            agreeing += int((sampler.choose(part, index[None])[0] == here).sum())
            own = part[0].float().log_softmax(-1).gather(-1, here[:, None])
            surprisal -= float(own.double().sum())
        return agreeing, round(_MILLION * max(surprisal, 0.0))
