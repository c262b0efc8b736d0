"""Fetch public packages through their registries' ordinary clients, into a cache folder.

Python packages that come as source alone are fetched without pip, which would run their setup.py.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from importlib import resources
from pathlib import Path

from meanaudio.errors import InputError

PYPI = "https://pypi.org/simple"
TIMEOUT = 1800  # seconds
MOST = 1 << 30  # bytes of a package that comes without a client


@functools.cache
def known_versions() -> dict[str, str]:
    """The version of each package that is known to hold what it is wanted for, as `packages.tsv` has them: those of Debian 12, and pins."""
    lines = resources.files("meanaudio.data").joinpath("packages.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines[1:])


def is_known_version(source: str, version: str) -> bool:
    """Whether a package's contents are those of the known version. Debian's epochs and revisions do not count.

    True for a package of which no version is known.
    """
    known = known_versions().get(source)
    return known is None or _upstream(version) == _upstream(known)


def _upstream(version: str) -> str:
    """ "1:2.0-3+deb12u1" -> "2.0"."""
    return version.rpartition(":")[2].rsplit("-", 1)[0]


def fetch_package(source: str, cache: Path) -> Path:
    """The package file of `deb:NAME`, `pypi:NAME`, `sdist:NAME` or `npm:NAME`, from the cache or downloaded into it."""
    registry, _, name = source.partition(":")
    version = known_versions().get(source)  # a Debian release holds one version of a package, the other registries hold many
    patterns = {
        "deb": f"{name}_*.deb",
        "pypi": f"{name.replace('-', '_')}-{version}-*.whl",
        "sdist": f"{name}-{version}.tar.gz",
        "npm": f"{name}-{version}.tgz",
    }
    commands = {
        "deb": ["apt-get", "download", name],
        "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", f"{name}=={version}"],
        "npm": ["npm", "pack", f"{name}@{version}"],
    }
    if registry not in patterns:
        raise InputError(f"unknown source {source!r}; known are deb:NAME, pypi:NAME, sdist:NAME, npm:NAME")
    cache.mkdir(parents=True, exist_ok=True)
    if found := sorted(cache.glob(patterns[registry])):
        return found[-1]
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        try:
            if registry == "sdist":
                _download_source(name, patterns[registry], Path(folder))
            else:
                subprocess.run(commands[registry], cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.CalledProcessError as error:
            reason = [line for line in error.stderr.strip().splitlines() if line] or [f"exit status {error.returncode}"]
            raise InputError(f"cannot download {source}: {reason[-1]}") from error
        except (OSError, LookupError, TypeError, ValueError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
            raise InputError(f"cannot download {source}: {error}") from error
        made = sorted(Path(folder).glob(patterns[registry]))
        if not made:
            raise InputError(f"cannot download {source}: there came no {patterns[registry]}")
        kept = cache / made[0].name
        os.replace(made[0], kept)
        return kept


def _download_source(name: str, file: str, folder: Path) -> None:
    """`file` of PyPI's project `name`, with the sha256 that PyPI states. Raises what a network and a wrong answer may lead to."""
    index = urllib.request.Request(f"{PYPI}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    listed = {entry["filename"]: entry for entry in json.loads(_read(index))["files"]}
    if file not in listed:
        raise LookupError(f"{PYPI}/{name}/ has no {file}")
    content = _read(urllib.request.Request(listed[file]["url"]))
    if hashlib.sha256(content).hexdigest() != listed[file]["hashes"]["sha256"]:
        raise ValueError(f"{file} is not what PyPI says it is: another sha256")
    (folder / file).write_bytes(content)


def _read(request: urllib.request.Request) -> bytes:
    if not request.full_url.startswith("https://"):
        raise ValueError(f"{request.full_url} is not offered by https")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if not answer.url.startswith("https://"):
            raise ValueError(f"{answer.url} is not offered by https")
        content: bytes = answer.read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"{request.full_url} has more than {MOST} bytes")
    return content


def version_of(package: Path) -> str:
    """From the file name: `name_version_arch.deb`, `name-version-tags.whl`, `name-version.tgz`, `name-version.tar.gz`."""
    if package.suffix == ".deb":
        return package.stem.split("_")[1].replace("%3a", ":")
    if package.suffix == ".whl":
        return package.stem.split("-")[1]
    return package.name.removesuffix(".tar.gz").removesuffix(".tgz").rpartition("-")[2]
