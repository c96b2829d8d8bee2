"""Statistics cases: the law of the first three tokens of many sampled runs, against their exact joint law."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from harness.conformance.case import Case, Check, Pairs, close
from harness.decoding.acceptance import Acceptor, Coupled, Rejection
from harness.decoding.batch import Request
from harness.decoding.loop import LocalEngine
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.drafter import Drafter
from harness.target.model import Target

LEAST_P = 1e-3
"""A case passes if one of the seeds gives more; a right sampler fails both once in a million times."""
SEEDS = (0, 1)
_FEWEST = 5.0
_NUM_SAMPLES = 5000
"""A verifier that draws from the whole law after a rejection is found by 4,000 with p < 1e-80 (fixtures)."""
_NUM_TOKENS = 3
_BATCH = 1000


def checks(case: Case, pairs: Pairs) -> list[Check]:
    """Compare a case: our exact law with the recorded one, then samples of both acceptors with it."""
    data, target = case.data, pairs.target(case)
    params = DecodingParams(
        name="sampled",
        temperature=data["temperature"],
        top_p=data["sampling_top_p"] or 1.0,
        top_k=data["sampling_top_k"],
        filter_order="eagle",
        max_new_tokens=_NUM_TOKENS,
        ignore_end_token=True,
    )
    joint = case.tensors["exact_joint"]
    result = [close("joint law", exact_joint(target, data["prompt_ids"], params), joint, 1e-5)]
    drafter = pairs.drafter(case)
    for acceptor in (Coupled(), Rejection()):
        p = 0.0
        for seed in SEEDS:
            counts = sample(target, drafter, acceptor, data["prompt_ids"], params, seed)
            p = chi_square_p(counts.flatten(), joint.flatten())
            if p > LEAST_P:
                break
        result.append(Check(acceptor.name, p > LEAST_P, f"{acceptor.name} p = {p:.2g}"))
    return result


def exact_joint(target: Target, prompt: list[int], params: DecodingParams) -> Tensor:
    """Probability [V, V, V] of every three tokens after `prompt`."""
    num_tokens = target.vocab_size
    pairs = torch.tensor(list(itertools.product(range(num_tokens), repeat=2)))
    ids = torch.cat([torch.tensor(prompt).expand(len(pairs), -1), pairs], dim=1)
    logits, _ = target.trace(ids, ())
    laws = params.probs(logits[:, len(prompt) - 1 :].double()).double()
    first, second, third = laws[0, 0], laws[::num_tokens, 1], laws[:, 2].view(num_tokens, num_tokens, -1)
    return first[:, None, None] * second[:, :, None] * third


def sample(
    target: Target,
    drafter: Drafter,
    acceptor: Acceptor,
    prompt: list[int],
    params: DecodingParams,
    seed: int,
) -> Tensor:
    """How often [V, V, V] our loop emitted every three tokens."""
    engine = LocalEngine(target, (), 1 << 30, timed=False)
    counts = torch.zeros((target.vocab_size,) * _NUM_TOKENS, dtype=torch.float64)
    for begin in range(0, _NUM_SAMPLES, _BATCH):
        keys = [stream_key(seed, str(number), 0, 0) for number in range(begin, begin + _BATCH)]
        requests = [Request(prompt=prompt, key=key) for key in keys]
        for made in engine.generate(requests, drafter, params, acceptor):
            counts[tuple(made.output_ids)] += 1
    return counts


def chi_square_p(counts: Tensor, law: Tensor) -> float:
    """p-value of `counts` under `law` (both [N]); cells expected fewer than five times are merged."""
    expected = law.double() * counts.sum()
    rare = expected < _FEWEST
    if bool((counts[expected == 0] > 0).any()):
        return 0.0
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    used = wanted > 0
    statistic = ((observed[used] - wanted[used]) ** 2 / wanted[used]).sum()
    freedom = torch.tensor(max(int(used.sum()) - 1, 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))
