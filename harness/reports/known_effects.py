"""Topics: the things that two runs may do differently, the facts that tell of each, and what each may do."""

from __future__ import annotations

import re
from typing import NamedTuple


class Topic(NamedTuple):
    """One thing that two runs may do differently.

    name: for a reader, with {who} for an arm or a rung. pattern: of the names of its facts, without those of
    target, task and decoding; the first that fits counts. effect: what it may have done to the numbers.
    """

    name: str
    pattern: str
    effect: str


ARM = r"method\[(?P<who>[^]]*)\]"
TOPICS = (
    Topic(
        "target",
        r"cell\.target|target\.(source|path|revision|fingerprint|seed|architecture|num_\w+|vocab_size"
        r"|experts_per_token|config\.(_target_|name|path|revision|seed|weights|architecture|num_\w+"
        r"|hidden_size|head_dim|vocab_size|tie_embeddings|spread|heads\..*))",
        "Another model, or other weights of it: tau, lengths and seconds are each model's own, and only what"
        " each run says of its own vanilla may be set side by side.",
    ),
    Topic(
        "dtype",
        r"target\.(config\.)?(dtype|quantisation)",
        "Other rounding: where two tokens are close, answers part, and acceptance with them (a little, either"
        " way). The bytes of a weight change the seconds of every arm and the roof; packed linear layers"
        " exist in float32 on a CPU only, so the cost of a round in vanilla's steps moves as well.",
    ),
    Topic(
        "size of a step",
        r"target\.(step_bytes|cache_bytes_per_token)",
        "Other bytes are read a token: tokens/s and the share of the roof move, tau does not.",
    ),
    Topic(
        "template",
        r"target\.(template_hash|config\.(template|system_prompt|thinking))",
        "The model is asked in other words: other answers of other lengths, other repetition in them, so tau"
        " and every speedup may move, either way. A head is at its best with the template it was trained on."
        " What a single forward costs hardly changes.",
    ),
    Topic(
        "prompts",
        r"cell\.task|(prompts|task)(\..*)?",
        "Other questions: predictability is a property of the text, so tau and every speedup may move as much"
        " as between two tasks.",
    ),
    Topic(
        "end tokens",
        r"target\.(end_token_ids|config\.stop_tokens)",
        "Answers end elsewhere: longer ones often loop, which raises tau, and prefill weighs less in them.",
    ),
    Topic(
        "forward kernels",
        r"target\.(config\.)?(attention|linear|cache|compile)",
        "The same function computed otherwise: seconds move for all arms, and not evenly, as kernels differ"
        " in what more than one token costs. tau moves by ties of rounding only.",
    ),
    Topic(
        "placement",
        r"target\.(config\.)?(device(_map)?|tensor_parallel)",
        "The weights lie elsewhere: seconds are those of another machine; tau moves by rounding only.",
    ),
    Topic(
        "temperature",
        r"(cell|decoding)\.temperature|cell\.decoding|decoding\.(name|_target_)",
        "Sampled text is harder to guess than greedy text, and loops less: tau and speedups are lower at a"
        " higher temperature, for every method.",
    ),
    Topic(
        "filters",
        r"decoding\.(top_k|top_p)|sampling\.filter_order",
        "Tokens are drawn from another law: a narrower one is easier to guess, so tau is higher.",
    ),
    Topic(
        "seeds",
        r"decoding\.seeds",
        "Other random streams: other answers from the same law, so tau moves as it does between seeds.",
    ),
    Topic(
        "answer length",
        r"decoding\.(max_new_tokens|ignore_end_token)|target\.(config\.)?max_context",
        "Longer answers repeat themselves more, which raises tau (n-gram methods most), and give prefill,"
        " which no method speeds up, a smaller share of the time.",
    ),
    Topic(
        "acceptor",
        r"cell\.acceptor|config\.acceptor\..*",
        "Another rule keeps tokens: p/q keeps more than coupled draws at the same losslessness, a relaxed one"
        " keeps what vanilla would not write.",
    ),
    Topic(
        "batch size",
        r"cell\.batch_size",
        "A batch shares the reading of weights, so vanilla has less to gain from a draft: tau is the same but"
        " for rounding, speedups shrink.",
    ),
    Topic(
        "baseline",
        r"cell\.baseline|baseline",
        "Speedups are relative to another vanilla: only absolute tokens/s and tau compare.",
    ),
    Topic(
        "profile",
        r"cell\.profile|profile|config\.measure\..*",
        "More or fewer repeats, warm-up and null replays: intervals are wider or narrower, values the same"
        " but for noise; an `acceptance` run has no clock at all.",
    ),
    Topic(
        "head of {who}",
        rf"{ARM}\.(head|revision|architecture|dtype|aux_\w+|norm_\w+|card(\..*)?)",
        "Another draft head, or the same one read in another way: tau moves with how well it guesses, the"
        " cost of a round with its size.",
    ),
    Topic(
        "tree of {who}",
        rf"{ARM}\.tree\..*",
        "A larger or deeper tree keeps more tokens a round and makes every round dearer: tau rises with it,"
        " the speedup only while verifying the additional nodes is cheap on this machine.",
    ),
    Topic(
        "settings of {who}",
        rf"{ARM}\..*",
        "The method drafts otherwise: tau and the cost of its rounds both move.",
    ),
    Topic(
        "rung {who}",
        r"rung\[(?P<who>[^]]*)\]\..*",
        "The rung was run otherwise: the speedup against it moves, those against vanilla do not.",
    ),
    Topic(
        "methods",
        r"arms|rungs",
        "Only what both have compares. Arms are interleaved prompt by prompt, so a neighbour should not"
        " change another's number.",
    ),
    Topic(
        "threads",
        r"device\.num_threads",
        "Forwards take other times: more threads help wide forwards more than narrow ones, so speedups move"
        " with tokens/s; tau by rounding only.",
    ),
    Topic(
        "device",
        r"device(\..*)?",
        "Another machine or driver: seconds do not compare, and neither do speedups, as what a wide forward"
        " costs differs between machines. tau moves by rounding only.",
    ),
    Topic(
        "packages",
        r"packages(\..*)?",
        "Kernels and tokenizers come from packages: seconds may move, rounding as well; tau by ties, or more"
        " if the prompts' hash differs too.",
    ),
    Topic(
        "source",
        r"source_hash",
        "The code or the data of the harness changed between the runs; `git diff` of the commits above tells"
        " what.",
    ),
    Topic("other settings", r".*", "Nothing is known about what it does to the numbers."),
)
_CONSEQUENCES = (
    (r"target\.template_hash", ("template", "target")),
    (r"target\.end_token_ids", ("end tokens", "target")),
    (r"target\.(step_bytes|cache_bytes_per_token)", ("target", "dtype")),
    (r"target\.max_context", ("answer length", "target")),
    (r"target\.device", ("placement", "device")),
    (r"target\.linear", ("forward kernels", "dtype", "device", "threads")),
    (r"prompts\.hash", ("prompts", "template", "target")),
    (rf"{ARM}\.card(\..*)?", ("head of {who}", "target")),
)
"""Facts that follow from others, and the topics that explain them where those differ by themselves.

In this order: what nothing explains may be the reason of what stands below it.
"""
_WITHOUT_TEMPERATURE = ("filters", "seeds")
"""Topics that greedy decoding does not have."""


def topic_of(name: str) -> tuple[str, Topic]:
    """The topic of a fact, and what it is called there."""
    for topic in TOPICS:
        if match := re.fullmatch(topic.pattern, name):
            return topic.name.format(**match.groupdict()), topic
    raise AssertionError(name)


def causes_of(name: str, one_sided: bool) -> tuple[int, tuple[str, ...]]:
    """The place of a fact among the consequences and the topics that may explain it; none if it is no such.

    one_sided: only one of the runs has it.
    """
    for rank, (pattern, causes) in enumerate(_CONSEQUENCES):
        if match := re.fullmatch(pattern, name):
            return rank, tuple(cause.format(**match.groupdict()) for cause in causes)
    without = one_sided and topic_of(name)[0] in _WITHOUT_TEMPERATURE
    return 0, ("temperature",) if without else ()
