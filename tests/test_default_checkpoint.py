"""The checkpoint in the repository: it loads offline, makes sound, and stays small."""

import subprocess
import sys
import warnings
from pathlib import Path

import prompt_lists
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meanaudio import DEFAULT_MODEL, MeanAudio
from meanaudio.errors import InputError, OutsideKnowledge
from meanaudio.evaluation.signal import inspect
from meanaudio.knows import list_known

FOLDER = Path(__file__).resolve().parent.parent / "checkpoints" / DEFAULT_MODEL


@pytest.fixture(scope="module")
def pipeline():
    return MeanAudio.from_pretrained(device="cpu", dtype="float32")


def test_one_step_makes_sound_of_the_asked_length(pipeline):
    audio = pipeline.generate(["a dog barks", "an explosion", "wind blows"], duration=3.0, steps=1, seed=0)
    assert audio.samples.shape == (3, 3 * audio.sample_rate)
    for clip in audio.samples:
        heard = inspect(clip, audio.sample_rate)
        assert not {"silent", "clipped", "tone"} & set(heard.faults)
        assert heard.dc < 0.01
    assert (audio.samples.square().mean(1).sqrt() > 1e-3).all()
    assert (audio.samples.abs() < 0.981).all()


def test_a_first_sound_waits_for_no_library_that_it_does_not_need():
    """Each of these takes seconds to import; torch's compiler is imported by what looks harmless, such as `normal_` of a meta tensor."""
    code = (
        "import sys; from meanaudio import MeanAudio; MeanAudio.from_pretrained(device='cpu').generate('a dog barks', seed=0); "
        "print(sorted({'torch._dynamo', 'transformers', 'torchaudio', 'librosa', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_text_is_heard(pipeline):
    """Same noise, other words: the sounds differ more than the same words with the sampler's rounding could explain."""
    one, other = pipeline.generate(["an explosion"], seed=5), pipeline.generate(["a cat meows"], seed=5)
    again = pipeline.generate(["an explosion"], seed=5)
    assert (one.samples - again.samples).abs().max() == 0
    assert (one.samples - other.samples).abs().mean() > 0.1 * one.samples.abs().mean()


def test_its_own_scorer_may_guide_it(pipeline):
    prompts = ["an explosion", "a cat meows", "footsteps on gravel"]
    made = pipeline.generate(prompts, steps=2, guidance_scale=1.5, classifier=DEFAULT_MODEL, seed=0)
    assert made.evaluations == 4
    plain = pipeline.generate(prompts, steps=2, guidance_scale=1.5, seed=0)
    assert (made.samples - plain.samples).abs().max() > 1e-3
    assert pipeline.generate(prompts, steps=2, classifier=DEFAULT_MODEL, seed=0).evaluations < 4  # somebody is sure


def test_weights_fit_and_papers_are_there():
    weights = sum(path.stat().st_size for path in FOLDER.glob("*.safetensors"))
    assert 1e6 < weights <= 60e6
    assert "licen" in (FOLDER / "README.md").read_text(encoding="utf-8").lower()
    assert "deb:" in (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- what it knows


def outside(pipeline, prompts) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts that are too long
        near = pipeline.scorer.nearest(pipeline.encode_text(prompts).pooled, 1)
    return [prompt for prompt, ((_, cosine),) in zip(prompts, near, strict=True) if cosine < pipeline.scorer.outside]


def test_it_tells_what_it_knows_from_what_it_does_not(pipeline):
    """The lists' shares as measured, with room for three prompts each: see docs/scorer.md."""
    assert not outside(pipeline, list(pipeline.scorer.known))
    found = {name: len(outside(pipeline, getattr(prompt_lists, name))) for name in ("REWORDED", "COMPOSED", "UNRELATED", "FOREIGN", "JUNK")}
    sizes = {name: len(getattr(prompt_lists, name)) for name in found}
    assert found["REWORDED"] <= 5
    assert found["COMPOSED"] == 0
    assert all(found[name] >= sizes[name] - 3 for name in ("UNRELATED", "FOREIGN", "JUNK")), found


def test_the_list_beside_the_model_card_is_what_the_command_writes(pipeline, tmp_path):
    list_known(FOLDER, tmp_path / "CONCEPTS.md")
    assert (FOLDER / "CONCEPTS.md").read_text(encoding="utf-8") == (tmp_path / "CONCEPTS.md").read_text(encoding="utf-8")
    assert sum(pipeline.scorer.known.values()) > 1000


@pytest.mark.parametrize(
    "prompt", ["...", "🌧️🐶", "une porte claque", "打雷", "\x00\x01", "\u200b", "x" * 999, "a " * 400, "<script>", "'; --"]
)
def test_prompts_of_every_kind_make_a_sound_and_a_notice(pipeline, prompt):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        audio = pipeline.generate(prompt, duration=1.0, seed=0, num_candidates=2)
    assert audio.samples.square().mean().sqrt() > 1e-3
    assert [w for w in told if issubclass(w.category, OutsideKnowledge)]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=300))
def test_any_text_is_encoded_and_scored_or_refused(pipeline, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if prompt.strip():
            assert torch.isfinite(pipeline.generate(prompt, duration=0.2, seed=0, num_candidates=2).samples).all()
        else:
            with pytest.raises(InputError, match="empty prompt"):
                pipeline.generate(prompt, duration=0.2, seed=0)
