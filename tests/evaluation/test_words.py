"""Learning in which words a checkpoint makes what: on tones, by listeners of tones, of a checkpoint that mistakes one for another."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from fakes import write_scorer

from meanaudio.audio import load_audio
from meanaudio.checkpoint import WORDS_FILE, read_json, write_json
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors, words
from meanaudio.evaluation.extractors import ClipFeatures
from meanaudio.evaluation.words import learn_words
from meanaudio.pipeline import Audio, MeanAudio
from meanaudio.reading import load_heard

TAUGHT = [f"a tone of {200 * (i + 1)} hertz" for i in range(6)]
MISTAKEN = {TAUGHT[0]: TAUGHT[1]}  # what the checkpoint makes of the first is the second


class Bands:
    """The share of each band of 100 Hz, from 50 Hz, in a clip: one row."""

    multi_label, classes, fingerprint, dim = True, None, "bands", 20

    def __init__(self, rate: int, name: str) -> None:
        self.sample_rate, self.name = rate, name

    def __call__(self, clips):
        found = []
        for clip in clips:
            power = torch.fft.rfft(clip, self.sample_rate).abs().square()[50:2050].unflatten(0, (20, 100)).sum(1)
            found.append(ClipFeatures((power / power.sum())[None].sqrt(), None))
        return found


@pytest.fixture(autouse=True)
def _ears(monkeypatch, fast_text):
    monkeypatch.setitem(extractors.EXTRACTORS, "aisfx", lambda **how: Bands(16000, "aisfx"))
    monkeypatch.setitem(extractors.EXTRACTORS, "soundnet", lambda **how: Bands(22050, "soundnet"))
    monkeypatch.setattr(words, "BATCH", 16)
    monkeypatch.setattr(words, "NEAR", 0.999)  # the captions differ in one word


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tones"))
    settings = read_json(folder / "config.json")
    config = write_scorer(folder, tiny_checkpoint, dict.fromkeys(TAUGHT, 1), outside=-1.0)
    write_json(folder / "config.json", settings | {"scorer": config.model_dump(mode="json")})
    return folder


@pytest.fixture
def makes_tones(monkeypatch, tiny_manifest):
    clips = {row["caption"]: row["audio"] for row in map(json.loads, tiny_manifest.read_text().splitlines())}

    def generate(self, prompts, *, seed, by_event, known_captions):
        assert not by_event and known_captions == 0
        sounds = [load_audio(tiny_manifest.parent / clips[MISTAKEN.get(p, p)], 16000)[:8000] for p in prompts]
        return Audio(torch.stack(sounds), 16000, [{} for _ in prompts])

    monkeypatch.setattr(MeanAudio, "generate", generate)


@pytest.mark.usefixtures("makes_tones")
def test_what_is_heard_of_each_caption_is_what_the_checkpoint_makes_of_it(checkpoint, tiny_manifest):
    heard = []
    path = learn_words(checkpoint, tiny_manifest, outputs=2, device="cpu", progress=heard.append)
    assert path == checkpoint / WORDS_FILE
    assert sum(heard) == 2 * (6 + 12)  # recordings and outputs, by two listeners
    table = load_heard(checkpoint, TAUGHT)
    torch.testing.assert_close(table.sum(1), torch.ones(6), atol=1e-2, rtol=0)
    assert [TAUGHT[i] for i in table.argmax(1)] == [MISTAKEN.get(caption, caption) for caption in TAUGHT]
    before = path.read_bytes()
    learn_words(checkpoint, tiny_manifest, outputs=2, device="cpu")
    assert path.read_bytes() == before


def test_what_cannot_be_learned_is_refused(checkpoint, tiny_checkpoint, tiny_manifest, tmp_path):
    (checkpoint / WORDS_FILE).write_bytes(b"what was learned before")
    with pytest.raises(InputError, match="tiny has no scorer, which says what captions it knows"):
        learn_words(tiny_checkpoint, tiny_manifest, device="cpu")
    with pytest.raises(InputError, match="outputs = 0: must be 1 or more"):
        learn_words(checkpoint, tiny_manifest, outputs=0, device="cpu")
    rows = [row for row in map(json.loads, tiny_manifest.read_text().splitlines()) if row["caption"] != TAUGHT[2]]
    other = tmp_path / "manifest.jsonl"
    other.write_text("".join(json.dumps({**row, "audio": str(tiny_manifest.parent / row["audio"])}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"no training clip of 1 known caption\(s\), such as 'a tone of 600 hertz'"):
        learn_words(checkpoint, other, device="cpu")
    assert (checkpoint / WORDS_FILE).read_bytes() == b"what was learned before"


@pytest.mark.usefixtures("makes_tones")
def test_the_verb(run, checkpoint, tiny_manifest):
    code, out, err = run("learn-words", tiny_manifest, "-m", checkpoint, "--outputs", 1, "--device", "cpu", "--quiet")
    assert code == 0, err
    assert re.search(r"words\.safetensors: \d kB", out)
