"""What can go wrong in a way that somebody should be told in one line."""


class InputError(ValueError):
    """The caller gave something that cannot work. The message names the value and what would be right; the CLI exits with 2."""


class Notice(UserWarning):
    """What somebody who asked for a sound should be told, wherever in the package it was noticed."""


class OutsideKnowledge(Notice):
    """A prompt is far from everything that the checkpoint was taught: there will be a sound, but hardly the one that was meant."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient was not finite; the message names the step and the batch's ids. The CLI exits with 1."""


class RankLost(RuntimeError):
    """Another process of a distributed run failed or died; the message names it. The CLI exits with 1."""
