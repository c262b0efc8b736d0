"""Preparation that is killed again and again ends with the bytes of an undisturbed one."""

import multiprocessing
import random
import time

import pytest
from fakes import WordHash

from meanaudio.codec.codec import load_codec
from meanaudio.config import SceneConfig, TextConfig
from meanaudio.data.prepare import prepare
from meanaudio.data.worker import Worker

KILLS = 12
SETTINGS = {"seconds": 1.024, "scenes": 60, "scene_config": SceneConfig(), "seed": 5, "shard_size": 2, "batch_size": 2, "threads": 2}

processes = multiprocessing.get_context("forkserver")  # children start with torch imported, and without this process's threads
processes.set_forkserver_preload(["meanaudio.data.prepare"])


def child(manifest, out, codec_folder, number, count):
    import torch

    torch.set_num_threads(1)
    codec = load_codec(codec_folder)
    prepare(
        manifest, out, codec=codec, codec_folder=codec_folder, encoder=WordHash(), text=TextConfig(), worker=Worker(number, count),
        progress_bar=False, **SETTINGS,
    )  # fmt: skip


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.timeout(120)
def test_preparation_survives_kills_at_random_moments(tiny_manifest, tiny_checkpoint, tmp_path):
    """Two workers at once, each killed with SIGKILL wherever it happens to be, and started again."""

    def start(number):
        process = processes.Process(target=child, args=(tiny_manifest, out, tiny_checkpoint, number, 2), daemon=True)
        process.start()
        return process

    began = time.monotonic()
    out = tmp_path / "undisturbed"
    for number in range(2):
        start(number).join()
    whole = (time.monotonic() - began) / 2  # seconds of one worker's work
    assert (out / "index.json").exists()

    out, chance = tmp_path / "killed", random.Random(0)
    kills, seen = 0, set()
    workers = [start(number) for number in range(2)]
    while kills < KILLS:
        time.sleep(chance.uniform(0, whole / 4))
        number = chance.randrange(2)
        if workers[number].exitcode is None:
            workers[number].kill()
            kills += 1
        workers[number].join()
        assert workers[number].exitcode in (0, -9)
        seen.add(len(list(out.glob("shard*"))))
        workers[number] = start(number)
        if (out / "index.json").exists():  # done before the kills are: check, and lose some of it
            for worker in workers:
                worker.join()
            assert files(out) == files(tmp_path / "undisturbed")
            for path in [out / "index.json", *out.glob("shard-000[02]*")]:
                path.unlink()
            workers = [start(number) for number in range(2)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(seen) > 3  # they came at different moments
    assert files(out) == files(tmp_path / "undisturbed")
