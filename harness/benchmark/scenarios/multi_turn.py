"""Playing conversations: an arm or a rung answers the turns of a block, each turn a prompt of its own.

A block is some conversations that are decoded together, `batch_size` at a time: as one ends, the next enters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from harness.config import ConfigError
from harness.decoding.acceptance import Acceptor
from harness.decoding.loop import Generation, LocalEngine, Request
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.drafter import Drafter
from harness.engines.transformers_generate import Rung
from harness.store.records import GenerationRecord, Verdict
from harness.system.probes import energy_mj, peak_memory_bytes
from harness.tasks.conversation import Conversation, Message

Block = tuple[Conversation, ...]
Answers = dict[tuple[str, int, int], str]
"""(conversation, turn, sample) -> what the assistant said there, for a frozen history."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """Who answers: an arm (a drafter in our loop) or a rung (somebody else's loop)."""

    name: str
    drafter: Drafter | None = None
    rung: Rung | None = None


@dataclass(frozen=True, kw_only=True)
class Played:
    """One generation with what the verdict needs to look into it."""

    player: Player
    conversation: Conversation
    turn: int
    sample: int
    repeat: int
    order: int
    request: Request
    generation: Generation
    peak_memory_bytes: int
    energy_mj: int | None

    @property
    def place(self) -> tuple[str, int, int]:
        """What generations of different players are paired by."""
        return self.conversation.id, self.turn, self.sample

    def record(self, verdict: Verdict | None, batch_size: int, timed: bool) -> GenerationRecord:
        """As it is written down."""
        made = self.generation
        assert made.stop is not None
        return GenerationRecord(
            arm=self.player.name,
            kind="arm" if self.player.drafter else "rung",
            conversation=self.conversation.id,
            category=self.conversation.category,
            turn=self.turn,
            sample=self.sample,
            repeat=self.repeat,
            order=self.order,
            batch_size=batch_size,
            timed=timed,
            prompt_hash=prompt_hash(self.request.prompt),
            num_prompt_tokens=len(self.request.prompt),
            output_ids=made.output_ids,
            stop=made.stop,
            drafted=made.drafted,
            depth=made.depth,
            accepted=made.accepted,
            emitted=made.emitted,
            draft_ns=made.draft_ns,
            verify_ns=made.verify_ns,
            accept_ns=made.accept_ns,
            commit_ns=made.commit_ns,
            prefill_ns=made.prefill_ns,
            total_ns=made.total_ns,
            latency_ns=made.latency_ns,
            peak_memory_bytes=self.peak_memory_bytes,
            energy_mj=self.energy_mj,
            verdict=verdict,
        )


def _share(energy_mj: int | None, mine_ns: int, total_ns: int) -> int | None:
    """Of a batch's energy, by time; None where it was not read, or nothing was timed."""
    return None if energy_mj is None or not total_ns else round(energy_mj * mine_ns / total_ns)


def prompt_hash(ids: Sequence[int]) -> str:
    """Sixteen hex digits of the SHA-256 over token ids."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What all players of a run share.

    render: messages to prompt ids. decode: output ids to the text of the answer.
    """

    engine: LocalEngine
    params: DecodingParams
    acceptor: Acceptor
    render: Callable[[Sequence[Message]], list[int]]
    decode: Callable[[Sequence[int]], str]

    def prompt(self, conversation: Conversation, answers: Sequence[str]) -> list[int]:
        """Ids of the prompt for the turn after `answers`.

        Raises:
            ConfigError: the prompt leaves no room for an answer.
        """
        if conversation.input_ids:
            ids = list(conversation.input_ids)
        else:
            messages: list[Message] = []
            for number, text in enumerate(conversation.turns[: len(answers) + 1]):
                messages.append(Message(role="user", content=text))
                if number < len(answers):
                    messages.append(Message(role="assistant", content=answers[number]))
            ids = self.render(messages)
        if len(ids) >= self.engine.max_context:
            raise ConfigError(
                f"conversation {conversation.id}, turn {len(answers)}: the prompt has {len(ids)} tokens and"
                f" target.max_context is {self.engine.max_context}; choose others with task.ids or"
                " task.categories, or raise target.max_context where the model allows it"
            )
        vocab_size = self.engine.target.vocab_size
        if conversation.input_ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ConfigError(
                f"conversation {conversation.id}: token ids must lie in 0..{vocab_size - 1}, the target's"
                f" vocabulary; got {min(ids)}..{max(ids)}"
            )
        return ids

    def play(
        self,
        player: Player,
        block: Block,
        *,
        sample: int = 0,
        repeat: int = 0,
        order: int = 0,
        frozen: Answers | None = None,
    ) -> list[Played]:
        """Answer every turn of the block's conversations.

        frozen: the history to use instead of the player's own answers.
        """
        said: dict[str, list[str]] = {conversation.id: [] for conversation in block}
        played: list[Played] = []
        for turn in range(max(conversation.num_turns for conversation in block)):
            live = [conversation for conversation in block if turn < conversation.num_turns]
            requests = [
                self._request(conversation, turn, sample, said[conversation.id]) for conversation in live
            ]
            generations, peak, energy = self._generate(player, requests)
            total = sum(made.total_ns for made in generations)
            for conversation, request, made in zip(live, requests, generations, strict=True):
                text = (
                    frozen[conversation.id, turn, sample]
                    if frozen is not None
                    else self.decode(made.output_ids)
                    if turn + 1 < conversation.num_turns
                    else ""
                )
                said[conversation.id].append(text)
                played.append(
                    Played(
                        player=player,
                        conversation=conversation,
                        turn=turn,
                        sample=sample,
                        repeat=repeat,
                        order=order,
                        request=request,
                        generation=made,
                        peak_memory_bytes=peak,
                        energy_mj=_share(energy, made.total_ns, total),
                    )
                )
        return played

    def answers(self, vanilla: Player, block: Block, samples: Sequence[int]) -> Answers:
        """Vanilla's answers to the block, which a frozen history is made of."""
        return {
            one.place: self.decode(one.generation.output_ids)
            for sample in samples
            for one in self.play(vanilla, block, sample=sample)
        }

    def _request(self, conversation: Conversation, turn: int, sample: int, said: Sequence[str]) -> Request:
        key = stream_key(self.params.seeds[sample], conversation.id, turn, sample)
        return Request(prompt=self.prompt(conversation, said), key=key)

    def _generate(self, player: Player, requests: list[Request]) -> tuple[list[Generation], int, int | None]:
        """What came out, the peak of memory, and the millijoules of all together."""
        device = self.engine.target.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        before = energy_mj(device)
        if player.drafter is not None:
            made = self.engine.generate(requests, player.drafter, self.params, self.acceptor)
        else:
            assert player.rung is not None
            made = [player.rung.generate(self.engine, request, self.params) for request in requests]
        after = energy_mj(device)
        spent = None if before is None or after is None else after - before
        return made, peak_memory_bytes(device), spent
