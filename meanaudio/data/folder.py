"""A folder of prepared data: on a disk, or behind a URL with a local copy of what was read."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from meanaudio.errors import InputError

CACHE = "~/.cache/meanaudio/shards"


class Folder(Protocol):
    """name: what errors call it."""

    name: str

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it."""
        ...

    def file(self, name: str) -> Path:
        """A local path of the file called `name`."""
        ...


def open_folder(where: str | Path, index: str, cache: str | Path | None = None) -> Folder:
    """The folder at a path or an fsspec URL (s3://…, gs://…, memory://…). index: a file of it that says when the others changed."""
    return RemoteFolder(str(where), index, Path(cache or CACHE).expanduser()) if "://" in str(where) else LocalFolder(Path(where))


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def sizes(self) -> dict[str, int]:
        if not self.path.is_dir():
            return {}
        with os.scandir(self.path) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def file(self, name: str) -> Path:
        return self.path / name


class RemoteFolder:
    """Files are copied into `cache` when they are first asked for, and stay: the cache must have room for the whole set.

    Its place in the cache depends on the URL and on what `index` holds: data that was made anew is copied anew.
    """

    def __init__(self, url: str, index: str, cache: Path) -> None:
        from fsspec.core import url_to_fs

        self.name = url.rstrip("/")
        self.fs, self.root = self._try(url_to_fs, self.name)
        content = self._try(self.fs.cat_file, f"{self.root}/{index}")
        self.cache = cache / hashlib.sha256(self.name.encode() + b"\0" + content).hexdigest()[:16]

    def _try(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # every kind of storage has its own
            raise InputError(f"{self.name}: cannot be read ({type(error).__name__}: {str(error)[:300]})") from error

    def sizes(self) -> dict[str, int]:
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in self._try(lambda: self.fs.ls(self.root, detail=True))}

    def file(self, name: str) -> Path:
        path = self.cache / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several processes of a machine may want it at once: each copies it, the last name stands.
            beside = path.with_name(f".{name}.{uuid.uuid4().hex}.part")
            try:
                self._try(self.fs.get_file, f"{self.root}/{name}", str(beside))
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        return path
