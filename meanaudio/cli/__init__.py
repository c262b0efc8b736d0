"""The command line. Every verb calls one function of the package; torch is imported inside the verbs so that --help is quick."""

from __future__ import annotations

import atexit
import gc
import sys
import warnings

from meanaudio.cli import data, learn, make, measure
from meanaudio.cli.common import app
from meanaudio.errors import InputError, Notice, RankLost, TrainingDiverged

__all__ = ["app", "data", "learn", "main", "make", "measure"]


def main(prefix: list[str] | None = None) -> None:
    """Entry point. Bad input, and what the system refuses (no space, no permission), end with one line on stderr and exit code 2."""
    atexit.register(gc.freeze)  # at its end a process looks through all that torch has made for cycles, which takes most of a second
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="meanaudio")
    warnings.filterwarnings("always", category=Notice)  # from under a decorator of torch's, a warning is not of our module
    warnings.showwarning = lambda message, *rest, **options: print(f"warning: {message}", file=sys.stderr)
    try:
        app(args=[*(prefix or []), *sys.argv[1:]])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingDiverged as error:
        print(f"error: training diverged: {error}", file=sys.stderr)
        sys.exit(1)
    except RankLost as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
