"""What is heard in sound files, in a tagger's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from meanaudio.errors import InputError
from meanaudio.evaluation.extractors import Extractor
from meanaudio.evaluation.extractors.cache import extract


def tag_files(
    paths: Sequence[Path], extractor: Extractor, *, top: int = 5, on_error: Callable[[Path, str], None] | None = None
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """(path, its `top` classes of highest score, best first) of each sound file. on_error: see `extract`.

    Scores are between 0 and 1: a sigmoid each, or one softmax, as the extractor says. Raises InputError where classes have no names.
    """
    if extractor.classes is None:
        raise InputError(f"extractor {extractor.name!r} has no class names")
    for path, features in extract(extractor, paths, cache=None, on_error=on_error):
        assert features.logits is not None
        scores = features.logits.sigmoid() if extractor.multi_label else features.logits.softmax(0)
        best = scores.topk(min(top, len(scores)))
        yield path, [(extractor.classes[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
