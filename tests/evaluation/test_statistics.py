"""Streaming statistics: any way of cutting the rows up gives what one look at all of them gives."""

import json
import subprocess
import sys

import pytest
import torch
from fakes import normals
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meanaudio.errors import InputError
from meanaudio.evaluation.metrics import frechet_distance_of_samples
from meanaudio.evaluation.statistics import FeatureStatistics, RunningStatistics


def assert_same(found: FeatureStatistics, expected: FeatureStatistics) -> None:
    assert found.count == expected.count
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)


def test_mean_and_covariance_are_those_of_the_rows():
    rows = normals(50, 7) * 3 + 100
    found = FeatureStatistics.of(rows)
    torch.testing.assert_close(found.mean, rows.double().mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(rows.double().T))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 60), st.integers(0, 99))
def test_pieces_merge_to_the_whole(sizes, rows_at_once, seed):
    """A large common offset is what one-pass sums of squares lose their digits on."""
    rows = normals(sum(sizes), 5, seed=seed).double() + 1e6
    running = RunningStatistics(5, rows_at_once)
    merged = FeatureStatistics.of(rows[:0])
    for piece in rows.split(sizes):
        running.add(piece)
        merged = merged.merge(FeatureStatistics.of(piece))
    expected = FeatureStatistics.of(rows)
    for found in (running.finish(), merged):
        assert found.count == len(rows)
        if len(rows):
            torch.testing.assert_close(found.mean, expected.mean, rtol=1e-14, atol=0)
            torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-6, atol=1e-5)


def test_processes_store_their_shares_and_the_sum_is_that_of_one(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from meanaudio.evaluation.statistics import FeatureStatistics\n"
        "rows = torch.randn(101, 6, generator=torch.Generator().manual_seed(0)); k = int(sys.argv[1])\n"
        "FeatureStatistics.of(rows[k::2]).save(Path(sys.argv[2]) / f'{k}.safetensors', {'share': k})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(k), str(tmp_path)]) for k in range(2)]
    assert all(worker.wait() == 0 for worker in workers)
    (a, facts_a), (b, facts_b) = (FeatureStatistics.load(tmp_path / f"{k}.safetensors") for k in range(2))
    assert (facts_a, facts_b) == ({"share": 0}, {"share": 1})
    assert_same(a.merge(b), FeatureStatistics.of(normals(101, 6)))


def test_the_distance_of_statistics_is_that_of_the_rows():
    a, b = normals(40, 9) + 1, normals(30, 9, seed=1)
    found = FeatureStatistics.of(a).frechet_distance(FeatureStatistics.of(b))
    assert found == pytest.approx(frechet_distance_of_samples(a, b), rel=1e-9)


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor))])
        return found


def test_few_rows_of_many_dimensions_need_no_matrix_of_the_dimensions():
    """What makes 1,000 rows of 2,048 dimensions a matter of seconds (docs/evaluation.md)."""
    a, b = normals(20, 2048), normals(30, 2048, seed=1) * 1.1
    with LargestTensor() as largest:
        frechet_distance_of_samples(a, b)
    assert largest.numbers == 30 * 2048


def test_what_cannot_be_compared_is_refused(tmp_path):
    rows = FeatureStatistics.of(normals(3, 4))
    with pytest.raises(InputError, match="4 and of 5 dimensions"):
        rows.merge(FeatureStatistics.of(normals(3, 5)))
    with pytest.raises(InputError, match="4 and of 5 dimensions"):
        rows.frechet_distance(FeatureStatistics.of(normals(3, 5)))
    with pytest.raises(InputError, match="at least 2"):
        rows.frechet_distance(FeatureStatistics.of(normals(1, 4)))
    with pytest.raises(InputError, match="NaN"):
        FeatureStatistics.of(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize(
    ("tensors", "facts", "told"),
    [
        ({"mean": torch.zeros(3, dtype=torch.float64)}, {}, "no reference statistics"),
        (
            {"count": torch.tensor(3), "mean": torch.zeros(3, dtype=torch.float64), "scatter": torch.zeros(2, 2, dtype=torch.float64)},
            {},
            "no reference",
        ),
        ({"count": torch.tensor(3), "mean": torch.zeros(1), "scatter": torch.zeros(1, 1)}, {}, "no reference"),
        (
            {"count": torch.tensor(3), "mean": torch.full((1,), torch.nan).double(), "scatter": torch.zeros(1, 1).double()},
            {},
            "NaN or infinite",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, facts, told):
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata={"facts": json.dumps(facts)})
    with pytest.raises(InputError, match=told):
        FeatureStatistics.load(path)


def test_a_missing_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such"):
        FeatureStatistics.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(InputError, match="bad.safetensors"):
        FeatureStatistics.load(tmp_path / "bad.safetensors")
