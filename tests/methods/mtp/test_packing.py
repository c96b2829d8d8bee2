"""Packed spans: masks change nothing in the text, and a packed teacher judges as separate passes would."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.drafting.trainable import TrainingRow
from methods.mtp.packing import Packed, pack
from methods.mtp.training import MtpRecipe, anchors_of, logits_of, span_loss, with_mask
from tests.support.targets import VOCAB, tiny_model

LENGTH = 40


def model() -> Any:
    made = with_mask(copy.deepcopy(tiny_model("llama")), seed=3).eval().requires_grad_(False)
    made.set_attn_implementation("sdpa")
    return made


MODEL = model()


def row_of(seed: int, documents: int = 1) -> TrainingRow:
    random = torch.Generator().manual_seed(seed)
    size = LENGTH // documents
    return TrainingRow(
        ids=torch.randint(4, VOCAB, (LENGTH,), generator=random),
        answer=torch.tensor(([False] * 3 + [True] * (size - 3)) * documents),
        document=torch.arange(documents).repeat_interleave(size),
        positions=torch.arange(size).repeat(documents),
        taps=[],
        final=torch.empty(0),
        best=torch.empty(0),
    )


def packed_of(row: TrainingRow, anchors: list[int], num_tokens: int) -> Packed:
    return pack(row.ids, row.positions, row.document, torch.tensor(anchors), num_tokens, VOCAB)


def plain(ids: Tensor) -> Tensor:
    """Logits [n, V] of an ordinary causal forward."""
    logits: Tensor = MODEL(input_ids=ids[None], use_cache=False).logits[0, :, :-1]
    return logits


spans = st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=6, unique=True).map(sorted)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999), anchors=spans, num_tokens=st.integers(1, 7), documents=st.sampled_from([1, 2])
)
def test_the_text_of_a_packed_row_is_the_text_alone(
    seed: int, anchors: list[int], num_tokens: int, documents: int
) -> None:
    row = row_of(seed, documents)
    packed = packed_of(row, anchors, num_tokens)
    logits = logits_of(MODEL, packed, packed.text)
    alone = torch.cat([plain(part) for part in row.ids.chunk(documents)])
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), anchors=spans, num_tokens=st.integers(2, 6))
def test_the_masks_of_one_span_change_nothing_in_another(
    seed: int, anchors: list[int], num_tokens: int
) -> None:
    row = row_of(seed)
    packed = packed_of(row, anchors, num_tokens)
    usual = logits_of(MODEL, packed, packed.spans)
    guesses = torch.full_like(packed.spans, VOCAB)
    guesses[0] = torch.randint(VOCAB, (num_tokens,), generator=torch.Generator().manual_seed(seed))
    changed = logits_of(MODEL, packed.filled(guesses), packed.spans)
    torch.testing.assert_close(changed[1:], usual[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(changed[0, 1:], usual[0, 1:], atol=1e-3)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), anchors=spans, num_tokens=st.integers(2, 6))
def test_a_packed_teacher_judges_as_separate_passes(seed: int, anchors: list[int], num_tokens: int) -> None:
    row = row_of(seed)
    packed = packed_of(row, anchors, num_tokens)
    random = torch.Generator().manual_seed(seed)
    guesses = torch.randint(VOCAB, tuple(packed.spans.shape), generator=random)
    judged = logits_of(MODEL, packed.filled(guesses), packed.spans)
    for number, anchor in enumerate(anchors):
        text = torch.cat([row.ids[: anchor + 1], guesses[number, :-1]])
        torch.testing.assert_close(judged[number], plain(text)[anchor:], atol=1e-5, rtol=1e-5)


def test_masks_follow_their_token_in_position_and_text_keeps_its_own() -> None:
    row = row_of(0)
    packed = packed_of(row, [4, 10], 4)
    assert packed.ids[packed.spans[:, 1:]].unique().tolist() == [VOCAB]
    assert packed.positions[packed.spans].tolist() == [[4, 5, 6, 7], [10, 11, 12, 13]]
    assert torch.equal(packed.positions[packed.text], row.positions)
    assert torch.equal(packed.ids[packed.text], row.ids)


def test_spans_begin_where_an_answer_follows_at_a_common_distance() -> None:
    recipe = MtpRecipe(min_tokens=2, max_tokens=3)
    torch.manual_seed(0)
    row, seen = row_of(0, documents=2), set[int]()
    for _ in range(60):
        anchors = anchors_of(row, recipe)
        assert bool(row.answer[anchors + 1].all())
        assert bool((row.document[anchors] == row.document[anchors + 1]).all())
        assert len({int(one) % 6 for one in anchors}) <= 1
        seen |= set(anchors.tolist())
    assert seen == {place for place in range(LENGTH - 1) if place % 20 >= 2 and place % 20 < 19}


def test_the_mask_has_a_row_like_the_others_and_is_never_the_likeliest() -> None:
    rows = MODEL.get_input_embeddings().weight
    assert len(rows) == VOCAB + 1
    assert abs(float(rows[-1].std() / rows[:-1].std()) - 1) < 0.3
    logits = MODEL(input_ids=torch.arange(4, 40)[None]).logits
    assert not (logits.argmax(-1) == VOCAB).any()
    original = tiny_model("llama")(input_ids=torch.arange(4, 40)[None]).logits
    torch.testing.assert_close(logits[..., :-1], original)


@pytest.mark.parametrize("hard", [True, False])
def test_a_teacher_is_left_as_it_is_and_what_follows_a_guessed_end_does_not_count(hard: bool) -> None:
    student = copy.deepcopy(MODEL).requires_grad_(True)
    teacher = copy.deepcopy(MODEL)
    row = row_of(1)
    packed = packed_of(row, [5, 20], 4)
    text = torch.full((2, 4), -1)
    recipe = MtpRecipe(hard_teacher=hard)
    loss, confidence = span_loss(student, teacher, packed, recipe, (), text)
    loss.backward()
    assert confidence.shape == (2, 4)
    assert all(map(torch.equal, teacher.parameters(), MODEL.parameters()))
    guesses = logits_of(MODEL, packed, packed.spans).argmax(-1)
    end = int(guesses[0, 1])
    ended, _ = span_loss(student, teacher, packed, recipe, (end,), text)
    log_probs = logits_of(MODEL, packed, packed.spans).log_softmax(-1)
    judged = logits_of(MODEL, packed.filled(guesses), packed.spans)
    labels = torch.nn.functional.one_hot(judged.argmax(-1), VOCAB).float() if hard else judged.softmax(-1)
    losses = -(labels * log_probs).sum(-1)
    counted = [
        float(losses[span, place])
        for span in range(2)
        for place in range(4)
        if end not in guesses[span, :place].tolist()
    ]
    assert float(ended.detach()) == pytest.approx(sum(counted) / len(counted), rel=1e-4)
    assert len(counted) < 8
