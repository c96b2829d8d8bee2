"""The distribution of the first three sampled tokens: exact, sampled with our loop, and compared."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.drafter import Drafter
from harness.target.model import Target

LEAST_P = 1e-3
"""A case passes if one of the seeds gives more; a correct sampler fails both once in a million times."""
SEEDS = (0, 1)
_FEWEST = 5.0
"""Smallest expected count of a cell; rarer cells are merged."""
NUM_SAMPLES = 5000
"""4,000 suffice to find a verifier that draws from the whole distribution after a rejection (p < 1e-80)."""
NUM_TOKENS = 3
_BATCH = 1000


def exact_joint(target: Target, prompt: list[int], params: DecodingParams) -> Tensor:
    """Probability [V, V, V] of every three tokens after `prompt`."""
    num_tokens = target.vocab_size
    pairs = torch.tensor(list(itertools.product(range(num_tokens), repeat=2)))
    ids = torch.cat([torch.tensor(prompt).expand(len(pairs), -1), pairs], dim=1)
    logits, _ = target.trace(ids, ())
    probs = params.probs(logits[:, len(prompt) - 1 :].double()).double()
    first, second, third = probs[0, 0], probs[::num_tokens, 1], probs[:, 2].view(num_tokens, num_tokens, -1)
    return first[:, None, None] * second[:, :, None] * third


def sample(
    target: Target,
    drafter: Drafter,
    acceptor: Acceptor,
    prompt: list[int],
    params: DecodingParams,
    seed: int,
    num_samples: int = NUM_SAMPLES,
) -> Tensor:
    """Counts [V, V, V] of the three tokens that our loop emitted, over `num_samples` samples."""
    engine = DecodingLoop(target, (), 1 << 30, timed=False)
    counts = torch.zeros((target.vocab_size,) * NUM_TOKENS, dtype=torch.float64)
    for begin in range(0, num_samples, _BATCH):
        end = min(begin + _BATCH, num_samples)
        keys = [stream_key(seed, str(number), 0, 0) for number in range(begin, end)]
        requests = [Request(prompt=prompt, key=key) for key in keys]
        for made in engine.generate(requests, drafter, params, acceptor):
            counts[tuple(made.output_ids)] += 1
    return counts


def chi_square_p(counts: Tensor, probs: Tensor) -> float:
    """p-value of `counts` [N] under `probs` [N]; cells expected fewer than five times are merged."""
    expected = probs.double() * counts.sum()
    rare = expected < _FEWEST
    if bool((counts[expected == 0] > 0).any()):
        return 0.0
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    used = wanted > 0
    statistic = ((observed[used] - wanted[used]) ** 2 / wanted[used]).sum()
    freedom = torch.tensor(max(int(used.sum()) - 1, 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))
