"""Weights and states on disk: strict loads, damage, names, and writes that survive a failure."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from meanaudio.checkpoint import (
    check_sizes,
    file_hash,
    find_local,
    folder_hash,
    link_others,
    load_into,
    load_module,
    load_weights,
    local_names,
    read_json,
    require_space,
    save_weights,
    verify,
    without_weights,
    write_beside,
    write_hashes,
    write_json,
    write_text,
)
from meanaudio.eight_bits import from_eight_bits, to_eight_bits
from meanaudio.errors import InputError


def state() -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in nn.Linear(3, 2).state_dict().items()}


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_weights_are_read_back(tmp_path, dtype):
    weights = state() | {"steps": torch.tensor(7), "turned": torch.arange(6.0).reshape(2, 3).T}
    save_weights(tmp_path / "deep" / "w.safetensors", weights, dtype)
    found = load_weights(tmp_path / "deep" / "w.safetensors")
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert found[key].dtype == (dtype if dtype and value.is_floating_point() else value.dtype)
        torch.testing.assert_close(found[key].to(value.dtype), value, atol=1e-3, rtol=1e-3)


@given(rows=st.integers(1, 5), shape=st.lists(st.integers(1, 7), min_size=1, max_size=2), size=st.floats(-30, 30), seed=st.integers(0, 99))
def test_eight_bits_keep_a_row_to_half_of_its_step(rows, shape, size, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, *shape, generator=generator) * 10.0 ** (size * torch.rand(rows, *[1] * len(shape), generator=generator))
    matrix[0] = 0
    weights = {"matrix": matrix, "bias": torch.tensor([0.1, -2.0]), "steps": torch.tensor([[7]])}
    stored = to_eight_bits(weights)
    assert {name: x.dtype for name, x in stored.items() if name in weights} == {
        "matrix": torch.int8,
        "bias": torch.float16,
        "steps": torch.int64,
    }
    found = from_eight_bits(stored, "file")
    assert found.keys() == weights.keys()
    largest = matrix.abs().flatten(1).amax(1).view(-1, *[1] * len(shape))
    assert ((found["matrix"] - matrix).abs() <= largest / 254 * (1 + 1e-5) + 1e-37).all()
    assert torch.equal(found["steps"], weights["steps"])


def test_weights_in_eight_bits_are_read_as_float32_and_checked(tmp_path):
    weights = state() | {"steps": torch.tensor(7)}
    path = tmp_path / "w.safetensors"
    save_weights(path, weights, torch.int8)
    found = load_weights(path)
    assert found.keys() == weights.keys()
    assert found["weight"].dtype == torch.float32
    torch.testing.assert_close(found["weight"], weights["weight"], atol=weights["weight"].abs().max().item() / 253, rtol=0)
    for dtype in (torch.float32, torch.bfloat16):
        module = load_module(lambda: nn.Linear(3, 2), _without(path, "steps"), halve=("",) if dtype == torch.bfloat16 else ())
        assert module.weight.dtype == dtype
        torch.testing.assert_close(module.weight.float(), found["weight"].to(dtype).float())
    stored = load_file(path)
    for fault, told in (
        ({"weight.row_scale": torch.ones(3)}, r"weight is int8, and its weight.row_scale is torch.float32 \(3,\)"),
        ({"weight.row_scale": torch.ones(2, dtype=torch.int64)}, r"weight is int8, and its weight.row_scale is torch.int64 \(2,\)"),
        ({"weight.row_scale": None}, "weight is int8, and its weight.row_scale is missing"),
        ({"weight.row_scale": torch.tensor([1.0, torch.nan])}, "NaN or infinite weights in weight"),
        ({"weight": stored["weight"].float()}, "weight.row_scale: scales of no int8 weights"),
        ({"nothing.row_scale": torch.ones(2)}, "nothing.row_scale: scales of no int8 weights"),
    ):
        save_file({k: v for k, v in (stored | fault).items() if v is not None}, path)
        with pytest.raises(InputError, match=f"w.safetensors: .*{told}"):
            load_weights(path)


def _without(path, name):
    """The file without one tensor, beside it."""
    other = path.with_name("other.safetensors")
    save_file({k: v for k, v in load_file(path).items() if k != name}, other)
    return other


def test_a_strict_load_takes_exactly_its_keys_and_keeps_its_types():
    module, weights = nn.Linear(3, 2), state()
    load_into(module, {k: v.half() for k, v in weights.items()}, "file")
    assert module.weight.dtype == torch.float32
    torch.testing.assert_close(module.weight.data, weights["weight"], atol=1e-3, rtol=1e-3)


def test_a_strict_load_lists_all_that_differs_and_loads_nothing():
    module = nn.Linear(3, 2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    wrong = {"weight": torch.zeros(5, 3), "extra": torch.zeros(1), "more": torch.zeros(1)}
    with pytest.raises(InputError) as error:
        load_into(module, wrong, "some/file")
    for told in ("some/file", "missing bias", "not expected extra, more", "weight (5, 3) instead of (2, 3)"):
        assert told in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    many = state() | {f"extra{i}": torch.zeros(1) for i in range(1000)}
    with pytest.raises(InputError, match="and 995 more") as error:
        load_into(module, many, "file")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_key(tmp_path, value):
    weights = state()
    weights["bias"][1] = value
    save_weights(tmp_path / "w.safetensors", weights)
    with pytest.raises(InputError, match=r"w\.safetensors.*NaN.*bias"):
        load_weights(tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors", finite=False).keys() == weights.keys()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"\xff" * 100])
def test_damaged_weights_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    save_weights(path, state())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"w\.safetensors: not a readable safetensors file"):
        load_weights(path)


def test_missing_files_are_refused_by_name(tmp_path):
    for read in (load_weights, read_json, file_hash):
        with pytest.raises(InputError, match="nowhere"):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\x00", b""])
def test_damaged_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_a_failing_writer_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})

    def fail(beside):
        beside.write_text('{"new": ')
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_beside(path, fail)
    assert read_json(path) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    write_json(path, {"new": "é"})
    assert read_json(path) == {"new": "é"}


def test_the_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---------------------------------------------------------------- names


@pytest.fixture
def homes(tmp_path, monkeypatch):
    for home, name in (("checkpoints", "near"), ("elsewhere", "far"), ("elsewhere", "near")):
        (tmp_path / home / name).mkdir(parents=True)
        write_json(tmp_path / home / name / "config.json", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEANAUDIO_CHECKPOINTS", str(tmp_path / "elsewhere"))
    return tmp_path


def test_a_model_is_found_by_path_and_by_name(homes):
    assert find_local(homes / "elsewhere" / "far") == homes / "elsewhere" / "far"
    assert find_local("elsewhere/near").resolve() == homes / "elsewhere" / "near"
    assert find_local("far") == homes / "elsewhere" / "far"
    for name in ("near", "near/"):
        assert find_local(name).resolve() == homes / "checkpoints" / "near"
    assert {"far", "near"} <= set(local_names())


@pytest.mark.parametrize("name", ["nonesuch", "elsewhere/nonesuch", "../far", "a\0b"])
def test_an_unknown_model_is_not_found(homes, name):
    assert find_local(name) is None


def test_a_folder_that_is_no_checkpoint_is_refused(homes):
    (homes / "no-checkpoint").mkdir()
    with pytest.raises(InputError, match=r"no-checkpoint: no config\.json"):
        find_local("no-checkpoint")


# ---------------------------------------------------------------- hashes


@pytest.fixture
def hashed(tmp_path) -> Path:
    write_text(tmp_path / "inner" / "a.txt", "abc")
    write_text(tmp_path / "b.txt", "defg")
    write_hashes(tmp_path, {"model": "m"})
    return tmp_path


def test_sizes_and_contents_are_compared_with_what_was_written(hashed, tmp_path_factory):
    assert check_sizes(hashed)
    assert verify(hashed)
    write_text(hashed / "b.txt", "gfed")
    assert check_sizes(hashed)
    with pytest.raises(InputError, match=r"b\.txt changed"):
        verify(hashed)
    write_text(hashed / "b.txt", "def")
    (hashed / "inner" / "a.txt").unlink()
    for check in (check_sizes, verify):
        with pytest.raises(InputError, match=r"inner/a\.txt missing, b\.txt (of another size|changed)"):
            check(hashed)
    assert not check_sizes(tmp_path_factory.mktemp("none"))


@pytest.mark.parametrize("old", ["{}", '{"files": {"b.txt": "0123"}}', '{"files": []}'])
def test_hashes_of_an_older_version_are_refused(hashed, old):
    write_text(hashed / "hashes.json", old)
    with pytest.raises(InputError, match="another version.*convert"):
        check_sizes(hashed)


def test_a_module_made_from_a_file_has_its_weights_and_no_others(tmp_path):
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    save_weights(tmp_path / "w.safetensors", source.state_dict(), torch.float16)
    made = load_module(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), tmp_path / "w.safetensors")
    assert not made.training
    assert not any(x.requires_grad or x.is_meta for x in made.parameters())
    for key, value in made.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key].half().to(value.dtype))
    with pytest.raises(InputError, match="another network"):
        load_module(lambda: nn.Linear(3, 4), tmp_path / "w.safetensors")


def test_weights_are_as_readable_as_other_files(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)})
    (tmp_path / "other").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_made_without_weights_takes_them_and_draws_nothing():
    with without_weights():
        layer = nn.Embedding(5, 3)
        nn.init.normal_(layer.weight)
    assert layer.weight.is_meta and layer.weight.shape == (5, 3)
    assert nn.Embedding(5, 3).weight.abs().sum() > 0  # and all is as before


# ---------------------------------------------------------------- space, hashes


def test_too_little_space_is_told_before_work_begins(tmp_path):
    require_space(tmp_path / "new", 1)
    with pytest.raises(InputError, match="MB needed"):
        require_space(tmp_path / "new", 10**18)


def test_a_checkpoints_hash_is_of_names_and_contents_of_what_decides_its_sound(checkpoint_copy):
    before = folder_hash(checkpoint_copy)
    (checkpoint_copy / "README.md").write_text("about it")
    (checkpoint_copy / "hashes.json").write_text("{}")
    assert folder_hash(checkpoint_copy) == before
    (checkpoint_copy / "vocoder.safetensors").rename(checkpoint_copy / "other.safetensors")
    renamed = folder_hash(checkpoint_copy)
    (checkpoint_copy / "config.json").write_text("{}")
    assert len({before, renamed, folder_hash(checkpoint_copy)}) == 3


def test_another_checkpoint_takes_over_all_files_that_do_not_speak_of_the_weights(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for name in ("config.json", "vae.safetensors", "README.md", "hashes.json", "best.json", "licences/a.txt"):
        write_text(theirs / name, f"their {name}")
    write_text(ours / "vae.safetensors", "ours")
    link_others(theirs, ours, ("vae.safetensors",))
    link_others(theirs, ours, ("vae.safetensors",))  # a later export of the same run
    found = {path.relative_to(ours).as_posix(): path.read_text() for path in ours.rglob("*") if path.is_file()}
    assert found == {"vae.safetensors": "ours", "config.json": "their config.json", "licences/a.txt": "their licences/a.txt"}
    write_text(ours / "config.json", "changed")
    assert (theirs / "config.json").read_text() == "their config.json"
