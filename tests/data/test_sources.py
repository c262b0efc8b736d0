"""Where training items come from: shards here or behind a URL, raw sound, and mixtures of them; each gives the same batches."""

import json
import shutil

import fsspec
import pytest
import torch
from fakes import LATENT_DIM, WordHash, tiny_network

from meanaudio.checkpoint import file_hash, load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE
from meanaudio.config import MixedDataConfig, TextConfig, TrainConfig, WindowConfig, parse
from meanaudio.data.mixture import Mixture
from meanaudio.data.raw import RawDataset
from meanaudio.data.resident import Resident
from meanaudio.data.shards import ShardDataset
from meanaudio.data.sources import Encoders, open_datasets
from meanaudio.errors import InputError
from meanaudio.types import LatentBatch


@pytest.fixture
def prepared(make_shards, tmp_path, fast_text):
    """A folder with the shards train/ and val/ of the tiny manifest."""
    for split in ("train", "val"):
        make_shards(out=tmp_path / "shards" / split, split=split)
    return tmp_path / "shards"


@pytest.fixture
def config(tiny_checkpoint, prepared, tmp_path):
    return TrainConfig(
        data=str(prepared),
        codec_from=str(tiny_checkpoint),
        seconds=1.024,
        network=tiny_network(sequence_dim=384, pooled_dim=384, latent_dim=LATENT_DIM),
        loading={"cache": str(tmp_path / "cache")},
    )


def opened(config, **changes):
    return open_datasets(parse(TrainConfig, {**config.model_dump(), **changes}), torch.device("cpu"))


def assert_same_items(a, b, tolerance=0.0):
    """Same ids, captions, latents and text of every item, and the same facts that sets must share."""
    assert a.ids == b.ids
    assert a.captions == b.captions
    for key in ("codec_hash", "text", "text_fingerprint", "seconds"):
        assert a.index[key] == b.index[key]
    order = [5, 0, 3, 3]
    first, second = a.batch(order), b.batch(order)
    assert first.ids == second.ids == [a.ids[i] for i in order]
    assert torch.equal(first.text.mask, second.text.mask)
    for x, y in (
        (first.mean, second.mean),
        (first.std, second.std),
        (first.text.sequence, second.text.sequence),
        (first.text.pooled, second.text.pooled),
        (a.statistics.mean, b.statistics.mean),
        (a.statistics.std, b.statistics.std),
        (a.null_text.sequence, b.null_text.sequence),
    ):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- raw sound


@pytest.mark.parametrize("peak", [None, 0.7])
def test_raw_sound_gives_what_was_prepared_of_it(make_shards, config, tiny_manifest, tmp_path, peak):
    make_shards(out=tmp_path / "cut" / "train", windows=WindowConfig(peak=peak), shard_size=3)
    raw, held_out = opened(config, data=str(tiny_manifest), windows={"peak": peak})
    assert isinstance(raw, RawDataset)
    assert_same_items(ShardDataset(tmp_path / "cut" / "train"), raw, tolerance=4e-3)
    assert held_out.ids == ["clip6", "clip7"]
    batch = raw.batch([0])
    assert not batch.mean.is_inference()
    assert not batch.text.sequence.is_inference()


def test_raw_sound_that_cannot_be_read_is_named(config, tiny_manifest, tmp_path):
    folder = shutil.copytree(tiny_manifest.parent, tmp_path / "sounds")
    raw, _ = opened(config, data=str(folder / "manifest.jsonl"))
    (folder / "clip3.wav").unlink()
    raw.batch([0, 1])
    with pytest.raises(InputError, match=r"clip3\.wav"):
        raw.batch([2, 3])


# ---------------------------------------------------------------- URLs


@pytest.fixture
def remote(prepared):
    """The prepared folder in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(prepared), "/bucket/set", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)


def test_shards_behind_a_url_are_copied_when_they_are_read(config, prepared, remote, tmp_path):
    data, held_out = opened(config, data="memory://bucket/set/")
    (folder,) = (p for p in (tmp_path / "cache").iterdir() if json.loads((p / "index.json").read_text())["split"] == "train")
    data.batch([2])
    assert {p.name for p in folder.iterdir()} == {"index.json", "shard-00001.safetensors"}
    assert_same_items(ShardDataset(prepared / "train"), data)
    assert held_out.ids == ["clip6", "clip7"]
    read = []
    original = remote.get_file
    remote.get_file = lambda path, *rest, **options: read.append(path) or original(path, *rest, **options)
    try:
        assert_same_items(ShardDataset(prepared / "train"), opened(config, data="memory://bucket/set")[0])
    finally:
        del remote.get_file
    assert read == []  # all was in the cache


def test_shards_made_anew_behind_a_url_are_copied_anew(config, make_shards, prepared, remote, tmp_path):
    opened(config, data="memory://bucket/set")[0].batch([0, 5])
    make_shards(out=tmp_path / "new" / "train", scenes=6)
    remote.rm("/bucket/set/train", recursive=True)
    remote.put(str(tmp_path / "new" / "train"), "/bucket/set/train", recursive=True)
    assert opened(config, data="memory://bucket/set")[0].batch([0]).ids == ["scene-0-0"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://bucket/none", "FileNotFoundError"),
        ("nonesuch://bucket/set", "nonesuch"),
    ],
)
def test_urls_that_cannot_be_read_are_refused(config, url, told):
    with pytest.raises(InputError, match=f"{url}/.*{told}"):
        opened(config, data=url)


def test_a_cut_shard_behind_a_url_is_refused(config, remote):
    path = "/bucket/set/train/shard-00001.safetensors"
    remote.pipe_file(path, remote.cat_file(path)[:-8])
    with pytest.raises(InputError, match="memory://bucket/set/train/shard-00001.safetensors: has .* bytes"):
        opened(config, data="memory://bucket/set")


# ---------------------------------------------------------------- mixtures


def test_a_mixture_gives_each_sets_own_items(config, make_shards, tiny_manifest, prepared, tmp_path):
    make_shards(out=tmp_path / "scenes" / "train", scenes=9)
    sets = [ShardDataset(prepared / "train"), ShardDataset(tmp_path / "scenes" / "train")]
    others = [{"data": str(tmp_path / "scenes"), "share": 0.2}, {"data": str(tiny_manifest), "share": 0.3}]
    mixture, held_out = opened(config, mixture=others)
    assert isinstance(mixture, Mixture)
    assert len(mixture) == 6 + 9 + 6
    assert mixture.ids == [*sets[0].ids, *sets[1].ids, *sets[0].ids]
    assert held_out.ids == ["clip6", "clip7"]
    indices = [14, 0, 6, 5, 20, 0]
    batch = mixture.batch(indices)
    assert batch.ids == [mixture.ids[i] for i in indices]
    for row, i in enumerate(indices):
        source, place, tolerance = (sets[0], i, 0) if i < 6 else (sets[1], i - 6, 0) if i < 15 else (sets[0], i - 15, 4e-3)
        alone = source.batch([place])
        torch.testing.assert_close(batch.mean[row], alone.mean[0], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(
            batch.text[row : row + 1].sequence[batch.text.mask[row][None]], alone.text.sequence[0], atol=2e-3, rtol=2e-3
        )
    drawn = mixture.order(0).take(0, 4096)
    shares = [sum(a <= i < b for i in drawn) / 4096 for a, b in ((0, 6), (6, 15), (15, 21))]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=1e-3)


def test_a_resident_set_gives_the_batches_of_the_one_on_disk(config, make_shards, tiny_manifest, tmp_path, monkeypatch):
    """Of several sets at once too, read in pieces; what is read anew each time, as sound is, cannot stay."""
    make_shards(out=tmp_path / "scenes" / "train", scenes=9)
    mixed = {"mixture": [{"data": str(tmp_path / "scenes"), "share": 0.2}]}
    monkeypatch.setattr("meanaudio.data.resident.READ", 4)
    on_disk, _ = opened(config, **mixed)
    resident, held_out = opened(config, **mixed, loading={"resident": True})
    assert isinstance(resident, Resident)
    assert isinstance(held_out, ShardDataset)
    assert resident.mean.dtype == torch.float16
    assert_same_items(on_disk, resident)
    assert resident.order(3).take(0, 30) == on_disk.order(3).take(0, 30)
    with pytest.raises(InputError, match=r"loading.resident: .*manifest.jsonl .train. is read as sound"):
        opened(config, mixture=[{"data": str(tiny_manifest)}], loading={"resident": True})
    with pytest.raises(InputError, match="loading.resident keeps what shards store; with encode_text captions are encoded anew"):
        opened(config, encode_text=True, loading={"resident": True})


def test_a_resident_set_keeps_numbers_that_16_bits_do_not_hold(config, prepared):
    class Finer(ShardDataset):
        def batch(self, indices):
            batch = super().batch(indices)
            return LatentBatch(batch.mean + 1e-6, batch.std, batch.text, batch.ids)

    fine = Finer(prepared / "train")
    assert_same_items(fine, Resident(fine, torch.device("cpu")))


def test_a_set_that_does_not_fit_on_a_gpu_is_refused_before_it_is_read(config, prepared, monkeypatch):
    """The GPU is a fake: its memory is asked for, nothing is sent there."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    with pytest.raises(InputError, match=r"loading.resident: 6 items of .*train need 0.0 GB on cuda, 0.0 GB are free"):
        Resident(ShardDataset(prepared / "train"), torch.device("cuda"))


def test_without_shares_every_item_is_equally_frequent(config, make_shards, tmp_path):
    make_shards(out=tmp_path / "scenes" / "train", scenes=12)
    mixture, _ = opened(config, mixture=[{"data": str(tmp_path / "scenes")}])
    assert mixture.shares == pytest.approx([1 / 3, 2 / 3])


def test_a_mixtures_statistics_are_those_of_what_training_sees(config, make_shards, prepared, tmp_path):
    make_shards(out=tmp_path / "scenes" / "train", scenes=9)
    mixture, _ = opened(config, mixture=[{"data": str(tmp_path / "scenes"), "share": 0.25}])
    order = mixture.order(0).take(0, 4 * 1024)
    order = order[: len(order) // 72 * 72]  # whole epochs of both, nearly
    batch = mixture.batch(order)
    mean, std = batch.mean.double().flatten(0, 1), batch.std.double().flatten(0, 1)
    expected = ((mean**2 + std**2).mean(0) - mean.mean(0) ** 2).sqrt()
    torch.testing.assert_close(mixture.statistics.mean.double(), mean.mean(0), atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(mixture.statistics.std.double(), expected, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": 0.512}, "window length .*: seconds 0.512 instead of 1.024"),
        ({"text": TextConfig(max_tokens=9)}, "text encoder .*'max_tokens': 9"),
        ({"fingerprint": "word-hash-2"}, "weights of the text encoder .*'word-hash-2' instead of 'word-hash'"),
        ({"codec": True}, "codec "),
    ],
)
def test_sets_that_do_not_fit_together_are_refused_with_what_differs(make_shards, prepared, checkpoint_copy, tmp_path, changes, told):
    encoder = WordHash()
    if changes.pop("codec", None):
        settings = read_json(checkpoint_copy / "config.json")
        write_json(checkpoint_copy / "config.json", settings | {"codec_hash": "other"})
        changes["codec_folder"] = checkpoint_copy
    encoder.fingerprint = changes.pop("fingerprint", encoder.fingerprint)
    make_shards(out=tmp_path / "other", encoder=encoder, **changes)
    with pytest.raises(InputError, match=f"other: another {told}"):
        Mixture([ShardDataset(prepared / "train"), ShardDataset(tmp_path / "other")], [0.5, 0.5])


def test_a_codec_whose_decoder_went_on_makes_the_latents_that_it_did(make_shards, prepared, checkpoint_copy, config):
    """Shards of either fit together and fit a run with either, and say whose bytes they are."""
    path = checkpoint_copy / VAE_FILE
    state = load_weights(path)
    save_weights(path, {k: v + 0.1 if k.startswith("decoder") else v for k, v in state.items()})
    make_shards(out=checkpoint_copy / "shards" / "train", codec_folder=checkpoint_copy)
    later, before = ShardDataset(checkpoint_copy / "shards" / "train"), ShardDataset(prepared / "train")
    assert_same_items(later, before, tolerance=1e-3)
    assert later.index["vae_hash"] == file_hash(path) and "vae_hash" not in before.index
    Mixture([before, later], [0.5, 0.5])
    opened(config, codec_from=str(checkpoint_copy))


@pytest.mark.parametrize(
    ("mixture", "told"),
    [
        ([{"data": "a", "share": 0.5}, {"data": "b"}], "either every set"),
        ([{"data": "a", "share": 0.5}, {"data": "b", "share": 0.5}], "below 1"),
        ([{"data": "a", "share": 0.0}], "mixture.0.share"),
        ([{"data": "a", "shara": 0.1}], "unknown key 'mixture.0.shara'; did you mean 'share'"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(mixture, told):
    with pytest.raises(InputError, match=told):
        parse(TrainConfig, {"mixture": mixture})
    assert MixedDataConfig(data="a").share is None


# ---------------------------------------------------------------- against the config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"codec_from": None}, "codec_from"),
        ({"data": "nowhere"}, "meanaudio prepare"),
        ({"data": "nowhere.jsonl"}, r"no such manifest: nowhere\.jsonl"),
        ({"seconds": 2.0}, "windows of 1.024 s, the config says seconds = 2.0"),
        ({"text": {"max_tokens": 8}}, "max_tokens"),
        ({"mixture": [{"data": "elsewhere"}]}, "elsewhere/train"),
        ({"text": {"encoder": "flan_t5+clap"}, "encode_text": True}, "text encoder's files are missing"),
    ],
)
def test_data_that_does_not_fit_the_config_is_refused(config, changes, told):
    with pytest.raises(InputError, match=told):
        opened(config, **changes)


@pytest.mark.parametrize(("split", "told"), [("train", "codec_from, holds word-hash"), ("val", "made with text encoder word-hash-2")])
def test_text_features_of_other_weights_are_refused(config, make_shards, prepared, monkeypatch, split, told):
    """Against the encoder's files, where they are at hand; the two splits against each other, where they are not."""
    encoder = WordHash()
    encoder.fingerprint = "word-hash-2"
    shutil.rmtree(prepared / split)
    make_shards(out=prepared / split, split=split, encoder=encoder)
    if split == "val":
        monkeypatch.setattr(Encoders, "text_fingerprint", None)
    with pytest.raises(InputError, match=f"{split}: .*{told}"):
        opened(config)


def test_a_network_that_hears_padding_is_not_fed_from_shards_without_it(config, make_shards, tmp_path):
    text = TextConfig(encoder="flan_t5+clap")
    for split in ("train", "val"):
        make_shards(out=tmp_path / "released" / split, split=split, text=text)
    changes = {"data": str(tmp_path / "released"), "text": text.model_dump()}
    opened(config, **changes)
    with pytest.raises(InputError, match="stores no padding.*encode_text: true"):
        opened(config, **changes, network={**config.network.model_dump(), "mask_text": False})


def test_captions_can_be_encoded_while_training(config, prepared):
    data, held_out = opened(config, encode_text=True)
    expected = WordHash()(["a tone of 200 hertz"])
    assert torch.equal(data.batch([0]).text.sequence, expected.sequence)  # not in half precision: not the stored ones
    assert not torch.equal(ShardDataset(prepared / "train").batch([0]).text.sequence, expected.sequence)
    assert held_out.encoder is data.encoder
