"""Text to audio in one network evaluation."""

__version__ = "0.1.0"
DEFAULT_MODEL = "sounds-small"
__all__ = ["MeanAudio", "__version__"]


def __getattr__(name: str):
    # Importing the package must stay quick: torch loads when the pipeline is asked for.
    if name == "MeanAudio":
        from meanaudio.pipeline import MeanAudio

        return MeanAudio
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
