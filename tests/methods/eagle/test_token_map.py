"""A token map: an EAGLE-2 head drafts its tokens alone, in the order in which it preferred them before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.loop import DecodingLoop
from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree
from harness.training.features import Features
from harness.training.folder import HEAD
from harness.training.trainer import Trainer
from methods.eagle import Eagle
from tests.methods.eagle.test_drafter import (
    GREEDY,
    HEADS,
    PROMPT,
    VOCAB,
    bound,
    folder_of,
    loop_on,
    random_weights,
    request,
)
from tests.training.test_trainer import quiet, samples, training

KEPT = [11, 3, 0, 4, 8, 7]
FLAT = DynamicTree(total_token=len(KEPT) + 1, depth=0, top_k=len(KEPT))


def folder_with(tmp_path: Path, ids: Any = None) -> str:
    """An EAGLE-2 head, with a token map in its folder."""
    folder = folder_of(random_weights(HEADS["eagle"]), tmp_path)
    torch.save(KEPT if ids is None else ids, Path(folder) / "map.pt")
    return folder


def first_draft(loop: DecodingLoop, drafter: Eagle) -> tuple[list[int], Draft]:
    made = loop.generate([request(PROMPT)], drafter, GREEDY, Coupled())[0]
    return made.output_ids, made.drafts[0][0]


def test_a_head_drafts_the_tokens_of_its_map_alone_in_its_own_order(tmp_path: Path) -> None:
    loop, folder = loop_on(), folder_with(tmp_path)
    every = DynamicTree(total_token=VOCAB + 1, depth=0, top_k=VOCAB)
    output, draft = first_draft(loop, bound(loop, folder, HEADS["eagle"], every))
    same_output, narrow = first_draft(loop, bound(loop, folder, HEADS["eagle"], FLAT, token_map="map.pt"))
    wanted = [token for token in draft.tokens[0].tolist() if token in KEPT]
    assert narrow.tokens[0].tolist() == wanted
    assert same_output == output


def test_a_map_of_all_tokens_changes_no_draft(tmp_path: Path) -> None:
    loop, folder = loop_on(), folder_with(tmp_path, torch.randperm(VOCAB))
    tree = DynamicTree(total_token=14, depth=3, top_k=4)
    _, draft = first_draft(loop, bound(loop, folder, HEADS["eagle"], tree))
    _, same = first_draft(loop, bound(loop, folder, HEADS["eagle"], tree, token_map="map.pt"))
    assert torch.equal(draft.tokens, same.tokens)
    assert torch.equal(draft.parents, same.parents)


def test_the_card_tells_the_map_by_what_it_holds(tmp_path: Path) -> None:
    loop, folder = loop_on(), folder_with(tmp_path)
    told = bound(loop, folder, HEADS["eagle"], FLAT, token_map="map.pt").card()["token_map"]
    torch.save(sorted(KEPT), tmp_path / "sorted.pt")
    same = bound(loop, folder, HEADS["eagle"], FLAT, token_map=str(tmp_path / "sorted.pt")).card()[
        "token_map"
    ]
    torch.save([1, *KEPT[1:]], tmp_path / "sorted.pt")
    other = bound(loop, folder, HEADS["eagle"], FLAT, token_map=str(tmp_path / "sorted.pt")).card()
    assert (told["num_tokens"], told["sha256"]) == (len(KEPT), same["sha256"])
    assert other["token_map"]["sha256"] != told["sha256"]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([1, 2, VOCAB], f"from 0 to {VOCAB - 1}"),
        ([1, 2, 2], "names a token twice"),
        ([[1, 2]], r"shape \[1, 2\]"),
        ([], r"shape \[0\]"),
        (["a"], "no list of token ids"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(ids: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        bound(loop_on(), folder_with(tmp_path, ids), HEADS["eagle"], FLAT, token_map="map.pt")


def test_a_map_that_is_no_file_of_torch_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (Path(folder) / "map.pt").write_text("1 2 3")
    for name in ("map.pt", "nowhere.pt"):
        with pytest.raises(ConfigError, match=f"token_map={name}: cannot be read"):
            bound(loop_on(), folder, HEADS["eagle"], FLAT, token_map=name)


def test_a_head_with_an_lm_head_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = folder_of(random_weights(HEADS["eagle3"]), tmp_path)
    torch.save(KEPT, Path(folder) / "map.pt")
    with pytest.raises(ConfigError, match="LM head of its own"):
        bound(loop_on(), folder, HEADS["eagle3"], FLAT, token_map="map.pt")


def test_a_training_with_a_map_measures_with_it_and_writes_a_head_without(tmp_path: Path) -> None:
    loop, folder = loop_on(), folder_with(tmp_path)
    drafter = bound(loop, folder, HEADS["eagle"], FLAT, token_map="map.pt")
    features = Features(loop.target, drafter.taps)
    Trainer(loop, drafter, training(num_steps=2), samples(), tmp_path / "out", {"a": 1}, features).run(
        quiet, quiet
    )
    assert drafter.network.shape.draft_vocab_size == len(KEPT)
    written = bound(loop, str(tmp_path / "out" / HEAD), HEADS["eagle"], FLAT).network
    assert written.lm_head is None
    assert written.shape.draft_vocab_size == VOCAB
