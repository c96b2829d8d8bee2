"""EAGLE-1, EAGLE-2 and EAGLE-3: a small head that guesses the target's next features, grown into a tree.

EAGLE-1 (Li et al. 2024, arXiv 2401.15077): one decoder layer predicts the target's next final feature from
its last one and the token drawn after it; a static tree. EAGLE-2 (arXiv 2406.16858): the same weights, a tree
that follows the head's own confidence. EAGLE-3 (arXiv 2503.01840): features of three blocks, trained on its
own guesses, a draft vocabulary.
A round feeds the pairs (true feature, next token) that the last one brought to the head's cache; the tree is
then grown on rows behind them that vanish, so no key of a guessed feature survives.
Where the code departs from the official one: scores in float32 with ties to the earlier candidate, batches,
and static trees of likeliest (not sampled) children.

Shapes: B sequences, m new pairs, k nodes, c children, E nodes expanded so far, H hidden size of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from harness.attention import grouped, tree_mask
from harness.cache import SlotCache
from harness.config import ConfigError, configurable
from harness.draft import Draft
from harness.drafter import Drafter, HiddenTap, Outcome, TargetView
from harness.trees import Proposals, TreePolicy
from methods.shared.eagle_checkpoint import LoadedHead, TargetFacts, load_head, random_head
from methods.shared.eagle_head import Architecture, Head

_CHUNK = 1024
"""Pairs of a prompt that are fed at once: their mask is quadratic."""
_MARGIN = 0.1
"""The other reading of the tapped layers may be right that much more often: noise of few rows."""


@configurable
class Eagle(Drafter):
    """Drafts trees with a trained head.

    head: a folder, a hub id, or `random` (weights from `seed`: benchmarks of shape, drafts nothing good).
    tree: see `harness.trees`. dtype: of the head; `target` is the target's.
    aux_layers: the tapped blocks of EAGLE-3; None takes the checkpoint's, else the official 2, L//2 and L-3.
    aux_convention: whether these name the blocks whose `input` or whose `output` is tapped. `auto`: `output`
    if the checkpoint's list begins with 1, as SpecForge writes it, else `input`.
    norm_output, norm_before_residual: see `HeadShape`; None is what the checkpoint says.
    draft_vocab_size: of a random head; None is the target's whole vocabulary.
    """

    architecture: Architecture
    tree: TreePolicy
    head: str | None = None
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    aux_layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    aux_convention: Literal["auto", "input", "output"] = "auto"
    norm_output: bool | None = None
    norm_before_residual: bool | None = None
    draft_vocab_size: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    @property
    def taps(self) -> tuple[HiddenTap, ...]:
        """See `Drafter`."""
        return self._taps

    def bind(self, target: TargetView) -> None:
        """See `Drafter`; reads the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target or the tree.
        """
        super().bind(target)
        self._loaded = self._load(target)
        self.network: Head = self._loaded.head
        if self.architecture == "eagle":
            self._taps: tuple[HiddenTap, ...] = (HiddenTap(-1, "normed"),)
        else:
            self._taps = self._aux_taps(target.config.num_hidden_layers)
            wanted = self.network.shape.num_taps
            if len(self._taps) != wanted:
                raise ConfigError(
                    f"aux_layers: {len(self._taps)} layers are named, but the fc of the head"
                    f" {self.head} reads {wanted}"
                )
        width = self.network.shape.draft_vocab_size
        if self.tree.num_children > width:
            raise ConfigError(
                f"tree: {self.tree.num_children} children of a node, but the head's vocabulary has {width}"
            )
        self._cache = SlotCache()

    def card(self) -> dict[str, Any]:
        """See `Drafter`."""
        return {**self._loaded.card, "taps": [[tap.layer, tap.point] for tap in self._taps]}

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """See `Drafter`: compares both readings of the tapped layers by how often the head is right."""
        if self.architecture == "eagle" or self.head == "random":
            return
        flipped = {"input": "output", "output": "input"}
        others = tuple(HiddenTap(tap.layer, flipped[tap.point]) for tap in self._taps)
        num_right = num_right_otherwise = num_rows = 0
        for prompt in prompts:
            if len(prompt) < 3:
                continue
            ids = torch.tensor([list(prompt)], device=self._target.device)
            logits, states = self._target.trace(ids, (*self._taps, *others))
            best = logits[:, 1:].argmax(-1)
            num_right += int((self._guess(ids, states[: len(others)]) == best).sum())
            num_right_otherwise += int((self._guess(ids, states[len(others) :]) == best).sum())
            num_rows += best.shape[1]
        if num_right_otherwise - num_right > _MARGIN * num_rows:
            given, layers = self._taps[0].point, [tap.layer for tap in self._taps]
            raise ConfigError(
                f"aux_convention: fed the {given}s of blocks {layers}, the head {self.head} guesses"
                f" {num_right / num_rows:.0%} of the target's tokens, but fed their {flipped[given]}s"
                f" {num_right_otherwise / num_rows:.0%}; type aux_convention={flipped[given]} for this method"
            )

    def reset(self, num_rows: int) -> None:
        """See `Drafter`."""
        self._cache.clear(num_rows)

    def observe(self, outcome: Outcome) -> None:
        """See `Drafter`; the pairs of a true feature and the token after it wait for the next draft."""
        counts = [len(committed) for committed in outcome.committed]
        longest = max(counts)
        following = [
            [*committed[1:], pending] + [0] * (longest - len(committed))
            for committed, pending in zip(outcome.committed, outcome.pending, strict=True)
        ]
        device, dtype = self._target.device, self.network.fc.weight.dtype
        self._tokens = torch.tensor(following).to(device, non_blocking=True)
        self._features = torch.cat([states.to(device, dtype) for states in outcome.taps], dim=-1)
        self._counts = counts

    def propose(self, room: Sequence[int]) -> Draft:
        """See `Drafter`."""
        # The room is not looked at: to the last round the tree is the one that the official code would grow.
        self.growth = Growth(self._target, self.network, self._cache)
        self.growth.feed(self._features, self._tokens, self._counts)
        return self.tree.grow(self.growth)

    def keep(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self._cache.keep(list(rows))
        self._tokens, self._features = self._tokens[list(rows)], self._features[list(rows)]
        self._counts = [self._counts[row] for row in rows]

    def _load(self, target: TargetView) -> LoadedHead:
        config = target.config
        dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        facts = TargetFacts(
            hidden_size=config.hidden_size, vocab_size=target.vocab_size, num_layers=config.num_hidden_layers
        )
        if self.head is None:
            raise ConfigError(
                "head: none is known for this target; give one of the architecture"
                f" {self.architecture!r} with methods.NAME.head=FOLDER (or a hub id ORG/NAME),"
                " or `random` to measure the shape alone"
            )
        if self.head == "random":
            return random_head(
                architecture=self.architecture,
                target=facts,
                like=config,
                draft_vocab_size=self.draft_vocab_size,
                dtype=dtype,
                device=target.device,
                seed=self.seed,
            )
        return load_head(
            self.head,
            revision=self.revision,
            architecture=self.architecture,
            target=facts,
            dtype=dtype,
            device=target.device,
            norm_output=self.norm_output,
            norm_before_residual=self.norm_before_residual,
        )

    def _aux_taps(self, num_layers: int) -> tuple[HiddenTap, ...]:
        """The official code records the residual stream entering blocks 2, L//2 and L-3."""
        official = (min(2, num_layers - 1), num_layers // 2, max(num_layers - 3, 0))
        written = self._loaded.aux_layers
        layers = self.aux_layers or written or official
        point = self.aux_convention
        if point == "auto":
            point = "output" if self.aux_layers is None and written and written[0] == 1 else "input"
        return tuple(HiddenTap(layer, point) for layer in layers)

    def _guess(self, ids: Tensor, states: Sequence[Tensor]) -> Tensor:
        """The head's likeliest tokens [1, n - 1]: token i + 2, from feature i and token i + 1."""
        growth = Growth(self._target, self.network, SlotCache())
        growth.begin(1)
        dtype = self.network.fc.weight.dtype
        features = torch.cat([state.to(dtype) for state in states], dim=-1)[:, :-1]
        guessed = growth.feed(features, ids[:, 1:], [features.shape[1]])
        return growth.proposals(guessed, 1).tokens[..., 0]


class Growth:
    """One round's `Grower`: the head run over pairs that stay in its cache, then over nodes that do not.

    state [B, H], logits [B, V]: after the pending token (for whoever wants to look).
    """

    def __init__(self, target: TargetView, network: Head, cache: SlotCache) -> None:
        self._target, self._network, self._cache = target, network, cache
        self._root = self._outputs = self._seen = torch.empty(0)

    def begin(self, num_rows: int) -> None:
        """Forget the cache."""
        self._cache.clear(num_rows)

    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        """Take in true pairs: features [B, m, F] and tokens [B, m], each one after its feature.

        The first `counts[b]` of each sequence stay. States [B, m, H] after them.
        """
        num_rows, num_pairs = tokens.shape
        states = self._network.project(features)
        pieces = []
        for start in range(0, num_pairs, _CHUNK):
            here = slice(start, start + _CHUNK)
            count = tokens[:, here].shape[1]
            behind = torch.ones(count, start + count, dtype=torch.bool, device=tokens.device).tril(start)
            offsets = torch.arange(start, start + count, device=tokens.device)
            tree = behind.expand(num_rows, -1, -1)
            pieces.append(self._run(tokens[:, here], states[:, here], offsets[None], tree))
        outputs = torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
        self._cache.advance(counts)
        last = torch.tensor(list(counts)).to(tokens.device, non_blocking=True) - 1
        self._outputs = outputs.gather(1, last[:, None, None].expand(-1, 1, outputs.shape[-1]))
        self._seen = torch.zeros(num_rows, 1, 0, dtype=torch.bool, device=tokens.device)
        return outputs

    @property
    def state(self) -> Tensor:
        """See the class."""
        return self._outputs[:, 0]

    @property
    def logits(self) -> Tensor:
        """See the class."""
        return self.score(self.state)

    def start(self, num_children: int) -> Proposals:
        """See `Grower`."""
        return self.proposals(self.state, num_children)

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """See `Grower`. A node's state is its parent's output; it sees the pairs, its ancestors, itself."""
        num_rows, num_nodes = tokens.shape
        rows = torch.arange(num_rows, device=tokens.device)[:, None]
        states, above = self._outputs[rows, parents + 1], self._seen[rows, parents + 1]
        itself = torch.eye(num_nodes, dtype=torch.bool, device=tokens.device).expand(num_rows, -1, -1)
        seen = torch.cat([above, itself], dim=-1)
        # The pending token's own pair is the last one of the cache; a child of it comes one position later.
        outputs = self._run(tokens, states, seen.sum(-1) - 1, seen)
        self._outputs = torch.cat([self._outputs, outputs], dim=1)
        wider = torch.nn.functional.pad(self._seen, (0, num_nodes))
        self._seen = torch.cat([wider, seen], dim=1)
        return self.proposals(outputs, num_children)

    def score(self, states: Tensor) -> Tensor:
        """Logits [..., V] over the draft vocabulary."""
        network = self._network
        normed = network.normed(states)
        if network.shape.architecture == "eagle3" and network.shape.own_lm_head:
            logits: Tensor = network.lm_head(normed)
            return logits
        return self._target.lm_head(normed.to(self._target.dtype)).to(states.device)

    def proposals(self, states: Tensor, num_children: int) -> Proposals:
        """The best tokens after `states` [..., H]."""
        logits = self.score(states).float()
        best = logits.topk(num_children, dim=-1)
        # A float32 log-probability of at most 0, so that no child outscores its parent.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        tokens = best.indices
        if self._network.shape.draft_vocab_size != self._network.shape.vocab_size:
            tokens = tokens + self._network.d2t[tokens]
        return Proposals(tokens, log_probs)

    def _run(self, tokens: Tensor, states: Tensor, offsets: Tensor, tree: Tensor) -> Tensor:
        """The head over n new rows of every sequence: outputs [B, n, H].

        offsets [B or 1, n]: position behind the cached pairs. tree [B, n, e + n] bool: which rows behind the
        pairs each sees, of e that are there already and of the new ones.
        """
        network, cache = self._network, self._cache
        num_rows, num_new = tokens.shape
        lengths = list(cache.lengths)
        base = torch.tensor(lengths).to(tokens.device, non_blocking=True)[:, None]
        embed = network.embed_tokens or self._target.embed
        embedded = embed(tokens).to(states.dtype)
        cache.aim(slice(0, num_rows), num_new, tokens.device, ahead=tree.shape[-1] - num_new)
        mask = tree_mask(lengths, tree)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.update(key, value, 0)
            return grouped(network, query, keys, values, mask)[0]

        output: Tensor = network(embedded, states, base + offsets, attend)
        return output
