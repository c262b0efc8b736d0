"""Which of several clips fits its prompt best, and which prompts lie outside what a checkpoint was taught."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meanaudio.concepts import leading_words
from meanaudio.errors import InputError
from meanaudio.models.scorer import Scorer

MAX_CANDIDATES = 256
# Between the seeds of a clip's candidates: 2^32 over the golden ratio, so that they meet none of other clips', whose seeds follow each
# other. Not a multiple of 2^32: torch draws the same numbers from seeds that differ by one [measured].
STRIDE = 2_654_435_769
EVENT_STRIDE = 1_779_033_703  # the same of events: 2^32 times (the square root of 2, less 1)
SEEDS = 2**63
SHOWN_WORDS, SHOWN_PROMPTS = 8, 3


def check_candidates(name: str, has_scorer: bool, num_candidates: int, keep: int) -> None:
    """Raises InputError for numbers out of range, and for a ranking that a checkpoint without a scorer cannot make."""
    if not 1 <= num_candidates <= MAX_CANDIDATES:
        raise InputError(f"num_candidates = {num_candidates}: must be from 1 to {MAX_CANDIDATES}")
    if not 1 <= keep <= num_candidates:
        raise InputError(f"keep = {keep}: must be from 1 to num_candidates, which is {num_candidates}")
    if num_candidates > 1 and not has_scorer:
        raise InputError(f"num_candidates = {num_candidates}: {name} has no scorer to rank them with (docs/scorer.md); use 1")


def event_seeds(first: int, counts: Sequence[int]) -> list[int]:
    """Seeds of what is heard one after another, clip by clip: event j of clip k has first + k + j EVENT_STRIDE, modulo 2^63."""
    return [(first + k + j * EVENT_STRIDE) % SEEDS for k, count in enumerate(counts) for j in range(count)]


def candidate_seeds(own: Sequence[int], num_candidates: int) -> list[int]:
    """Seeds of all candidates: candidate j has its own seed + j STRIDE, modulo 2^63, so candidate 0 its own."""
    return [(seed + j * STRIDE) % SEEDS for seed in own for j in range(num_candidates)]


def best_of(scores: Tensor, num_candidates: int, keep: int) -> list[int]:
    """Places of the `keep` best of each `num_candidates` successive scores [B * num_candidates], the best first; of equals the earlier."""
    order = scores.unflatten(0, (-1, num_candidates)).argsort(dim=1, descending=True, stable=True)[:, :keep]
    return (order + torch.arange(len(order), device=order.device)[:, None] * num_candidates).flatten().tolist()


def outside_notice(name: str, scorer: Scorer, prompts: Sequence[str], pooled: Tensor) -> str | None:
    """One line about the prompts whose sentence vectors [B, P] are far from every caption that was taught; None if there are none."""
    found = zip(prompts, scorer.nearest(pooled), strict=True)
    outside = list(dict.fromkeys((prompt, tuple(c for c, _ in near)) for prompt, near in found if near[0][1] < scorer.outside))
    if not outside:
        return None
    told = [f"{shortened(prompt)} (nearest known: {', '.join(map(repr, near))})" for prompt, near in outside[:SHOWN_PROMPTS]]
    if more := len(outside) - len(told):
        told.append(f"and {more} more")
    return (
        f"outside what {name} knows: {'; '.join(told)}. It knows {len(scorer.known)} captions, that begin with words such as "
        f"{', '.join(leading_words(scorer.known, SHOWN_WORDS))}; `meanaudio knows` lists them"
    )


def shortened(prompt: str, most: int = 60) -> str:
    return repr(prompt if len(prompt) <= most else f"{prompt[: most - 3]}...")
