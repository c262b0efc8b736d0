"""From a manifest to shards: windows, workers, relaunches, what is left out, and refusals."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fakes import TINY_CODEC, WordHash, fill
from hypothesis import given
from hypothesis import strategies as st

from meanaudio.audio import load_audio, save_audio
from meanaudio.checkpoint import load_weights, read_json, save_weights, write_json
from meanaudio.codec.codec import VAE_FILE, load_codec, make_vae
from meanaudio.config import SceneConfig, TextConfig, WindowConfig
from meanaudio.data.items import ClipWindows
from meanaudio.data.manifest import Clip, read_manifest
from meanaudio.data.shards import ShardDataset
from meanaudio.data.worker import Worker
from meanaudio.errors import InputError


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_manifest_becomes_shards(make_shards, tiny_checkpoint, tmp_path):
    made = make_shards()
    assert made.items == 6
    assert made.complete
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
    assert make_shards(out=tmp_path / "val", split="val").items == 2


def test_shards_without_text_are_read_with_an_encoder_only(make_shards, tmp_path):
    make_shards(encoder=None)
    assert "null_text.safetensors" not in files(tmp_path / "shards")
    with pytest.raises(InputError, match="encode_text: true"):
        ShardDataset(tmp_path / "shards")
    batch = ShardDataset(tmp_path / "shards", encoder=WordHash()).batch([5])
    assert torch.equal(batch.text.sequence, WordHash()(["a tone of 1200 hertz"]).sequence)


# ---------------------------------------------------------------- windows


@pytest.fixture
def long_clip(tmp_path):
    """3.5 s of a rising ramp: a window's level tells where it was cut."""
    save_audio(tmp_path / "long.wav", torch.linspace(0.001, 0.999, 56000), 16000)
    return Clip("long", tmp_path / "long.wav", "a ramp")


def test_a_long_clip_gives_windows_spread_over_all_of_it(long_clip):
    whole = load_audio(long_clip.audio, 16000)
    for clip in (long_clip, Clip("long", long_clip.audio, "a ramp", duration=3.5)):
        windows = ClipWindows([clip], 16000, 1.0, WindowConfig())
        assert [windows.id(i) for i in range(len(windows))] == ["long-w000", "long-w001", "long-w002"]
        assert [windows.caption(i) for i in range(3)] == ["a ramp"] * 3
        for i, start in enumerate((0, 20000, 40000)):  # the last ends where the clip ends
            assert torch.equal(windows[i].audio, whole[start : start + 16000])


@pytest.mark.parametrize(
    ("clip", "config", "starts"),
    [
        ({}, {"per_clip": 2}, (0, 40000)),
        ({}, {"per_clip": 1}, (0,)),
        ({"duration": 1.9}, {}, (0,)),
        ({"start": 1.5}, {}, (24000, 40000)),
        ({"start": 0.5, "duration": 2.0}, {}, (8000, 24000)),
    ],
)
def test_windows_stay_inside_their_clip(long_clip, clip, config, starts):
    whole = load_audio(long_clip.audio, 16000)
    windows = ClipWindows([Clip("long", long_clip.audio, "a ramp", **clip)], 16000, 1.0, WindowConfig(**config))
    assert len(windows) == len(starts)
    for i, start in enumerate(starts):
        assert torch.equal(windows[i].audio, whole[start : start + 16000])


@pytest.mark.parametrize("clip", [{"start": 3.0}, {"start": 3.0, "duration": 0.5}])
def test_a_short_clip_is_padded_and_keeps_its_id(long_clip, clip):
    windows = ClipWindows([Clip("long", long_clip.audio, "a ramp", **clip)], 16000, 1.0, WindowConfig())
    assert (len(windows), windows[0].id) == (1, "long")
    assert torch.equal(windows[0].audio[:8000], load_audio(long_clip.audio, 16000)[48000:])
    assert windows[0].audio[8000:].abs().sum() == 0


def test_the_windows_of_many_clips_follow_each_other(long_clip):
    clips = [Clip(name, long_clip.audio, name, duration=seconds) for name, seconds in (("a", 2.5), ("b", 0.3), ("c", 3.5))]
    windows = ClipWindows(clips, 16000, 1.0, WindowConfig())
    assert [windows[i].id for i in range(len(windows))] == ["a-w000", "a-w001", "b", "c-w000", "c-w001", "c-w002"]


def test_windows_are_resampled_and_brought_to_a_peak(tmp_path):
    time = torch.arange(88200) / 44100
    save_audio(tmp_path / "tone.wav", 0.1 * torch.sin(2 * torch.pi * 440 * time), 44100)
    windows = ClipWindows([Clip("tone", tmp_path / "tone.wav", "a tone")], 16000, 1.0, WindowConfig(peak=0.95))
    assert len(windows) == 2
    for i in range(2):
        assert windows[i].audio.abs().max().item() == pytest.approx(0.95, abs=1e-6)
        spectrum = torch.fft.rfft(windows[i].audio)[1:].abs()
        assert int(spectrum.argmax()) + 1 == 440


def test_clips_that_cannot_be_cut_are_refused(long_clip):
    with pytest.raises(InputError, match="1e\\+300 s"):
        ClipWindows([Clip("long", long_clip.audio, "a ramp", duration=1e300)], 16000, 1.0, WindowConfig())
    with pytest.raises(InputError, match="'long-w000'"):
        ClipWindows([long_clip, Clip("long-w000", long_clip.audio, "b")], 16000, 1.0, WindowConfig())


# ---------------------------------------------------------------- relaunches and workers


@pytest.mark.parametrize("scenes", [0, 5])
def test_a_relaunch_writes_what_is_missing_with_the_same_bytes(make_shards, tmp_path, scenes):
    folder = tmp_path / "shards"
    make_shards(scenes=scenes, seed=4)
    before = files(folder)
    assert len(before) == 3 + 4  # three shards, null text, captions, facts, index
    kept = (folder / "shard-00001.safetensors").stat().st_mtime_ns
    (folder / "shard-00000.safetensors").unlink()
    (folder / "shard-00002.safetensors").write_bytes(b"cut off")
    (folder / "index.json").unlink()
    (folder / ".shard-00000.safetensors.4f2a.part").write_bytes(b"left by a process that was killed")
    make_shards(scenes=scenes, seed=4)
    assert files(folder) == before
    assert (folder / "shard-00001.safetensors").stat().st_mtime_ns == kept


@pytest.mark.parametrize("scenes", [0, 7])
def test_the_bytes_do_not_depend_on_who_made_what_or_how_much_was_read_ahead(make_shards, tmp_path, scenes):
    make_shards(out=tmp_path / "one", scenes=scenes, threads=1)
    make_shards(out=tmp_path / "threads", scenes=scenes, threads=5)
    for number in (2, 0, 1):
        made = make_shards(out=tmp_path / "three", scenes=scenes, worker=Worker(number, 3))
        assert made.complete == (number == 1)  # the last finds all complete
    assert "2 of 3 shards" in make_shards(out=tmp_path / "two", worker=Worker(0, 2)).to_text()
    assert not (tmp_path / "two" / "index.json").exists()
    assert files(tmp_path / "one") == files(tmp_path / "threads") == files(tmp_path / "three")


def test_several_may_find_all_complete_at_once(make_shards, tmp_path):
    make_shards()
    before = files(tmp_path / "shards")
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda number: make_shards(worker=Worker(number % 4, 4)), range(40)):
            assert made.items == 6
    assert files(tmp_path / "shards") == before


def test_scenes_depend_on_their_seed(make_shards, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert make_shards(out=tmp_path / name, scenes=4, seed=seed).items == 4
    a, b, c = (ShardDataset(tmp_path / name).batch([0, 1, 2, 3]).mean for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_versions_are_other_scenes_and_none_are_those_made_before_there_were_any(make_shards, tmp_path):
    for name, share in (("a", 0), ("b", 1)):
        make_shards(tmp_path / name, scenes=4, scene_config=SceneConfig(room=share))
    described = [json.loads((tmp_path / name / "index.json").read_text()) for name in "ab"]
    assert described[0]["scene_weights"].keys().isdisjoint({"speed", "tone", "room"})
    assert described[1]["scene_weights"]["room"] == 1
    assert described[0]["made_by"] != described[1]["made_by"]


@given(total=st.integers(0, 50), count=st.integers(1, 9))
def test_shares_are_even_and_together_everything(total, count):
    shares = [list(Worker(number, count).share(total)) for number in range(count)]
    assert sorted(sum(shares, [])) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def array(id, first, step, count):
    values = zip(("ID", "MIN", "STEP", "COUNT"), (id, first, step, count), strict=True)
    return {f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in values}


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({}, (0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", **array(3, 0, 1, 8)}, (5, 16)),
        (array(3, 0, 1, 8), (3, 8)),
        (array(21, 1, 10, 4), (2, 4)),
    ],
)
def test_the_environment_says_which_worker_it_is(monkeypatch, environment, worker):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert Worker.of_environment() == Worker(*worker)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"SLURM_ARRAY_TASK_ID": "1"},
        array(9, 0, 1, 3),
        array("x", 0, 1, 3),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match="RANK|worker"):
        Worker.of_environment()


def test_workers_that_make_no_sense_are_refused():
    assert Worker.parse("2/3") == Worker(2, 3)
    for text in ("3/3", "1", "-1/2", "a/b", "0/0", "1/"):
        with pytest.raises(InputError, match="K/N"):
            Worker.parse(text)


# ---------------------------------------------------------------- what is left out


@pytest.fixture
def broken_manifest(tiny_manifest, tmp_path):
    """The tiny manifest's first six clips; one file is missing, one is no sound, one is silent, one ends before its clip starts."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    rows = [{"id": c.id, "audio": c.audio.name, "caption": c.caption} for c in read_manifest(tiny_manifest) if c.split == "train"]
    for row in rows:
        shutil.copy(tiny_manifest.parent / row["audio"], folder / row["audio"])
    (folder / "clip1.wav").unlink()
    (folder / "clip2.wav").write_bytes(b"no sound")
    save_audio(folder / "clip3.wav", torch.zeros(16000), 16000)
    rows[4] |= {"start": 100.0, "duration": 1.0}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


def test_what_cannot_be_read_is_listed_and_the_rest_is_the_same(make_shards, broken_manifest, tmp_path):
    made = make_shards(manifest=broken_manifest, max_left_out=0.7)
    data = ShardDataset(tmp_path / "shards")
    assert data.ids == ["clip0", "clip5"]
    assert made.items == data.index["items"] == 2
    assert data.index["sizes"] == [1, 0, 1]
    left_out = {entry["id"]: entry["reason"] for entry in data.index["left_out"]}
    assert left_out.keys() == {"clip1", "clip2", "clip3", "clip4"}
    for name, told in (("clip1", "no such"), ("clip2", "cannot be read"), ("clip3", "silent"), ("clip4", "past its end")):
        assert told in left_out[name]
        assert f"{name}.wav" in left_out[name]
        assert name in made.to_text()
    before = files(tmp_path / "shards")
    assert make_shards(manifest=broken_manifest, max_left_out=0.7, out=tmp_path / "again", threads=1).left_out == made.left_out
    assert files(tmp_path / "again") == before
    make_shards(manifest=broken_manifest, max_left_out=0.7)
    assert files(tmp_path / "shards") == before


def test_more_than_the_limit_is_an_error_and_no_index_is_written(make_shards, broken_manifest, tmp_path):
    with pytest.raises(InputError, match=r"1 of 6 items cannot be made, 0 are allowed.*'clip1': no such audio file"):
        make_shards(manifest=broken_manifest)
    assert not (tmp_path / "shards" / "index.json").exists()
    for number in range(3):  # no worker alone is above it, all together are
        worker = Worker(number, 3)
        if number < 2:
            assert not make_shards(manifest=broken_manifest, max_left_out=0.5, worker=worker).complete
    with pytest.raises(InputError, match="4 of 6 items"):
        make_shards(manifest=broken_manifest, max_left_out=0.5, worker=worker)
    assert not (tmp_path / "shards" / "index.json").exists()


def test_a_relaunch_tries_again_what_could_not_be_read(make_shards, broken_manifest, tiny_manifest, tmp_path):
    make_shards(manifest=broken_manifest, max_left_out=0.7)
    kept = (tmp_path / "shards" / "shard-00001.safetensors").stat().st_mtime_ns
    shutil.copy(tiny_manifest.parent / "clip1.wav", broken_manifest.parent / "clip1.wav")
    assert make_shards(manifest=broken_manifest, max_left_out=0.7).items == 3
    assert ShardDataset(tmp_path / "shards").ids == ["clip0", "clip1", "clip5"]
    assert (tmp_path / "shards" / "shard-00001.safetensors").stat().st_mtime_ns == kept


def test_a_set_of_which_nothing_can_be_read_is_refused(make_shards, broken_manifest, tmp_path):
    for path in broken_manifest.parent.glob("*.wav"):
        path.unlink()
    with pytest.raises(InputError, match="no item could be made.*no such audio file"):
        make_shards(manifest=broken_manifest, max_left_out=1.0)
    assert not (tmp_path / "shards" / "index.json").exists()


def test_a_codec_that_makes_huge_latents_is_refused_with_the_item(make_shards, checkpoint_copy, tmp_path):
    save_weights(checkpoint_copy / VAE_FILE, fill(make_vae(TINY_CODEC), 0, 1e6).state_dict())
    with pytest.raises(InputError, match="latents of 'clip0'"):
        make_shards(codec_folder=checkpoint_copy)
    assert not list((tmp_path / "shards").glob("shard*"))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": 0.512}, "seconds: 1.024 -> 0.512"),
        ({"split": "val"}, "split: 'train' -> 'val'"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"text": TextConfig(max_tokens=9)}, "max_tokens"),
        ({"shard_size": 3}, "shard_size: 2 -> 3"),
        ({"windows": WindowConfig(peak=0.5)}, "'peak': None} -> {"),
        ({"encoder": None}, "text_fingerprint: 'word-hash' -> None"),
    ],
)
def test_a_folder_of_other_inputs_is_refused_with_the_difference(make_shards, tmp_path, changes, told):
    make_shards()
    before = files(tmp_path / "shards")
    with pytest.raises(InputError) as error:
        make_shards(**changes)
    assert told in str(error.value)
    assert "made_by" not in str(error.value)
    assert files(tmp_path / "shards") == before


def test_another_codec_and_a_changed_manifest_are_refused(make_shards, checkpoint_copy, tiny_manifest):
    make_shards()
    state = load_weights(checkpoint_copy / VAE_FILE)
    save_weights(checkpoint_copy / VAE_FILE, {k: v + 0.01 for k, v in state.items()})
    with pytest.raises(InputError, match="vae_hash: None -> "):
        make_shards(codec_folder=checkpoint_copy)
    settings = read_json(checkpoint_copy / "config.json")
    write_json(checkpoint_copy / "config.json", settings | {"codec_hash": "other"})
    with pytest.raises(InputError, match="codec_hash"):
        make_shards(codec_folder=checkpoint_copy)
    fewer = tiny_manifest.with_name("fewer.jsonl")
    fewer.write_text("".join(tiny_manifest.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match="clips: 6 -> 3; clips_hash"):
        make_shards(manifest=fewer)


def test_a_damaged_record_of_the_inputs_is_refused_by_name(make_shards, tmp_path):
    make_shards()
    (tmp_path / "shards" / "facts.json").write_text('{"made_by": ')
    with pytest.raises(InputError, match=r"facts\.json"):
        make_shards()


def test_a_split_without_clips_is_refused_with_those_there_are(make_shards, tmp_path):
    with pytest.raises(InputError, match="'test'; there are train, val"):
        make_shards(split="test")
    assert not (tmp_path / "shards").exists()
