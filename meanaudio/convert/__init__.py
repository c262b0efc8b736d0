"""Checkpoints of others, brought into this project's form. Nothing else in the package knows foreign names or reads foreign files."""

from meanaudio.convert.network import release_network_state
from meanaudio.convert.release import RELEASES, convert_release

__all__ = ["RELEASES", "convert_release", "release_network_state"]
