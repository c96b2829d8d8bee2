"""Drafter: the interface of a method. It proposes trees and sees what became of them; it never emits a token.

Shapes: B sequences still running, n drafted nodes, r riders, V vocabulary, H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from pydantic import Field
from torch import Tensor

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.draft_policy import DraftPolicy, KeepAll
from harness.drafting.step_costs import StepCosts
from harness.runtime.cache import SlotCache
from harness.runtime.cuda_graphs import Captured
from harness.runtime.programs.rounds import RoundPrograms
from harness.runtime.programs.step import SIZES, Program

TRAINING_PROMPTS = "prompts.npy"
"""The file beside a head with the fingerprints of the prompts that it was trained on; see `tasks.overlap`."""
Scope = Literal["round", "call", "question", "process"]
"""How long a drafter remembers what it has seen. `round`: not at all; `call`: while sequences are decoded
together; `question`: over all calls that answer one question (samples of best-of-N, rounds of thinking);
`process`: for as long as the process lives."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""All scopes, the narrowest first."""


class Tap(Protocol):
    """A point of the target whose hidden states a drafter wants to see."""

    @property
    def layer(self) -> int:
        """Zero-based block index; negative counts from the end."""

    @property
    def point(self) -> str:
        """`input` or `output` of the block: the raw residual stream, before any final norm. `normed`: the
        input of the LM head, after the final norm, whatever `layer` is."""


@dataclass(frozen=True)
class HiddenTap:
    """The usual tap: the residual stream at a block's input or output."""

    layer: int
    point: str = "output"


@dataclass(frozen=True, kw_only=True)
class OwnParts:
    """What the target's blocks are made of, for a head that is one more of them.

    The classes are those of the loaded model, so a head needs no modelling code of its own.
    """

    block: Callable[[Any, int], torch.nn.Module]
    """Makes a block with fresh weights of a configuration and the block's number."""
    norm: Callable[..., torch.nn.Module]
    """Makes a norm of a width and `eps`."""
    config: Any
    """A copy of the target's configuration, for a single block with full attention over a tree's mask."""
    rotary: Callable[[Tensor, Tensor], Any]
    """Position embeddings, as a block takes them, for states [B, n, H] at positions [B, n]."""
    as_mask: Callable[[Tensor], Tensor]
    """A bool mask [B, 1, n, C] in the form that a block takes."""


class TargetView(Protocol):
    """The part of the target that a drafter may use. It cannot reach the cache, the acceptor or the clock."""

    @property
    def device(self) -> torch.device:
        """The device of a draft's tensors."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the target's weights."""

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""

    @property
    def config(self) -> Any:
        """The target's transformers configuration (text part); read only."""

    @property
    def own_parts(self) -> OwnParts:
        """What the target's blocks are made of."""

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., H] of token ids [...]."""

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., H] (after the target's final norm)."""

    def prepare(self, module: torch.nn.Module, field: str = "head") -> None:
        """Make the linear layers of the drafter's own module multiply as the target's do (inference only).

        field: the setting of the drafter that the module comes from, for the message.

        Raises:
            ConfigError: weights of the module are NaN or infinite.
        """

    def copied_model(self) -> Any:
        """A copy of the whole causal LM, for a method that trains the target itself; it takes any mask."""

    def refresh(self, module: torch.nn.Module) -> None:
        """Take over weights that were changed in place in a module that was prepared."""

    def program(self, step: Callable[..., Any], sizes: Sequence[int] = SIZES) -> Program | None:
        """A step of the drafter's own model as one compiled program; see `Program`.

        None where the target's steps are not compiled. Call the step itself for sizes that it does not serve.
        """

    def captured(
        self, function: Callable[..., Any], modules: Sequence[torch.nn.Module], cache: SlotCache
    ) -> Captured | RoundPrograms | None:
        """Part of the drafter's round as CUDA graphs (see `Captured`), or on a CPU as programs (see
        `RoundPrograms`); None where nothing is compiled.

        modules: the drafter's own; with the target's embeddings and LM head they hold all weights that the
        function multiplies with. cache: what the function writes.
        """

    def new_cache(self) -> SlotCache:
        """A cache for the drafter's own model, with as much room as the target's."""

    def trace(self, ids: Tensor, taps: Sequence[Tap]) -> tuple[Tensor, list[Tensor]]:
        """A plain causal forward over token ids [B, n], outside any timed region and without the loop's
        cache.

        Returns logits [B, n, V] and, per tap, the states [B, n, H]. For checks and training.
        """

    def trace_visible(self, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """A forward over tokens that each see only some of the others, such as token trees behind a text.

        Outside any timed region and without a cache, for training.

        Args:
            ids: [n] int64.
            positions: [n] int64.
            visible: [n, n] bool, which tokens each of them sees; it sees itself.

        Returns the states [n, H] that `lm_head` reads.
        """


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a round, or of a prefill, for the B sequences that took part."""

    committed: list[list[int]]
    """Tokens that entered the target's cache, per sequence: at a prefill the prompt, otherwise the old
    pending token and then the accepted path, in order."""
    pending: list[int]
    """The token after them, per sequence: known to be right, not in the cache, without hidden states."""
    taps: list[Tensor] = field(default_factory=list)
    """Per tap, the hidden states [B, m, H] of the committed tokens, in order; m is the longest of
    `committed`, and entries past a sequence's own length are arbitrary. The pending token has none."""
    draft: Draft | None = None
    """The draft as it was verified (after the policy), None at a prefill."""
    logits: Tensor | None = None
    """[B, 1+n, V]: the target's raw logits after the old pending token and after every drafted node, rejected
    ones included; None at a prefill. The next forward may overwrite them: copy what you need to keep."""
    rider_logits: Tensor | None = None
    """[B, r, V]: the target's raw logits after every rider of the draft; None without riders. The next
    forward may overwrite them, too."""
    rows: Sequence[int] | None = None
    """The running sequences that took part, by index; None stands for all of them, in order. Only a prefill
    has rows: new sequences have replaced finished ones, of which nothing may be left."""


@configurable
class Drafter(ABC):
    """Base of all methods.

    The loop calls `bind` once. A call that decodes sequences together begins with `new_call`, `reset` and the
    `observe` of the prefill; then `propose` and `observe` take turns. `keep` follows when sequences finish,
    and `observe` with `Outcome.rows` when new ones replace finished ones. The method is charged for all of
    it.
    """

    samples: ClassVar[bool] = True
    """False for a method that is only defined at temperature 0."""
    policy: DraftPolicy = Field(default_factory=KeepAll)
    """Decides which nodes of a proposed draft are verified; see `harness.drafting.draft_policy`."""
    remember: Literal["call", "question", "process"] | None = None
    """Replaces the scope of a drafter that remembers beyond a call, for ablations: `call` has it forget what
    its scope would keep."""

    @property
    def scope(self) -> Scope:
        """How long the drafter remembers; tables name every scope that is wider than a call.

        The loop calls `new_call` accordingly, so a drafter need not know what a question is.
        """
        return "call"

    @property
    def effective_scope(self) -> Scope:
        """The scope, or what `remember` makes of one that is wider than a call."""
        own = self.scope
        return self.remember if self.remember and own in ("question", "process") else own

    @property
    def corpus(self) -> str | None:
        """The name of the text from outside the run that it drafts from, for the tables; None: there is
        none."""
        return None

    @property
    def knowledge(self) -> str:
        """The scope, or the corpus where there is one: the source of its drafts, for the manifest."""
        if self.corpus is None:
            return self.effective_scope
        wider = "" if self.effective_scope in ("round", "call") else f"{self.effective_scope}, "
        return f"{wider}corpus {self.corpus}"

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The target's hidden states that `observe` receives."""
        return ()

    def bind(self, target: TargetView) -> None:
        """Load weights for this target and check their shapes. Called before anything is timed.

        Raises:
            ConfigError: something does not fit; the text begins with the name of the field, because the
                caller puts the method's name before it.
        """
        self._target = target

    def check(self, prompts: Sequence[Sequence[int]]) -> None:  # noqa: B027 - a hook
        """Try a few prompts before anything is timed; the drafter must not keep anything of them.

        Raises:
            ConfigError: the weights do not fit the target, or are read by the wrong convention.
        """

    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None] | None:
        """A callable that runs one forward of the drafter's own model, to be timed for a cost table.

        It takes the number of new tokens of each of `num_rows` sequences, behind `context` cached ones; every
        call does the same work. None: the drafter has no model. Forgets every sequence.
        """
        return None

    @property
    def weighs_costs(self) -> bool:
        """Whether the drafter decides by what forwards cost, so that these are measured even in a run that is
        not timed."""
        return self.policy.weighs_costs

    def use_costs(self, costs: StepCosts, num_rows: int) -> None:
        """Receive what the target's forwards cost, before `warm_up`, for rounds of `num_rows` sequences.

        Here: hand them to the policy.
        """
        self.policy.use_costs(costs, num_rows, self.rehearse)

    def warm_up(self, num_rows: int) -> None:  # noqa: B027 - a hook
        """Compile every program that rounds of `num_rows` sequences may take; nothing is timed yet."""

    @property
    def num_drafted(self) -> int | None:
        """The number of nodes of every draft; None: it varies."""
        return None

    @property
    def num_bytes(self) -> int:
        """Memory of the drafter's own model after `bind`, without what it shares with the target."""
        return 0

    def card(self) -> dict[str, Any]:
        """Facts about the loaded weights, in JSON types: source, hash, origin, conventions."""
        return {}

    @property
    def training_prompts(self) -> Sequence[Path]:
        """Files of the fingerprints of the prompts that the loaded heads were trained on
        (`TRAINING_PROMPTS`); none where a head says nothing of them."""
        return ()

    def new_call(self, keep_memory: bool) -> None:  # noqa: B027 - a hook
        """A call of the loop begins; `reset` follows.

        keep_memory: whether the drafter may use what it learned in earlier calls. If not, it must forget it.
        The loop decides this by `effective_scope`: a `question` drafter keeps its memory while calls belong
        to the same question, a `process` drafter always, any other never. A drafter whose whole state belongs
        to its sequences has nothing to do here.
        """

    @abstractmethod
    def reset(self, num_rows: int) -> None:
        """Forget the sequences; `num_rows` new ones follow.

        Memory that outlives sequences is not touched: `new_call` has kept or dropped it.
        """

    @abstractmethod
    def propose(self, room: Sequence[int]) -> Draft:
        """A draft for every running sequence.

        room: levels deeper than `room[b]` cannot be emitted; a drafter may save that work or ignore it.
        """

    @abstractmethod
    def observe(self, outcome: Outcome) -> None:
        """Receive the tokens that entered the cache and the pending ones."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Continue with the sequences of these indices only, in this order."""


def keeps_memory(scope: Scope, same_question: bool) -> bool:
    """Whether a drafter of this scope may use what it learned before the call that begins now.

    same_question: the call before, of the same drafter, was about the same question.
    """
    return scope == "process" or (scope == "question" and same_question)
