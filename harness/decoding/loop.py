"""The loop: propose, verify, accept, commit, observe; a record of every round.

Shapes: B sequences still running, n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from harness.decoding.acceptance import Accepted, Acceptor
from harness.decoding.batch import Batch, Generation, Request
from harness.decoding.decision import Decision, Proposal, checked, read, refusal
from harness.decoding.faults import LogitsNotFinite, method_code
from harness.decoding.forced_tokens import overrule, without_drafts
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.draft_policy import shorten
from harness.drafting.drafter import Drafter, keeps_memory
from harness.system.clock import Stopwatch
from harness.target.model import Target


class DecodingLoop:
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

        A sequence that ends gives its row to the next one. For the charging of time see `charging.charge`.
        same_question: whether this call and the last one of the bound `drafter` belong to one question.

        Raises:
            DecodingFault: an exception or an illegal draft of the drafter, or logits that are not finite.
        """
        self.target.set_taps((*drafter.taps, *acceptor.taps))
        batch = self._batch(requests, drafter, params)
        watch = Stopwatch(self.target.device, self.timed)
        exact = acceptor.coupled or not acceptor.lossless
        watch.start()
        keeps = keeps_memory(drafter.effective_scope, same_question)
        with method_code():
            drafter.new_call(keeps)
            drafter.policy.new_call(keeps)
        batch.prefill()
        watch.lap("prefill")
        while batch.running:
            proposal = checked(_proposed(batch), len(batch.running), self.target.vocab_size)
            draft = shorten(proposal.draft, drafter.policy, exact)
            watch.lap("draft")
            draft = self._padded(without_drafts(draft, batch.asked()))
            logits, rider_logits = draft.split(self.target.verify(batch.pending, draft))
            watch.lap("verify")
            accepted = self._accepted(acceptor, batch, draft, logits)
            accepted, decision = self._decided(batch, proposal, accepted, draft, logits)
            watch.lap("accept")
            path = None if draft.is_chain else accepted.path[:, : draft.num_levels]
            self.target.commit(path, decision.length)
            watch.lap("commit")
            more = batch.record(draft, decision)
            watch.lap("other")
            if more:
                batch.observe(draft, logits, rider_logits, accepted, decision)
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

    def _accepted(self, acceptor: Acceptor, batch: Batch, draft: Draft, logits: Tensor) -> Accepted:
        """The acceptor's decision, after it has seen the states that it taps."""
        if acceptor.taps:
            states = self.target.states()[len(batch.drafter.taps) :]
            acceptor.see([state[: len(logits), : logits.shape[1]] for state in states])
        return acceptor.accept(logits, draft, batch.sampler, batch.positions())

    def _decided(
        self, batch: Batch, proposal: Proposal, accepted: Accepted, draft: Draft, logits: Tensor
    ) -> tuple[Accepted, Decision]:
        """The round after forced tokens. Raises what ends the arm: an illegal draft, or logits with NaN."""
        decision = read(accepted, draft, logits, proposal.illegal)
        if decision.illegal:
            raise refusal(proposal.given, self.target.vocab_size)
        if decision.not_finite is not None:
            made = batch.generations[batch.running[decision.not_finite]]
            raise LogitsNotFinite(f"after {len(made.output_ids)} tokens of the answer")
        return overrule(accepted, decision, batch.asked())

    def _padded(self, draft: Draft) -> Draft:
        """The draft padded to the width at which nodes and riders together are cheapest."""
        width = draft.width + draft.num_riders
        return draft.padded(self._widths[width] - draft.num_riders) if width < len(self._widths) else draft


def _proposed(batch: Batch) -> Draft:
    """The drafter's draft for every running sequence; an empty one where its policy wants none."""
    with method_code():
        if batch.drafter.policy.wants_draft:
            return batch.drafter.propose(batch.room())
    return Draft.empty(len(batch.running), batch.target.device)
