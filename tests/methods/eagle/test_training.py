"""What the trainer computes is what the drafter will compute; a head can learn by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trainable import TrainingRow, TrainingStep
from harness.drafting.trees import DynamicTree
from harness.runtime.cache import SlotCache
from harness.target.model import Target
from methods.eagle import Eagle
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.eagle.steps import HeadSteps
from methods.shared.eagle.training import EagleRecipe, counting_rows, unrolled_steps
from methods.vanilla import Vanilla
from tests.methods.eagle.test_drafter import HEADS, VOCAB, model_of, random_weights


def row_of(target: Target, taps: Any, documents: list[list[int]], num_prompt: int) -> TrainingRow:
    """Documents in one row; each one's features are those of the document alone."""
    ids, answer, document, positions = [], [], [], []
    states: list[list[torch.Tensor]] = []
    from harness.drafting.drafter import HiddenTap

    for number, tokens in enumerate(documents):
        ids += tokens
        answer += [place >= num_prompt for place in range(len(tokens))]
        document += [number] * len(tokens)
        positions += list(range(len(tokens)))
        _, seen = target.trace(torch.tensor([tokens]), (*taps, HiddenTap(-1, "normed")))
        states.append([state[0] for state in seen])
    *tapped, final = [torch.cat(parts) for parts in zip(*states, strict=True)]
    return TrainingRow(
        ids=torch.tensor(ids),
        answer=torch.tensor(answer),
        document=torch.tensor(document),
        positions=torch.tensor(positions),
        taps=tapped,
        final=final,
        best=target.lm_head(final).argmax(-1),
    )


def draft_ids(head: DraftHead) -> torch.Tensor:
    return head.d2t + torch.arange(len(head.d2t))


def drafter_for(target: Target, architecture: Any = "eagle3", **options: Any) -> Eagle:
    tree = DynamicTree(total_token=6, depth=4, top_k=1)
    drafter = Eagle(architecture=architecture, tree=tree, head="random", **options)
    drafter.bind(target)
    return drafter


STEP = TrainingStep(number=0, num_steps=1)
DOCUMENTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8, 1, 8], [1, 6]]


@pytest.mark.parametrize(
    "kind", ["eagle3", "eagle3, draft vocabulary", "eagle3, normed state recurs", "eagle3, normed residual"]
)
def test_logits_of_every_unrolled_step_are_the_drafters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, target = random_weights(HEADS[kind]), Target(model_of("llama"))
    taps = drafter_for(target).taps
    row = row_of(target, taps, DOCUMENTS, 3)
    features = torch.cat(row.taps, dim=-1)
    of_all_steps: list[torch.Tensor] = []
    original = head.logits
    monkeypatch.setattr(
        head,
        "logits",
        lambda *args: of_all_steps.append(original(*args)) or of_all_steps[-1],  # type: ignore[func-returns-value]
    )
    with torch.no_grad():
        unrolled_steps(head, features, row, target, EagleRecipe(ttt_length=4), DraftVocabulary(head, target))
    monkeypatch.undo()
    logits = torch.split(of_all_steps[0], [int(counting_rows(row, step).sum()) for step in range(4)])
    begin = 0
    num_compared = 0
    for tokens in DOCUMENTS:
        for place in range(len(tokens)):
            for step in range(4):
                rows = counting_rows(row, step).nonzero()[:, 0].tolist()
                if begin + place not in rows:
                    continue
                steps = HeadSteps(target, head, SlotCache())
                growth = Growth(steps)
                growth.begin(1)
                known = features[begin : begin + place + 1][None]
                growth.feed(known, torch.tensor([tokens[1 : place + 2]]), [place + 1])
                state = growth.state[:, None]
                for ahead in range(step):
                    token = torch.tensor([[tokens[place + 2 + ahead]]])
                    growth.expand(token, torch.tensor([[ahead - 1]]), 1)
                    state = growth._outputs[:, -1:]
                drafted = steps.score(state)[0, 0]
                trained = logits[step][rows.index(begin + place)]
                torch.testing.assert_close(trained, drafted, atol=1e-4, rtol=1e-4)
                num_compared += 1
        begin += len(tokens)
    assert num_compared > 20


def test_rows_count_where_drafting_asks_for_them() -> None:
    """The pending token and everything up to the guess belong to one answer of one document."""
    row = TrainingRow(
        ids=torch.arange(10),
        answer=torch.tensor([0, 0, 1, 1, 1, 0, 0, 1, 1, 1]).bool(),
        document=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2]),
        positions=torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 0]),
        taps=[],
        final=torch.empty(0),
        best=torch.empty(0),
    )
    assert counting_rows(row, 0).nonzero()[:, 0].tolist() == [1, 2, 6]
    assert counting_rows(row, 1).nonzero()[:, 0].tolist() == [1]
    assert counting_rows(row, 2).nonzero()[:, 0].tolist() == []
    assert counting_rows(row, 99).sum() == 0


@pytest.mark.parametrize(("architecture", "least"), [("eagle", 4.0), ("eagle3", 4.6)])
def test_a_head_overfitted_on_ten_conversations_drafts_them_to_nearly_its_full_depth(
    architecture: str, least: float
) -> None:
    """The classic check from end to end: what the trainer teaches is what the loop asks for."""
    target = Target(model_of("llama"))
    drafter = drafter_for(target, architecture, draft_vocab_size=VOCAB if architecture == "eagle3" else None)
    drafter.recipe.noise = 0.0
    drafter.recipe.ce_weight, drafter.recipe.ttt_length = 1.0, 5
    engine = DecodingLoop(target, (), 512, timed=False)
    requests = [Request(prompt=[seed, (seed * 5 + 3) % VOCAB, seed // 3], key=seed) for seed in range(10)]
    params = DecodingParams(name="greedy", max_new_tokens=30)
    vanilla = Vanilla()
    vanilla.bind(target)
    answers = engine.generate(requests, vanilla, params, Coupled())
    documents = [[*one.prompt, *made.output_ids] for one, made in zip(requests, answers, strict=True)]
    row = row_of(target, drafter.taps, documents, 3)
    student = drafter.begin_training(torch.bincount(row.ids, minlength=VOCAB), [row], seed=0)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=4e-3)

    def tau() -> float:
        drafter.deploy()
        made = engine.generate(requests, drafter, params, Coupled())
        assert [one.output_ids for one in made] == [one.output_ids for one in answers]
        rounds = [count for one in made for count in one.emitted]
        return sum(rounds) / len(rounds)

    untrained = tau()
    for _ in range(180):
        loss = drafter.loss([row], STEP).total
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    # Five drafted levels and 29 tokens to come: at most 5.8 a round.
    assert untrained < 2.5
    assert tau() > least


def test_the_draft_vocabulary_is_of_the_most_frequent_tokens() -> None:
    target = Target(model_of("llama"))
    drafter = drafter_for(target, draft_vocab_size=4)
    row = row_of(target, drafter.taps, DOCUMENTS, 3)
    counts = torch.tensor([0, 5, 9, 0, 0, 5, 0, 0, 5, 5, 0, 0])
    head = drafter.begin_training(counts, [row], seed=0)
    assert (head.d2t + torch.arange(4)).tolist() == [1, 2, 5, 8]


def test_the_scale_of_the_features_is_folded_into_what_is_deployed() -> None:
    target = Target(model_of("llama"))
    drafter = drafter_for(target)
    row = row_of(target, drafter.taps, DOCUMENTS, 3)
    drafter.begin_training(torch.ones(VOCAB), [row], seed=0)
    drafter.deploy()
    features = torch.cat(row.taps, dim=-1)
    assert drafter._scale is not None
    torch.testing.assert_close(
        drafter.network.project(features), drafter._student.project(features / drafter._scale)
    )


def test_a_head_that_is_trained_on_reads_scaled_features_too_and_begins_as_it_was(tmp_path: Path) -> None:
    """Unscaled, the largest features would take steps a thousand times too large."""
    target = Target(model_of("llama"))
    first = drafter_for(target)
    row = row_of(target, first.taps, DOCUMENTS, 3)
    first.begin_training(torch.ones(VOCAB), [row], seed=0)
    first.export(tmp_path, {})
    again = Eagle(architecture="eagle3", tree=first.tree, head=str(tmp_path))
    again.bind(target)
    student = again.begin_training(torch.ones(VOCAB), [row], seed=1)
    features = torch.cat(row.taps, dim=-1)
    assert again._scale is not None
    torch.testing.assert_close(student.project(features / again._scale), again.network.project(features))
    torch.testing.assert_close(
        first.loss([row], STEP).total, again.loss([row], STEP).total, rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
def test_a_share_of_the_rows_has_the_mean_loss_of_all(architecture: Any) -> None:
    target = Target(model_of("llama"))
    documents = [[place * 7 % VOCAB for place in range(40)], [place * 5 % VOCAB for place in range(30)]]
    row = row_of(target, drafter_for(target, architecture).taps, documents, 3)

    def mean_loss(share: float, num_draws: int) -> float:
        torch.manual_seed(1)
        recipe = EagleRecipe(row_share=share, noise=0.0, ttt_length=3, decay=1.0)
        drafter = drafter_for(target, architecture, recipe=recipe)
        drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
        with torch.no_grad():
            return sum(float(drafter.loss([row], STEP).total) for _ in range(num_draws)) / num_draws

    whole = mean_loss(1.0, 1)
    assert mean_loss(0.5, 1) != whole
    assert mean_loss(0.5, 60) == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
def test_a_row_in_which_nothing_counts_has_a_loss_of_nothing(architecture: Any) -> None:
    target = Target(model_of("llama"))
    drafter = drafter_for(target, architecture)
    row = row_of(target, drafter.taps, [[1, 2, 3, 4]], 4)
    drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
    loss = drafter.loss([row], STEP).total
    loss.backward()
    assert float(loss) == 0


def test_the_draft_vocabulary_has_the_targets_law() -> None:
    target, head = Target(model_of("llama")), random_weights(HEADS["eagle3, draft vocabulary"])
    final = torch.randn(5, target.config.hidden_size)
    vocabulary = DraftVocabulary(head, target)
    ids = draft_ids(head)
    torch.testing.assert_close(vocabulary.logits(final), target.lm_head(final)[:, ids])
    assert torch.equal(vocabulary.index(ids), torch.arange(len(ids)))
    outside = torch.ones(target.vocab_size, dtype=torch.bool)
    outside[ids] = False
    assert vocabulary.index(outside.nonzero()[:, 0]).eq(-1).all()
