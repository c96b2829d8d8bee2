"""Sequences that advance in pairs: logits, identity, the form of the image, and its picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.acceptance import Acceptor, Coupled, Rejection
from harness.decoding.batch import Generation
from harness.decoding.relaxed.cascade import Cascade
from harness.decoding.relaxed.lantern import Lantern
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, HiddenTap
from harness.drafting.trees import DynamicTree
from harness.target.image.emu3 import ImageTarget
from methods.eagle import Eagle
from methods.lookahead import Lookahead
from methods.ngram import NGram
from methods.suffix import Suffix
from methods.token_recycling import TokenRecycling
from methods.vanilla import Vanilla
from tests.target.image.models import HEIGHT, WIDTH, asked, loaded, loop, prompts, target

GREEDY = DecodingParams(name="greedy", max_new_tokens=40)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=40)


def by_hand(prompt: list[int], answer: list[int], scale: float, negative: list[int]) -> torch.Tensor:
    """Guided logits [len(answer) + 1, V] by two plain forwards, without the form of the image."""
    guidance = target(scale).guidance
    place = prompt.index(guidance.opens)
    model = loaded(scale).model
    with torch.no_grad():
        own = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
        other = [*negative, *prompt[place:]]
        free = model(input_ids=torch.tensor([[*other, *answer]])).logits[0, len(other) - 1 :]
    return free + scale * (own - free)


def tree() -> Draft:
    """For three sequences: a node, its two children, and a sibling, of pixels."""
    pixels = list(target().guidance.raster.pixels)  # type: ignore[union-attr]
    tokens = torch.tensor([[pixels[1], pixels[2], pixels[3], pixels[4]]] * 3)
    return Draft(tokens=tokens, parents=torch.tensor([[-1, 0, 0, -1]] * 3), size=torch.full((3,), 4))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("negative", ["", "ugly"])
def test_a_tree_gets_the_logits_of_two_plain_forwards(scale: float, negative: str) -> None:
    made, draft = target(scale, negative), tree()
    raster, text = made.guidance.raster, list(made.guidance.negative)
    assert raster is not None
    assert bool(text) == bool(negative)
    pixels = raster.pixels
    made.set_taps([HiddenTap(-1, "normed")])
    made.begin(3)
    first, states = made.prefill(range(3), prompts())
    pending = torch.tensor([pixels[0]] * 3)
    logits = made.verify(pending, draft)
    assert [len(one[0]) for one in states] == [len(prompt) for prompt in prompts()]
    assert made.states()[0].shape[:2] == (3, 5)
    paths = [[], [1], [1, 2], [1, 3], [4]]
    for row, prompt in enumerate(prompts()):
        for node, path in enumerate(paths):
            wanted = by_hand(prompt, [pixels[0], *(pixels[one] for one in path)], scale, text)[-1]
            assert torch.allclose(logits[row, node][list(pixels)], wanted[list(pixels)], atol=1e-4)
        wanted = by_hand(prompt, [], scale, text)[-1]
        assert torch.allclose(first[row][list(pixels)], wanted[list(pixels)], atol=1e-4)
    made.commit(torch.tensor([[0, 2, 0, 0]] * 3), [2, 2, 0])
    made.keep([2, 0])
    after = made.verify(
        torch.tensor([pixels[5], pixels[5]]), Draft.chain(torch.zeros(2, 0).long(), torch.zeros(2).long())
    )
    told = [[pixels[0]], [pixels[0], pixels[1], pixels[3]]]
    for row, (prompt, path) in enumerate(zip([prompts()[2], prompts()[0]], told, strict=True)):
        # The longer path stands at the end of its row.
        if len(path) + 1 < WIDTH:
            wanted = by_hand(prompt, [*path, pixels[5]], scale, text)[-1]
            assert torch.allclose(after[row, 0][list(pixels)], wanted[list(pixels)], atol=1e-4)
        else:
            assert int(after[row, 0].argmax()) == raster.row_end
    made.set_taps([])


def test_the_independent_paths_give_the_same_logits() -> None:
    made, prompt = target(negative="ugly"), prompts()[1]
    answer = list(made.guidance.raster.pixels[:3])  # type: ignore[union-attr]
    traced = made.trace(torch.tensor([[*prompt, *answer]]), ())[0][0]
    made.use_kernel("sdpa")
    for cut in (len(prompt) - 1, len(prompt), 2, len(prompt) + 2):
        feed = made.replay()
        parts = [feed([*prompt, *answer][:cut]), feed([*prompt, *answer][cut:])]
        assert torch.allclose(torch.cat(parts), traced, atol=1e-4)
    made.use_kernel()
    made.begin(1)
    first = made.prefill([0], [prompt])[0][0]
    assert torch.allclose(first, traced[len(prompt) - 1], atol=1e-4)


def made_by(drafter: Drafter, params: DecodingParams, acceptor: Acceptor, **options: Any) -> list[Generation]:
    found = loop(target(), **options)
    found.target.set_taps(())
    drafter.bind(found.target)
    acceptor.bind(found.target)
    return found.generate(asked(), drafter, params, acceptor)


DRAFTERS = {
    "ngram": NGram,
    "suffix": Suffix,
    "recycling": TokenRecycling,
    "lookahead": Lookahead,
    "eagle": lambda: Eagle(
        architecture="eagle", head="random", tree=DynamicTree(total_token=9, depth=2, top_k=3)
    ),
}


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda one: str(one.name))
def test_every_drafter_is_lossless_under_guidance(name: str, params: DecodingParams) -> None:
    if name == "lookahead" and not params.greedy:
        pytest.skip("it is defined at temperature 0 only")
    wanted = [one.output_ids for one in made_by(Vanilla(), params, Coupled())]
    assert [one.output_ids for one in made_by(DRAFTERS[name](), params, Coupled())] == wanted
    assert [one.output_ids for one in made_by(Vanilla(), params, Coupled(), batch_size=1)] == wanted
    if params.greedy:
        assert [one.output_ids for one in made_by(DRAFTERS[name](), params, Rejection())] == wanted


def test_an_answer_is_a_whole_image_and_has_a_picture() -> None:
    made, raster = loaded(), target().guidance.raster
    assert raster is not None
    assert made.paint is not None
    for one in made_by(Vanilla(), SAMPLED, Coupled()):
        assert len(one.output_ids) == raster.num_tokens
        assert one.stop == "end"
        codes = raster.codes(one.output_ids)
        assert codes is not None
        picture = made.paint(one.output_ids)
        assert picture is not None
        assert (len(picture), len(picture[0]), len(picture[0][0])) == (2 * HEIGHT, 2 * WIDTH, 3)
        assert made.paint(one.output_ids[:-6]) is None
        assert [token for token in one.output_ids if token == raster.row_end] == [raster.row_end] * HEIGHT


def test_guidance_changes_what_is_painted() -> None:
    outputs = []
    for scale in (1.0, 6.0):
        found = loop(target(scale))
        found.target.set_taps(())
        plain = Vanilla()
        plain.bind(found.target)
        outputs.append([one.output_ids for one in found.generate(asked(), plain, GREEDY, Coupled())])
    assert outputs[0] != outputs[1]


def test_a_prompt_that_opens_no_image_is_refused_with_a_remedy() -> None:
    made = target()
    made.begin(1)
    with pytest.raises(ConfigError, match=r"opens no image .* end the task's input_ids with them"):
        made.prefill([0], [[5, 6, 7]])


@pytest.mark.parametrize(
    "neutral",
    [Cascade(tau_breadth=2, tau_depth=2, delta=1.0), Lantern(delta=0.0)],
    ids=["cascade", "lantern"],
)
def test_neutral_relaxed_acceptors_paint_what_strict_ones_do(neutral: Acceptor) -> None:
    wanted = made_by(TokenRecycling(), SAMPLED, Coupled())
    found = made_by(TokenRecycling(), SAMPLED, neutral)
    assert [one.output_ids for one in found] == [one.output_ids for one in wanted]
    assert [one.accepted for one in found] == [one.accepted for one in wanted]


@pytest.mark.parametrize(
    "given",
    [{"device_map": "auto"}, {"tensor_parallel": 2}, {"trust_remote_code": True}],
    ids=str,
)
def test_what_an_image_target_would_not_heed_is_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ConfigError, match=rf"target\.{name}=.*: image targets do without it"):
        ImageTarget(path="nobody/here", **given).load(print)
