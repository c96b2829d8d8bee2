"""What scenarios work with: who plays, one pass over a block, one call of the engine, and its result.

A block is a group of conversations that are decoded together, `batch_size` at a time: as one ends, the next
enters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.config import ConfigError
from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Generation, Request
from harness.decoding.forced_tokens import ForcedTokens
from harness.decoding.sampling import DecodingParams, stream_key
from harness.engines.engine import Engine, Method, ServedModel
from harness.store.records import GenerationRecord, Verdict
from harness.tasks.conversation import Conversation, Message

Block = tuple[Conversation, ...]
CallKey = tuple[str, int, int]
"""(conversation, turn, sample): what the generations of different players are paired by."""
Answers = dict[CallKey, str]
"""The text of the assistant's answer to each call, for a frozen history."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """Who answers: an arm or a rung of the ladder."""

    name: str
    method: Method
    kind: Literal["arm", "roundless", "rung"] = "arm"
    """The `GenerationRecord.kind` of its records."""
    width: int = 1
    """Most tokens of one target forward, for a player that does not tell its rounds."""
    in_process: bool = True
    """Whether its forwards are transformers'; False for another engine beside one of this process."""

    @property
    def remembers_run(self) -> bool:
        """Whether what it drafts for a prompt depends on the prompts before it."""
        return self.method.knowledge.startswith("process")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass of a player over a block."""

    player: Player
    seed: int = 0
    """Index into the seeds of the decoding."""
    repeat: int = 0
    order: int = 0
    """Place among the passes over the same block."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One prompt that a scenario wants answered.

    `turn` and `sample` are the scenario's own counts, and every call of a pass has another pair of them. The
    ledger keeps both, so that the numbers of a scenario can be grouped by them.
    """

    conversation: Conversation
    prompt: Sequence[int]
    """Token ids. A scenario that begins an answer itself ends the prompt with that beginning."""
    turn: int = 0
    """Index of the call in its sample: a turn of the conversation, or a further look at the same question."""
    sample: int = 0
    """Index of the sample among all that this conversation is asked for, over all seeds."""
    forced: ForcedTokens | None = None
    """Tokens that must stand at some place of the answer, as the end of a thought."""


@dataclass(frozen=True, kw_only=True)
class TurnResult:
    """One generation, with what the verdict needs to judge it."""

    by: Pass
    call: Call
    request: Request
    generation: Generation
    peak_memory_bytes: int | None
    energy_mj: int | None

    @property
    def player(self) -> Player:
        """Who answered."""
        return self.by.player

    @property
    def key(self) -> CallKey:
        """What generations of different players are paired by."""
        return self.call.conversation.id, self.call.turn, self.call.sample

    def record(
        self, verdict: Verdict | None, batch_size: int, timed: bool, quality: Mapping[str, int] | None = None
    ) -> GenerationRecord:
        """The entry of the ledger.

        batch_size: sequences that ran at the same time. quality: quantities of the judged output, by name.
        """
        made = self.generation
        assert made.stop is not None
        return GenerationRecord(
            arm=self.player.name,
            kind=self.player.kind,
            conversation=self.call.conversation.id,
            category=self.call.conversation.category,
            turn=self.call.turn,
            sample=self.call.sample,
            repeat=self.by.repeat,
            order=self.by.order,
            batch_size=batch_size,
            timed=timed,
            prompt_hash=prompt_hash(self.request.prompt),
            num_prompt_tokens=len(self.request.prompt),
            output_ids=made.output_ids,
            stop=made.stop,
            **made.quantities(
                peak_memory_bytes=self.peak_memory_bytes, energy_mj=self.energy_mj, **(quality or {})
            ),
            verdict=verdict,
        )


def prompt_hash(ids: Sequence[int]) -> str:
    """Sixteen hex digits of the SHA-256 over token ids."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TurnRunner:
    """Asks the engine on behalf of a scenario; all players of a run share it."""

    engine: Engine
    model: ServedModel
    params: DecodingParams
    acceptor: Acceptor
    render: Callable[[Sequence[Message]], list[int]]
    """Messages to the token ids of a prompt."""
    decode: Callable[[Sequence[int]], str]
    """Output ids to the text of the answer."""

    def chat_prompt(self, conversation: Conversation, answers: Sequence[str]) -> list[int]:
        """Ids of the prompt for the turn after `answers`.

        Raises:
            ConfigError: an id is outside the vocabulary, or the chat template refuses the messages.
        """
        if conversation.input_ids:
            ids, most = list(conversation.input_ids), self.model.vocab_size - 1
            if not 0 <= min(ids) <= max(ids) <= most:
                raise ConfigError(
                    f"conversation {conversation.id}: token ids must lie in 0..{most}, the target's"
                    f" vocabulary; got {min(ids)}..{max(ids)}"
                )
            return ids
        messages: list[Message] = []
        for number, text in enumerate(conversation.turns[: len(answers) + 1]):
            messages.append(Message(role="user", content=text))
            if number < len(answers):
                messages.append(Message(role="assistant", content=answers[number]))
        return self.render(messages)

    def has_room(self, call: Call) -> bool:
        """Whether the prompt leaves room for an answer."""
        return len(call.prompt) < self.model.max_context

    def check_room(self, call: Call) -> None:
        """Raise ConfigError where the prompt leaves no room for an answer."""
        if not self.has_room(call):
            raise ConfigError(
                f"conversation {call.conversation.id}, turn {call.turn}: the prompt has {len(call.prompt)}"
                f" tokens and target.max_context is {self.model.max_context}; choose others with task.ids or"
                " task.categories, or raise target.max_context where the model allows it"
            )

    def ask(
        self,
        one_pass: Pass,
        calls: Sequence[Call],
        *,
        same_question: bool = False,
        max_new_tokens: int | None = None,
    ) -> list[TurnResult]:
        """Have the engine answer the calls together: one result per call, in order.

        same_question: whether these calls and the last ones of this pass belong to one question; see
        `Engine.generate`. A later turn of a conversation is another question.
        max_new_tokens: a budget of these calls, below that of the decoding; None: the decoding's.

        Raises:
            ConfigError: a prompt leaves no room for an answer.
        """
        params = self.params
        if max_new_tokens is not None:
            params = replace(params, max_new_tokens=min(max_new_tokens, params.max_new_tokens))
        requests = [self._request(one_pass, call) for call in calls]
        self.engine.reset_peak()
        before = self.engine.energy_mj()
        generations = self.engine.generate(
            requests, one_pass.player.method, params, self.acceptor, same_question
        )
        after, peak = self.engine.energy_mj(), self.engine.peak_memory_bytes()
        energy = None if before is None or after is None else after - before
        total_ns = sum(made.total_ns for made in generations)
        return [
            TurnResult(
                by=one_pass,
                call=call,
                request=request,
                generation=made,
                peak_memory_bytes=peak,
                energy_mj=_share(energy, made.total_ns, total_ns),
            )
            for call, request, made in zip(calls, requests, generations, strict=True)
        ]

    def _request(self, one_pass: Pass, call: Call) -> Request:
        self.check_room(call)
        key = stream_key(self.params.seeds[one_pass.seed], call.conversation.id, call.turn, call.sample)
        return Request(prompt=call.prompt, key=key, forced=call.forced)


def _share(energy_mj: int | None, own_ns: int, total_ns: int) -> int | None:
    """A generation's share of its batch's energy, by time; None where energy or time is unknown."""
    return None if energy_mj is None or not total_ns else round(energy_mj * own_ns / total_ns)
