"""Training states on disk: what is written is what is read, what is damaged is refused, and nothing is run as code."""

import pickle

import pytest
import torch

from meanaudio.checkpoint import read_json
from meanaudio.errors import InputError
from meanaudio.training import state as training_state
from meanaudio.training.state import FACTS, OLDER, STATE, find_training_state, load_training_state, save_training_state


def tensors(offset: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "network/a.weight": torch.arange(6.0).view(2, 3) + offset,
        "network/count": torch.tensor([3]),
        "half": torch.full((4,), 0.1, dtype=torch.bfloat16),
        "none": torch.empty(0, 5),
    }


def loaded(run):
    found = {key: torch.full_like(value, 7) for key, value in tensors().items()}
    load_training_state(find_training_state(run), found)
    return found


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("file_bytes", [1 << 30, 8])
def test_a_state_is_read_back_whatever_its_files(tmp_path, monkeypatch, file_bytes):
    monkeypatch.setattr(training_state, "FILE_BYTES", file_bytes)
    assert find_training_state(tmp_path) is None
    for step in (1, 2):
        save_training_state(tmp_path, tensors(step), {"step": step, "note": None})
    assert_equal(loaded(tmp_path), tensors(2))
    assert read_json(tmp_path / STATE / FACTS) == {"step": 2, "note": None}
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert len(list((tmp_path / STATE).glob("*.safetensors"))) == (1 if file_bytes > 8 else 4)


def test_the_state_before_is_found_under_its_other_name_and_rests_are_not(tmp_path):
    save_training_state(tmp_path, tensors(), {"step": 1})
    (tmp_path / STATE).rename(tmp_path / OLDER)
    (tmp_path / ".state.part").mkdir()
    assert_equal(loaded(tmp_path), tensors())
    (tmp_path / STATE).mkdir()  # no facts in it: not whole
    assert find_training_state(tmp_path) == tmp_path / OLDER
    (tmp_path / STATE).rmdir()
    save_training_state(tmp_path, tensors(5), {"step": 2})
    assert_equal(loaded(tmp_path), tensors(5))
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


@pytest.mark.parametrize("size", [0, 7, 300, -1])
def test_a_damaged_state_is_refused_by_name(tmp_path, size):
    save_training_state(tmp_path, tensors(), {"step": 1})
    path = next((tmp_path / STATE).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="state: not a readable training state"):
        loaded(tmp_path)


def test_a_state_without_one_of_its_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "FILE_BYTES", 8)
    save_training_state(tmp_path, tensors(), {"step": 1})
    next((tmp_path / STATE).glob("*00001-of*")).unlink()
    with pytest.raises(InputError, match=r"holds other tensors than this run's: network/a\.weight"):
        loaded(tmp_path)


@pytest.mark.parametrize("change", [{"half": torch.zeros(5)}, {"more": torch.zeros(1)}])
def test_a_state_of_other_tensors_is_refused(tmp_path, change):
    save_training_state(tmp_path, tensors() | change, {"step": 1})
    with pytest.raises(InputError, match=f"holds other tensors than this run's: {next(iter(change))}"):
        loaded(tmp_path)


def test_nothing_in_a_state_is_run_as_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    save_training_state(tmp_path, tensors(), {"step": 1})
    for name in (".metadata", "model.pt", "__0_0.distcp"):
        (tmp_path / STATE / name).write_bytes(pickle.dumps(Payload()))
    assert_equal(loaded(tmp_path), tensors())
    next((tmp_path / STATE).glob("*.safetensors")).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="not a readable training state"):
        loaded(tmp_path)
    assert not (tmp_path / "was-run").exists()
