"""The loop: propose, verify, accept, commit, observe; a record of every round.

Shapes: B sequences still running, n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Batch, Generation, Request, decide
from harness.decoding.forced_tokens import without_drafts
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.draft_policy import shorten
from harness.drafting.drafter import Drafter, keeps_memory
from harness.system.clock import Stopwatch
from harness.target.model import Target


class LocalEngine:
    """Decodes with a target of this process."""

    def __init__(
        self,
        target: Target,
        end_token_ids: Collection[int],
        max_context: int,
        timed: bool = True,
        widths: Sequence[int] = (),
        batch_size: int | None = None,
    ) -> None:
        """Set the limits of all calls.

        max_context: tokens of prompt and output together. timed: if not, every `_ns` is 0.
        widths: for a draft of n nodes, the width to pad it to (see `profiling.step_timing.cheapest_widths`).
        batch_size: sequences that run at the same time; others wait until one ends. None: all of a call.
        """
        self.target = target
        self.end_token_ids = frozenset(end_token_ids)
        self.max_context = max_context
        self.timed = timed
        self.batch_size = batch_size
        self._widths = widths

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        drafter: Drafter,
        params: DecodingParams,
        acceptor: Acceptor,
        same_question: bool = False,
    ) -> list[Generation]:
        """Decode requests together, `batch_size` at a time: one generation per request, in order.

        `drafter` is bound to the target (`Drafter.bind`). A sequence that ends gives its row to the next
        request. Each generation is charged its own prefill and, for each round, an equal share among the
        sequences that ran, so that the sum of tokens over the sum of seconds is the throughput.

        same_question: all requests of this call and of the drafter's last one belong to one question, so that
        a drafter of that scope may use its memory of the earlier call.
        """
        self.target.set_taps(drafter.taps)
        batch = self._batch(requests, drafter, params)
        watch = Stopwatch(self.target.device, self.timed)
        exact = acceptor.coupled or not acceptor.lossless
        watch.start()
        drafter.new_call(keeps_memory(drafter.effective_scope, same_question))
        batch.prefill()
        watch.lap("prefill")
        while batch.running:
            draft = shorten(drafter.propose(batch.room()), drafter.policy, exact)
            watch.lap("draft")
            draft = self._padded(without_drafts(draft, batch.asked()))
            logits, rider_logits = draft.split(self.target.verify(batch.pending, draft))
            watch.lap("verify")
            accepted = acceptor.accept(logits, draft, batch.sampler, batch.positions())
            accepted, decision = decide(accepted, draft, batch.asked())
            watch.lap("accept")
            path = None if draft.is_chain else accepted.path[:, : draft.num_levels]
            self.target.commit(path, decision.length)
            watch.lap("commit")
            more = batch.record(draft, decision)
            watch.lap("other")
            if more:
                drafter.observe(batch.outcome(draft, logits, rider_logits, accepted, decision))
            watch.lap("observe")
            if batch.refill(more):
                watch.lap("prefill")
        total = watch.stop()
        batch.charge(watch.spans(), total)
        return batch.generations

    def _batch(self, requests: Sequence[Request], drafter: Drafter, params: DecodingParams) -> Batch:
        return Batch(
            self.target,
            requests,
            drafter,
            params,
            end_token_ids=self.end_token_ids,
            max_context=self.max_context,
            most=self.batch_size,
        )

    def _padded(self, draft: Draft) -> Draft:
        """The draft padded to the width at which nodes and riders together are cheapest."""
        width = draft.width + draft.num_riders
        return draft.padded(self._widths[width] - draft.num_riders) if width < len(self._widths) else draft
