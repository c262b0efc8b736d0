"""The one error that means: the caller can put this right."""


class InputError(ValueError):
    """The caller gave something that cannot work. The message names the value and what would be right; the CLI exits with 2."""
