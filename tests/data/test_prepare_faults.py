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

KILLS, SHARDS = 12, 30
SETTINGS = {"scenes": 2 * SHARDS, "scene_config": SceneConfig(), "seconds": 1.024, "shard_size": 2, "batch_size": 2, "threads": 2}

processes = multiprocessing.get_context("forkserver")  # children start with all imported, and without this process's threads
processes.set_forkserver_preload(["meanaudio.data.prepare", "torch._dynamo"])


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

    out = tmp_path / "undisturbed"
    start(0).join()
    began = time.monotonic()
    start(1).join()
    whole = time.monotonic() - began  # seconds of one worker's work
    assert (out / "index.json").exists()

    out, chance = tmp_path / "killed", random.Random(0)
    kills, at_work = 0, 0
    workers = [start(number) for number in range(2)]
    while kills < KILLS:
        time.sleep(chance.uniform(0, whole))
        number = chance.randrange(2)
        workers[number].kill()
        workers[number].join()
        assert workers[number].exitcode in (0, -9)
        kills += workers[number].exitcode == -9
        at_work += workers[number].exitcode == -9 and 0 < len(list(out.glob("shard*"))) < SHARDS
        workers[number] = start(number)
        if (out / "index.json").exists():  # done before the kills are: check, and lose some of it
            for worker in workers:
                worker.join()
            assert files(out) == files(tmp_path / "undisturbed")
            for path in [out / "index.json", *out.glob("shard-000[0-2]*")]:
                path.unlink()
            workers = [start(number) for number in range(2)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert at_work  # not all of them at the very beginning or the very end
    assert files(out) == files(tmp_path / "undisturbed")
