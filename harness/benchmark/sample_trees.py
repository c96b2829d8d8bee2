"""Draft trees and texts of a few generations, kept so that people can look at them; bounds in `Exhibit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from harness.benchmark.scenarios.turn_runner import TurnResult
from harness.drafting.draft import Draft
from harness.store.records import DraftTree, Exhibit
from harness.target.spec import Picture

MAX_CONVERSATIONS = 4
MAX_TREES = 12
MAX_NODES = 256
MAX_TOKENS = 1024
MAX_PROMPT_CHARS = 2000
MAX_SIDE = 128
_TORN = "\N{REPLACEMENT CHARACTER}"

Piece = Callable[[int], str]
"""The text of one token id."""


def exhibit(
    result: TurnResult,
    piece: Piece,
    decode: Callable[[Sequence[int]], str],
    paint: Callable[[Sequence[int]], Picture | None] | None = None,
) -> Exhibit:
    """The part of an arm's result that is kept; without trees where the arm tells no rounds.

    decode: ids of a prompt to its text. paint: of an image model, ids of an answer to its picture.
    """
    made, call = result.generation, result.call
    turns = call.conversation.turns
    trees = [
        draft_tree(number, *made.drafts[number], made.paths[number]) for number in chosen_rounds(made.drafted)
    ]
    # A prompt of token ids, or a scenario's further look at the same question, is no turn of the chat.
    said = turns[call.turn] if call.turn < len(turns) else decode(result.request.prompt)
    shown = dict.fromkeys(made.output_ids[:MAX_TOKENS])
    shown |= dict.fromkeys(token for tree in trees for token in tree.tokens)
    return Exhibit(
        arm=result.player.name,
        conversation=call.conversation.id,
        turn=call.turn,
        prompt=said if len(said) <= MAX_PROMPT_CHARS else f"{said[: MAX_PROMPT_CHARS - 1]}…",
        pieces={token: piece(token) for token in shown},
        trees=trees,
        picture=picture_rows(paint(made.output_ids)) if paint else None,
    )


def picture_rows(picture: Picture | None) -> list[str] | None:
    """A picture as an exhibit keeps it: of a large one every second pixel, every third, and so on."""
    if not picture:
        return None
    step = -(-max(len(picture), len(picture[0])) // MAX_SIDE)
    return ["".join(bytes(pixel).hex() for pixel in row[::step]) for row in picture[::step]]


def chosen_rounds(drafted: Sequence[int]) -> list[int]:
    """Rounds whose trees are kept: the first, the last, and some evenly between. drafted: nodes per round."""
    rounds = [number for number, num_nodes in enumerate(drafted) if 0 < num_nodes <= MAX_NODES]
    if len(rounds) <= MAX_TREES:
        return rounds
    return [rounds[i * (len(rounds) - 1) // (MAX_TREES - 1)] for i in range(MAX_TREES)]


def draft_tree(number: int, draft: Draft, row: int, path: Sequence[int]) -> DraftTree:
    """The tree in row `row` of the draft of round `number`. path: the drafted tokens that were kept."""
    size = int(draft.size[row])
    tokens, parents = draft.tokens[row, :size].tolist(), draft.parents[row, :size].tolist()
    places = {place: node for node, place in enumerate(zip(parents, tokens, strict=True))}
    kept: list[int] = []
    for token in path:
        kept.append(places[kept[-1] if kept else -1, token])
    confidence = [] if draft.confidence is None else draft.confidence[row, :size].tolist()
    return DraftTree(number, tokens, parents, kept, [round(value, 4) for value in confidence])


def piece_reader(tokenizer: Any) -> Piece:
    """The texts of single tokens: a leading space is kept, and part of a character shows its bytes."""

    @cache
    def piece(token: int) -> str:
        raw = str(tokenizer.convert_ids_to_tokens(token))
        text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not text or _TORN in text:
            return _bytes(raw)
        # SentencePiece drops the space of the first word it decodes.
        return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text

    return piece


def _bytes(raw: str) -> str:
    r"""The bytes of a token of a byte-level vocabulary, as in \xe2\x80; any other token is unchanged."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    known = {sign: number for number, sign in bytes_to_unicode().items()}
    if not all(sign in known for sign in raw):
        return raw
    return "".join(chr(known[sign]) if 32 <= known[sign] < 127 else rf"\x{known[sign]:02x}" for sign in raw)
