"""The shard format and its reader: what goes in comes out, cheaply; what is wrong is refused by name."""

import json
import os

import pytest
import torch
from fakes import WordHash, normals, random_text
from safetensors.torch import load_file, save_file

from meanaudio.config import TextConfig
from meanaudio.data.dataset import LatentStatistics
from meanaudio.data.shards import ShardDataset, finish_index, shard_notes, shard_path, write_null_text, write_shard
from meanaudio.errors import InputError
from meanaudio.types import Gaussian

LENGTHS = [[3, 1, 5], [2, 2], [7], [], [4]]  # tokens of each item; the fourth shard lost its items
FLAT = sum(LENGTHS, [])


def write_folder(folder, left_out=(), **facts):
    """Five shards of ragged captions; returns what went in."""
    folder.mkdir()
    everything = []
    for number, lengths in enumerate(LENGTHS):
        n = len(lengths)
        mean, std = normals(n, 4, 8, seed=number), normals(n, 4, 8, seed=10 + number).abs()
        text = random_text(lengths or [1], seed=number)[:n]
        ids = [f"clip{number}-{i}" for i in range(n)]
        lost = left_out if number == 3 else ()
        write_shard(shard_path(folder, number), Gaussian(mean, std), text, ids, [f"sound {i}" for i in ids], "test", lost)
        everything += [(mean[i], std[i], text[i : i + 1], ids[i]) for i in range(n)]
    write_null_text(folder, random_text([1], seed=99))
    finish_index(folder, len(LENGTHS), len(FLAT) + len(left_out), {"made_by": "test", **facts})
    return everything


def rewrite(path, change, **notes):
    """Replace tensors or notes of a shard, keeping its size where the change keeps it."""
    tensors, before = load_file(path), shard_notes(path)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors)
    kept = {key: value for key, value in before.items() if key != "ids"}
    save_file(tensors, path, metadata={"notes": json.dumps({**kept, **notes})})


def test_ragged_items_come_back_in_any_order_and_mix(tmp_path):
    items = write_folder(tmp_path / "shards")
    shards = ShardDataset(tmp_path / "shards")
    assert len(shards) == len(FLAT)
    assert shards.ids == [item[3] for item in items]
    assert shards.captions == [f"sound {name}" for name in shards.ids]
    for indices in ([0], [5, 0, 3], [1, 1], list(range(len(FLAT)))):
        batch = shards.batch(indices)
        lengths = [FLAT[i] for i in indices]
        assert batch.text.mask.sum(1).tolist() == lengths
        assert batch.text.sequence.shape[1] == max(lengths)
        assert batch.mean.dtype == batch.text.sequence.dtype == torch.float32
        for row, i in enumerate(indices):
            mean, std, text, name = items[i]
            assert batch.ids[row] == name
            for found, expected in (
                (batch.mean[row], mean),
                (batch.std[row], std),
                (batch.text.pooled[row], text.pooled[0]),
                (batch.text.sequence[row][: lengths[row]], text.sequence[0][: lengths[row]]),
            ):
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
            assert batch.text.sequence[row][lengths[row] :].abs().sum() == 0
    null = random_text([1], seed=99)
    assert torch.equal(shards.null_text.sequence, null.sequence)
    assert torch.equal(shards.null_text.mask, null.mask)


def test_statistics_are_those_of_all_data_at_once(tmp_path):
    items = write_folder(tmp_path / "shards")
    mean, std = (torch.cat([item[k].half().double() for item in items]) for k in (0, 1))
    expected = (mean.mean(0), ((mean**2 + std**2).mean(0) - mean.mean(0) ** 2).sqrt())
    found = ShardDataset(tmp_path / "shards").statistics
    torch.testing.assert_close(found.mean, expected[0].float())
    torch.testing.assert_close(found.std, expected[1].float())
    drawn = torch.cat([Gaussian(mean, std).sample(torch.Generator().manual_seed(i)) for i in range(400)])
    torch.testing.assert_close(found.std, drawn.std(0).float(), atol=0.05, rtol=0.05)
    assert isinstance(found, LatentStatistics)


def test_a_shard_holds_real_tokens_only_in_half_precision(tmp_path):
    write_folder(tmp_path / "shards")
    shard = load_file(shard_path(tmp_path / "shards", 0))
    assert shard["items"].dtype == torch.float16
    assert shard["item_ends"].diff(prepend=torch.zeros(1)).tolist() == [2 * 4 * 8 + 16 + 16 * tokens for tokens in LENGTHS[0]]


def test_opening_reads_no_shard_and_few_stay_known(tmp_path, monkeypatch):
    from meanaudio.data import shards as module

    write_folder(tmp_path / "shards")
    opened = []
    monkeypatch.setattr(module, "ShardFile", lambda path, real=module.ShardFile: opened.append(path.name) or real(path))
    data = ShardDataset(tmp_path / "shards", known_shards=2)
    files = len(os.listdir("/proc/self/fd"))
    assert opened == []
    data.batch([0, 1, 0, 3])
    assert opened == ["shard-00000.safetensors", "shard-00001.safetensors"]
    data.batch([5])
    data.batch([3])  # was used after shard 0, so it stayed
    assert len(opened) == 3
    data.batch([0])
    assert len(opened) == 4
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_shard_that_is_cut_while_it_is_in_use_is_an_error(tmp_path):
    write_folder(tmp_path / "shards")
    data = ShardDataset(tmp_path / "shards")
    data.batch([3, 4])
    path = shard_path(tmp_path / "shards", 1)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 200)
    with pytest.raises(InputError, match="shard-00001.*cut short"):
        data.batch([0, 4])


def test_text_is_encoded_on_the_fly_from_the_captions(tmp_path):
    write_folder(tmp_path / "shards", text={"encoder": "other"}, text_fingerprint="other")
    data = ShardDataset(tmp_path / "shards", encoder=WordHash(), text=TextConfig(max_tokens=9))
    stored = ShardDataset(tmp_path / "shards").batch([4, 0])
    batch, expected = data.batch([4, 0]), WordHash()(["sound clip1-1", "sound clip0-0"])
    assert torch.equal(batch.mean, stored.mean)
    assert torch.equal(batch.text.sequence, expected.sequence)
    assert torch.equal(data.null_text.pooled, WordHash()([""]).pooled)
    assert (data.index["text"]["max_tokens"], data.index["text_fingerprint"]) == (9, "word-hash")


# ---------------------------------------------------------------- refusals


def test_a_folder_without_an_index_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="meanaudio prepare"):
            ShardDataset(folder)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_missing_or_cut_shard_is_refused_at_once(tmp_path, damage):
    write_folder(tmp_path / "shards")
    path = shard_path(tmp_path / "shards", 1)
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="shard-00001.*again"):
        ShardDataset(tmp_path / "shards")
    assert shard_notes(path) is None


def damaged(path):
    path.write_bytes(b"x" * path.stat().st_size)


def header(path, before, after):
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))


def shorter(path):
    """The index says less than the shard holds."""
    index = path.parent / "index.json"
    values = json.loads(index.read_text())
    values["sizes"] = [3, 1, 1, 1, 1]
    index.write_text(json.dumps(values))


def spoil(place, value, key="items"):
    def change(tensors):
        tensors[key][place] = value

    return lambda path: rewrite(path, change)


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("is damaged", damaged),
        ("other inputs", lambda path: rewrite(path, lambda t: None, made_by="tset")),
        ("its items are not", spoil(-1, 0, "item_ends")),
        ("its items are not", spoil(0, 10**9, "item_ends")),
        ("its captions are not", spoil(0, -5, "caption_ends")),
        ("is damaged", lambda path: header(path, b'"F16"', b'"F64"')),
        ("is damaged", lambda path: header(path, b'"data_offsets":[', b'"data_offsets":-')),
        ("holds 2 items, index.json says 1", shorter),
        ("holds items of other shapes", spoil(0, 100, "item_ends")),
        ("NaN or infinite latents of 'clip1-0'", spoil(3, float("nan"))),
        ("NaN or infinite latents of 'clip1-0'", spoil(32 + 3, float("inf"))),
        ("NaN or infinite text features of 'clip1-0'", spoil(64, -float("inf"))),
        ("NaN or infinite text features of 'clip1-0'", spoil(64 + 16 + 5, float("nan"))),
    ],
)
def test_a_shard_that_is_wrong_inside_is_refused_when_it_is_read(tmp_path, told, change):
    write_folder(tmp_path / "shards")
    path = shard_path(tmp_path / "shards", 1)
    size = path.stat().st_size
    change(path)
    assert path.stat().st_size == size
    data = ShardDataset(tmp_path / "shards")
    data.batch([0, 1, 2, 6])
    with pytest.raises(InputError, match=f"shard-00001.safetensors: .*{told}.*again"):
        data.batch([0, 3])


def test_an_index_of_another_version_is_refused(tmp_path):
    write_folder(tmp_path / "shards")
    path = tmp_path / "shards" / "index.json"
    values = json.loads(path.read_text())
    del values["sizes"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"index\.json.*sizes.*again"):
        ShardDataset(tmp_path / "shards")


def test_an_index_states_what_was_left_out_and_must_add_up(tmp_path):
    lost = [{"id": "clip3-0", "reason": "no such audio file"}]
    write_folder(tmp_path / "shards", lost)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert index["left_out"] == lost
    assert index["items"] == len(FLAT) == sum(index["sizes"])
    with pytest.raises(InputError, match="items should be here"):
        finish_index(tmp_path / "shards", len(LENGTHS), 100, {})
    with pytest.raises(InputError, match="shard-00005"):
        finish_index(tmp_path / "shards", len(LENGTHS) + 1, 100, {})


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """A limit on the size of files stands for the full disk: both fail in the middle of a write."""
    import resource

    path = shard_path(tmp_path, 0)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_shard(path, Gaussian(normals(9, 90, 8), normals(9, 90, 8).abs()), None, ["a"] * 9, ["b"] * 9, "test")
        except InputError as error:
            os._exit(7 if f"cannot write {path}" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert list(tmp_path.iterdir()) == []
