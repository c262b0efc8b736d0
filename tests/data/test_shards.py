"""Prepared features: what goes in comes out, relaunches, refusals, and the order of an epoch."""

import json

import pytest
import torch
from fakes import TINY_CODEC, WordHash, normals, random_text
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from meanaudio.checkpoint import load_weights, save_weights
from meanaudio.codec.codec import VAE_FILE, load_codec
from meanaudio.config import TextConfig
from meanaudio.data.prepare import prepare
from meanaudio.data.shards import (
    LatentStatistics,
    ShardDataset,
    epoch_order,
    finish_index,
    shard_notes,
    shard_path,
    write_null_text,
    write_shard,
)
from meanaudio.errors import InputError
from meanaudio.types import Gaussian

LENGTHS = [[3, 1, 5], [2, 2], [7]]


def write_folder(folder, poison: float | None = None):
    """Three shards of ragged captions; returns what went in."""
    folder.mkdir()
    everything = []
    for number, lengths in enumerate(LENGTHS):
        mean, std = normals(len(lengths), 4, 8, seed=number), normals(len(lengths), 4, 8, seed=10 + number).abs()
        if poison is not None and number == 1:
            mean[0, 0, 0] = poison
        text = random_text(lengths, seed=number)
        ids = [f"clip{number}-{i}" for i in range(len(lengths))]
        write_shard(shard_path(folder, number), Gaussian(mean, std), text, ids, [f"sound {i}" for i in ids], "test")
        everything += [(mean[i], std[i], text[i : i + 1], ids[i]) for i in range(len(lengths))]
    write_null_text(folder, random_text([1], seed=99))
    finish_index(folder, len(LENGTHS), sum(map(len, LENGTHS)), {})
    return everything


def test_ragged_items_come_back_in_any_order_and_mix(tmp_path):
    items = write_folder(tmp_path / "shards")
    shards = ShardDataset(tmp_path / "shards")
    assert len(shards) == 6
    for indices in ([0], [5, 0, 3], [1, 1], list(range(6))):
        batch = shards.batch(indices)
        lengths = [sum(LENGTHS, [])[i] for i in indices]
        assert batch.text.mask.sum(1).tolist() == lengths
        assert batch.text.sequence.shape[1] == max(lengths)
        assert batch.mean.dtype == batch.text.sequence.dtype == torch.float32
        for row, i in enumerate(indices):
            mean, std, text, name = items[i]
            assert batch.ids[row] == name
            assert shards.captions[i] == f"sound {name}"
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


# ---------------------------------------------------------------- preparing


@pytest.fixture
def make_shards(tiny_checkpoint, tiny_manifest, tmp_path):
    def make(out=tmp_path / "shards", manifest=tiny_manifest, codec_folder=tiny_checkpoint, **changes):
        settings = {"seconds": 1.024, "text": TextConfig(), "shard_size": 2, "batch_size": 3, **changes}
        codec = load_codec(codec_folder)
        return prepare(manifest, out, codec=codec, codec_folder=codec_folder, encoder=WordHash(), progress_bar=False, **settings)

    return make


def test_a_manifest_becomes_shards(make_shards, tiny_checkpoint, tmp_path):
    assert make_shards() == 6
    shards = ShardDataset(tmp_path / "shards")
    assert shards.ids == [f"clip{i}" for i in range(6)]
    batch = shards.batch([0, 5])
    assert batch.mean.shape == (2, 16, TINY_CODEC.vae.latent_dim)
    expected = WordHash()(["a tone of 200 hertz", "a tone of 1200 hertz"])
    torch.testing.assert_close(batch.text.sequence, expected.sequence, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(batch.text.pooled, expected.pooled, atol=2e-3, rtol=2e-3)
    null = WordHash()([""])
    assert torch.equal(shards.null_text.sequence, null.sequence)
    # the short clip is padded with silence, so its end is the same as any other silence
    silence = load_codec(tiny_checkpoint).encode(torch.zeros(1, 16384)).mean
    torch.testing.assert_close(batch.mean[0, -2:], silence[0, -2:], atol=2e-3, rtol=2e-3)
    assert make_shards(out=tmp_path / "val", split="val") == 2


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("scenes", [0, 5])
def test_a_relaunch_writes_what_is_missing_with_the_same_bytes(make_shards, tmp_path, scenes):
    folder = tmp_path / "shards"
    make_shards(scenes=scenes, seed=4)
    before = files(folder)
    assert len(before) == 3 + 3  # three shards, null text, facts, index
    kept = (folder / "shard-00001.safetensors").stat().st_mtime_ns
    (folder / "shard-00000.safetensors").unlink()
    (folder / "shard-00002.safetensors").write_bytes(b"cut off")
    (folder / "index.json").unlink()
    make_shards(scenes=scenes, seed=4)
    assert files(folder) == before
    assert (folder / "shard-00001.safetensors").stat().st_mtime_ns == kept


def test_scenes_depend_on_their_seed(make_shards, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert make_shards(out=tmp_path / name, scenes=4, seed=seed) == 4
    a, b, c = (ShardDataset(tmp_path / name).batch([0, 1, 2, 3]).mean for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": 0.512}, "seconds: 1.024 -> 0.512"),
        ({"split": "val"}, "split: 'train' -> 'val'"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"text": TextConfig(max_tokens=9)}, "max_tokens"),
        ({"shard_size": 3}, "shard_size: 2 -> 3"),
    ],
)
def test_a_folder_of_other_inputs_is_refused_with_the_difference(make_shards, tmp_path, changes, told):
    make_shards()
    before = files(tmp_path / "shards")
    with pytest.raises(InputError) as error:
        make_shards(**changes)
    assert told in str(error.value)
    assert str(error.value).count("->") == (2 if "split" in changes else 1)  # another split has other clips
    assert files(tmp_path / "shards") == before


def test_another_codec_and_other_clips_are_refused(make_shards, checkpoint_copy, tiny_manifest):
    make_shards()
    state = load_weights(checkpoint_copy / VAE_FILE)
    save_weights(checkpoint_copy / VAE_FILE, {k: v + 0.01 for k, v in state.items()})
    with pytest.raises(InputError, match="codec_hash"):
        make_shards(codec_folder=checkpoint_copy)
    fewer = tiny_manifest.with_name("fewer.jsonl")
    fewer.write_text("".join(tiny_manifest.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match="clips_hash"):
        make_shards(manifest=fewer)


def test_a_damaged_record_of_the_inputs_is_refused_by_name(make_shards, tmp_path):
    make_shards()
    (tmp_path / "shards" / "facts.json").write_text('{"made_by": ')
    with pytest.raises(InputError, match=r"facts\.json"):
        make_shards()


def test_a_split_without_clips_is_refused(make_shards, tmp_path):
    with pytest.raises(InputError, match="'test'"):
        make_shards(split="test")
    assert not (tmp_path / "shards").exists()


# ---------------------------------------------------------------- refusals of the reader


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(InputError, match="meanaudio prepare"):
        ShardDataset(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage"])
def test_a_damaged_shard_is_refused_by_name(tmp_path, damage):
    write_folder(tmp_path / "shards")
    path = shard_path(tmp_path / "shards", 1)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10] if damage == "cut" else b"x" * 1000)
    with pytest.raises(InputError, match="shard-00001") as error:
        ShardDataset(tmp_path / "shards")
    assert "again" in str(error.value)
    assert shard_notes(path) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_latents_that_are_not_finite_are_refused_by_name(tmp_path, value):
    write_folder(tmp_path / "shards", poison=value)
    with pytest.raises(InputError, match="shard-00001.*NaN"):
        ShardDataset(tmp_path / "shards")


def test_a_shard_holds_real_tokens_only(tmp_path):
    write_folder(tmp_path / "shards")
    shard = load_file(shard_path(tmp_path / "shards", 0))
    assert shard["tokens"].shape == (sum(LENGTHS[0]), 16)
    assert shard["mean"].dtype == torch.float16
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["items"] == 6


# ---------------------------------------------------------------- order


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_item_comes_once_an_epoch_whatever_the_batch_size(count, batch_size, seed):
    steps = -(-3 * count // batch_size)
    flat = [i for step in range(steps) for i in epoch_order(count, batch_size, step, seed)]
    assert len(flat) == steps * batch_size
    for epoch in range(3):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_is_a_pure_function_that_seed_and_epoch_change():
    orders = {(seed, step): tuple(epoch_order(64, 64, step, seed)) for seed in range(3) for step in range(3)}
    assert len(set(orders.values())) == 9
    torch.manual_seed(5)
    assert tuple(epoch_order(64, 64, 2, 1)) == orders[1, 2]
