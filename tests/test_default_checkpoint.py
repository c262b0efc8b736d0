"""The checkpoint in the repository: it loads offline, makes sound, and stays small."""

from pathlib import Path

import pytest

from meanaudio import DEFAULT_MODEL, MeanAudio

FOLDER = Path(__file__).resolve().parent.parent / "checkpoints" / DEFAULT_MODEL


@pytest.fixture(scope="module")
def pipeline():
    return MeanAudio.from_pretrained(device="cpu", dtype="float32")


def test_one_step_makes_sound_of_the_asked_length(pipeline):
    audio = pipeline.generate(["a dog barks", "an explosion", "wind blows"], duration=3.0, steps=1, seed=0)
    assert audio.samples.shape == (3, 3 * audio.sample_rate)
    levels = audio.samples.square().mean(1).sqrt()
    assert (levels > 1e-3).all(), "silent output"
    assert (audio.samples.mean(1).abs() < 0.05 * levels.clamp_min(0.02)).all(), "constant offset"
    assert (audio.samples.abs() < 0.981).all()


def test_the_text_is_heard(pipeline):
    """Same noise, other words: the sounds differ more than the same words with the sampler's rounding could explain."""
    one, other = pipeline.generate(["an explosion"], seed=5), pipeline.generate(["a cat meows"], seed=5)
    again = pipeline.generate(["an explosion"], seed=5)
    assert (one.samples - again.samples).abs().max() == 0
    assert (one.samples - other.samples).abs().mean() > 0.1 * one.samples.abs().mean()


def test_weights_fit_and_papers_are_there():
    weights = sum(path.stat().st_size for path in FOLDER.glob("*.safetensors"))
    assert 1e6 < weights <= 40e6
    assert "licen" in (FOLDER / "README.md").read_text(encoding="utf-8").lower()
    assert "deb:" in (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
