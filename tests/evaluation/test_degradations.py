"""Known damage moves the numbers the right way, step by step: as a fake listener hears it, and YAMNet where its weights are cached."""

import pytest
import torch
from fakes import normals
from listeners import Bands

from meanaudio.convert.hub import cache_folder
from meanaudio.evaluation import metrics
from meanaudio.evaluation.extractors import Extractor, make_extractor
from meanaudio.evaluation.features import Features, compare, gather
from meanaudio.evaluation.signal import inspect

RATE, SECONDS, CLIPS = 16000, 2, 48


def sounds() -> torch.Tensor:
    """[CLIPS, N] of six kinds: hits, chirps, chords, crackle, sweeps of noise, calls; different in each clip."""
    time = torch.arange(RATE * SECONDS) / RATE
    clips = []
    for k in range(CLIPS):
        u = torch.rand(8, generator=torch.Generator().manual_seed(k)).tolist()
        noise = normals(len(time), seed=k)
        beat = (time * (1 + 3 * u[0])) % 1
        tone = 200 * 2 ** (3 * u[1])
        kinds = (
            noise * (-20 * beat).exp(),
            torch.sin(2 * torch.pi * (tone * time + 400 * u[2] * time**2)) * (beat < 0.5),
            sum(torch.sin(2 * torch.pi * tone * ratio * time) for ratio in (1, 1.25, 1.5)) * (-2 * time).exp(),
            noise * (torch.rand(len(time), generator=torch.Generator().manual_seed(k)) < 0.002),
            noise.cumsum(0).diff(n=1, prepend=torch.zeros(1)).roll(1) * (0.1 + beat),
            torch.sin(2 * torch.pi * tone * time + 3 * torch.sin(2 * torch.pi * (3 + 5 * u[3]) * time)) * (beat < 0.3 + 0.4 * u[4]),
        )
        clip = kinds[k % len(kinds)]
        clips.append(0.5 * clip / clip.abs().max())
    return torch.stack(clips)


def add_noise(clips: torch.Tensor, snr_db: float) -> torch.Tensor:
    scale = clips.square().mean(1, keepdim=True).sqrt() * 10 ** (-snr_db / 20)
    return clips + scale * normals(*clips.shape, seed=1000)


def low_pass(clips: torch.Tensor, hertz: float) -> torch.Tensor:
    spectrum = torch.fft.rfft(clips)
    spectrum[:, round(hertz * SECONDS) :] = 0
    return torch.fft.irfft(spectrum, clips.shape[1])


def shuffle_time(clips: torch.Tensor, milliseconds: float) -> torch.Tensor:
    """Pieces of so many milliseconds in random order; 0 leaves all in place."""
    if milliseconds == 0:
        return clips
    size = round(milliseconds * RATE / 1000)
    pieces = clips[:, : clips.shape[1] // size * size].unflatten(1, (-1, size))
    order = torch.randperm(pieces.shape[1], generator=torch.Generator().manual_seed(0))
    return pieces[:, order].flatten(1)


def silence(clips: torch.Tensor, share: float) -> torch.Tensor:
    out = clips.clone()
    out[: round(share * len(clips))] = 0
    return out


def repeat(clips: torch.Tensor, share: float) -> torch.Tensor:
    """So many of the clips become the last one."""
    out = clips.clone()
    out[: round(share * len(clips))] = clips[-1]
    return out


# from harmless to bad
DAMAGES = {
    "noise": (add_noise, (60, 30, 15, 0, -15)),
    "low pass": (low_pass, (8000, 3000, 1000, 300)),
    "time shuffle": (shuffle_time, (0, 200, 50, 10)),
    "silence": (silence, (0, 0.15, 0.4, 0.8)),
    "repeated clip": (repeat, (0, 0.25, 0.5, 0.9)),
}


@pytest.fixture(scope="module", params=["bands", "yamnet"])
def extractor(request) -> Extractor:
    if request.param == "bands":
        return Bands()
    if not (cache_folder() / "yamnet.safetensors").is_file():
        pytest.skip("YAMNet's weights are not cached; meanaudio tag fetches them")
    return make_extractor("yamnet")


def heard(extractor: Extractor, clips: torch.Tensor) -> Features:
    return gather(((str(k), features) for k, features in enumerate(extractor(list(clips)))), extractor.dim)


@pytest.fixture(scope="module")
def reference(extractor) -> Features:
    return heard(extractor, sounds())


@pytest.mark.parametrize("damage", DAMAGES)
def test_more_damage_is_further_away(extractor, reference, damage):
    apply, amounts = DAMAGES[damage]
    pairs = {name: name for name in reference.names}
    rows = []
    for amount in amounts:
        made = heard(extractor, apply(sounds(), amount))
        rows.append(compare(made, reference.statistics, reference=reference, pairs=pairs).numbers)
    for key in ("frechet", "kernel", "kl"):
        values = [row[key] for row in rows]
        assert values == sorted(values), f"{key} under {damage}: {values}"
        assert values[-1] > 4 * max(values[0], 0) and values[-1] > values[-2]


def test_repeated_clips_are_less_diverse_and_are_counted(extractor):
    captions = [str(k // 2) for k in range(CLIPS)]
    scores, diversities, spreads, alike = [], [], [], []
    for share in (0, 0.25, 0.5, 0.9):
        made = heard(extractor, repeat(sounds(), share))
        scores.append(metrics.inception_score(made.logits, splits=1)[0])
        within, across = metrics.cosine_distances(made.embeddings, captions)
        diversities.append(within)
        spreads.append(across)
        alike.append(len(metrics.near_duplicates(made.embeddings, 0.9999)))
    for falling in (scores, diversities, spreads):
        assert falling == sorted(falling, reverse=True) and falling[-1] < falling[0]
    assert alike == sorted(alike) and alike[0] < alike[-1]
    digests = [inspect(clip, RATE).digest for clip in repeat(sounds(), 0.5)]
    assert len(set(digests)) == CLIPS / 2


def test_another_order_of_the_same_clips_is_seen_by_pairs_only(extractor, reference):
    shuffled = heard(extractor, sounds().roll(1, 0))
    numbers = compare(shuffled, reference.statistics, reference=reference, pairs={name: name for name in reference.names}).numbers
    assert numbers["frechet"] == pytest.approx(0, abs=1e-3)
    assert numbers["kl"] > 0.1
