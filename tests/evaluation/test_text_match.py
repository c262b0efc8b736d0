"""Text agreement: ranks, what may be asked for, and that the own recordings are found where outputs are the recordings."""

from pathlib import Path

import pytest
import torch
from fakes import LATENT_DIM, fill, normals
from listeners import Bands

from meanaudio.checkpoint import read_json, save_weights, write_json
from meanaudio.config import TaggerCheckpointConfig
from meanaudio.data.manifest import read_manifest
from meanaudio.errors import InputError
from meanaudio.evaluation import extractors
from meanaudio.evaluation.text_match import LATENTS, KnownCaptions, choose_captions, own_ranks, text_match
from meanaudio.models.tagger import TAGGER_FILE, make_tagger
from meanaudio.pipeline import MeanAudio


@pytest.fixture(autouse=True)
def listener(fast_text, monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "bands", Bands)


@pytest.fixture
def tagger(tiny_checkpoint, tmp_path) -> Path:
    """One whose classes every caption of the manifest names."""
    codec = read_json(tiny_checkpoint / "config.json")["codec_hash"]
    config = TaggerCheckpointConfig(codec_hash=codec, classes=("hertz", "tone"), latent_dim=LATENT_DIM, width=16, blocks=1)
    save_weights(tmp_path / "tagger" / TAGGER_FILE, fill(make_tagger(config), std=0.2).state_dict())
    write_json(tmp_path / "tagger" / "config.json", config.model_dump(mode="json"))
    return tmp_path / "tagger"


def test_a_centre_is_its_own_nearest_and_ranks_count_the_nearer_ones():
    centres = torch.tensor([[0.0], [1.0], [3.0]])
    found = torch.tensor([[[0.1], [0.9]], [[2.5], [1.0]], [[-9.0], [3.0]]])
    assert own_ranks(found, centres).tolist() == [[0, 1], [1, 0], [2, 0]]


def test_captions_are_of_the_training_split_and_name_a_class_if_that_is_asked(tiny_manifest):
    clips = read_manifest(tiny_manifest)
    every = choose_captions(clips, 6, seed=0)
    assert set(every) == {c.caption for c in clips if c.split == "train"}
    assert choose_captions(clips, 6, 0, classes=("tone",)) == every
    with pytest.raises(InputError, match="1 captions asked for, the training split has 0 that name a class"):
        choose_captions(clips, 1, 0, classes=("dog",))


def test_outputs_that_are_recordings_find_their_caption(tiny_checkpoint, tiny_manifest, monkeypatch):
    """Both by latents and by ear; and outputs of one caption that are all alike have no diversity."""
    pipeline = MeanAudio.from_pretrained(tiny_checkpoint, "cpu")
    known = KnownCaptions(pipeline, tiny_manifest, count=6, outputs=2, listener=Bands())
    sounds = {c.caption: c for c in read_manifest(tiny_manifest)}
    from meanaudio.audio import fit, load_audio

    audio = torch.stack([fit(load_audio(sounds[c].audio, 16000), known.num_samples) for c in known.captions for _ in range(2)])
    monkeypatch.setattr(pipeline, "sample_latents", lambda *args, **options: pipeline.encode(audio))
    monkeypatch.setattr(pipeline, "decode", lambda latents, num_samples: audio)
    found, _ = known.agreement(pipeline, steps=1)
    assert found.keys() == {LATENTS, "bands"}
    assert found["bands"].top_1 == 1.0
    assert found[LATENTS].mean_rank < 2
    assert found["bands"].diversity == pytest.approx(0, abs=1e-6)
    assert found[LATENTS].diversity is None
    assert known.floor["bands"].diversity > 0


def test_latents_alone_are_compared_without_a_listener(tiny_checkpoint, tiny_manifest, monkeypatch):
    monkeypatch.setattr(MeanAudio, "decode", lambda *args: pytest.fail("nobody listens"))
    found = text_match(tiny_checkpoint, tiny_manifest, count=3, outputs=2, device="cpu")
    assert found.made.keys() == found.floor.keys() == {LATENTS}
    assert found.made[LATENTS].ranks.shape == (3, 2)
    assert found.evaluations == 1


def test_the_verb_takes_guidance_a_tagger_and_a_listener(run, tiny_checkpoint, tiny_manifest, tagger):
    shared = ("evaluate-text", tiny_manifest, "-m", tiny_checkpoint, "--captions", 3, "--outputs", 2, "--steps", 2, "--device", "cpu")
    code, out, err = run(*shared, "-g", 3, "-e", "bands", "--naming", tagger)
    assert code == 0, err
    assert "2 step(s), 4.0 evaluations a clip, guidance_scale 3.0" in out
    assert "generated, by latents" in out and "generated, by bands" in out and "diversity" in out
    code, out, err = run(*shared, "--with", f"classifier={tagger}", "--with", "classifier_scale=5")
    assert code == 0, err
    assert "classifier_scale 5" in out


def test_what_cannot_be_asked_is_refused(run, tiny_checkpoint, tiny_manifest, tmp_path):
    shared = ("evaluate-text", tiny_manifest, "-m", tiny_checkpoint, "--captions", 3, "--device", "cpu")
    for more, told in (
        (("--with", "clasifier=x"), "no option of generation that can be set here: clasifier; there are classifier"),
        (("--extractor", "ear"), "unknown extractor 'ear': must be one of"),
        (("--naming", tmp_path), "no such file"),
        (("--captions", 99), "99 captions asked for, the training split has 6"),
    ):
        code, out, err = run(*shared, *more)
        assert code == 2 and told in err, (more, err)
        assert out == ""


def test_normals_are_no_recordings(tiny_checkpoint, tiny_manifest, monkeypatch):
    """Outputs that ignore the caption are at chance: each rank is as likely as any other."""
    pipeline = MeanAudio.from_pretrained(tiny_checkpoint, "cpu")
    known = KnownCaptions(pipeline, tiny_manifest, count=6, outputs=4)
    same = normals(1, 16, LATENT_DIM).expand(24, -1, -1)
    monkeypatch.setattr(pipeline, "sample_latents", lambda *args, **options: same)
    found, _ = known.agreement(pipeline, steps=1)
    assert found[LATENTS].mean_rank == pytest.approx(3.5)
