"""Candidates: whose seeds are whose, which is kept, and prompts that are told to be outside."""

import pytest
import torch
from fakes import WordHash, write_scorer
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.errors import InputError
from meanaudio.models.scorer import load_scorer
from meanaudio.ranking import MAX_CANDIDATES, best_of, candidate_seeds, check_candidates, event_seeds, outside_notice
from meanaudio.sampling import per_sample_noise


@given(st.integers(0, 2**63 - 1001), st.integers(1, 300), st.integers(1, MAX_CANDIDATES))
def test_candidates_have_their_own_seeds_whatever_stands_beside_them(first, clips, count):
    seeds = candidate_seeds(range(first, first + clips), count)
    assert seeds[::count] == [first + k for k in range(clips)]
    assert len({seed % 2**32 for seed in seeds}) == clips * count  # torch's generator takes 32 bits
    assert all(0 <= seed < 2**63 for seed in seeds)
    last = clips - 1
    assert candidate_seeds([first + last], count) == seeds[last * count :]
    assert candidate_seeds([first], 1 + count // 2) == seeds[: 1 + count // 2][:count]


@given(st.integers(0, 2**63 - 1001), st.lists(st.integers(1, 4), min_size=1, max_size=50), st.integers(1, 8))
def test_events_have_their_own_seeds_the_first_the_clips(first, counts, candidates):
    seeds = event_seeds(first, counts)
    starts = [sum(counts[:k]) for k in range(len(counts))]
    assert [seeds[i] for i in starts] == [first + k for k in range(len(counts))]
    assert event_seeds(first + len(counts) - 1, counts[-1:]) == seeds[starts[-1] :]
    assert len({seed % 2**32 for seed in candidate_seeds(seeds, candidates)}) == len(seeds) * candidates


def test_candidates_are_other_noises():
    noise = per_sample_noise((4,), candidate_seeds(range(42, 45), 4))
    assert len({tuple(row.tolist()) for row in noise}) == 12


def test_the_best_of_each_clip_come_first_and_ties_go_to_the_earlier():
    scores = torch.tensor([0.1, 0.3, 0.2, 0.5, 0.5, 0.4])
    assert best_of(scores, 3, 1) == [1, 3]
    assert best_of(scores, 3, 2) == [1, 2, 3, 4]
    assert best_of(scores, 3, 3) == [1, 2, 0, 3, 4, 5]


@pytest.mark.parametrize(
    ("count", "keep", "told"),
    [(0, 1, "num_candidates = 0"), (257, 1, "1 to 256"), (4, 0, "keep = 0"), (4, 5, "keep = 5"), (1, 2, "keep = 2"), (4, 1, "no scorer")],
)
def test_numbers_out_of_range_are_refused(count, keep, told):
    with pytest.raises(InputError, match=told):
        check_candidates("tiny", False, count, keep)
    check_candidates("tiny", False, 1, 1)


def test_only_prompts_far_from_all_that_is_known_are_told(tmp_path, tiny_checkpoint):
    scorer = load_scorer(tmp_path, write_scorer(tmp_path, tiny_checkpoint, {"a dog barks": 9, "two dogs bark": 1, "rain falls": 2}))

    def told(*prompts):
        return outside_notice("tiny", scorer, prompts, WordHash()(prompts).pooled)

    assert told("rain falls", "a dog barks") is None
    notice = told("rain falls", "une chanson", "une chanson", "x" * 100)
    assert notice.startswith("outside what tiny knows: 'une chanson' (nearest known: '")
    assert notice.count("une chanson") == 1
    assert "rain falls (nearest" not in notice
    assert f"'{'x' * 57}...'" in notice
    assert notice.endswith("It knows 3 captions, that begin with words such as dog, dogs, rain; `meanaudio knows` lists them")
    assert "\n" not in notice
    assert "and 2 more" in told(*(f"une chanson {i}" for i in range(5)))
