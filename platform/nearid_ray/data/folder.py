"""Folders of files to import, on disk or S3: what lies in them, and their bytes.

The one place that lists and reads the files of a source. Names come sorted; hidden ones are passed over. On disk links
are followed inside the folder, and refused where they lead out of it.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from nearid_ray.data import s3
from nearid_ray.data.store import locate
from nearid_ray.errors import UsageError

Tree = dict[PurePosixPath, list[str]]
"""Folder (relative, the root as an empty path) -> sorted names of its files."""


class Folder:
    """A folder of files at a local path or `s3://bucket/prefix`; it is pickled to the workers that read from it."""

    def __init__(self, uri: str) -> None:
        self.location = locate(uri)
        self.uri = self.location.uri

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.uri,)

    def check(self, expected: str) -> None:
        """UsageError where there is no such folder; `expected` says what should be there."""
        if not self.location.is_local:
            s3.check_reachable()
        if not self.location.exists():
            raise UsageError(f"{self.uri} does not exist; expected {expected}")
        if self.location.is_local and not os.path.isdir(self.location.path):
            raise UsageError(f"{self.uri} is a file; expected {expected}")

    def tree(self, depth: int) -> Tree:
        """All files, at most `depth` folders below the root.

        Raises UsageError for names that cannot be printed and, on disk, for links that lead out of the folder.
        """
        found = self._on_disk(depth) if self.location.is_local else self._on_s3(depth)
        return dict(sorted(found))

    def read(self, file: str) -> bytes:
        """A file's bytes; `file` is relative to the folder. Raises OSError."""
        return self.location.child(file).read_bytes()

    def has(self, file: str) -> bool:
        """Whether there is such a file or folder."""
        return self.location.child(file).exists()

    def _on_disk(self, depth: int) -> Iterator[tuple[PurePosixPath, list[str]]]:
        root = Path(self.location.path)
        inside = root.resolve()
        pending = [PurePosixPath()]
        while pending:
            folder = pending.pop()
            files = []
            for entry in sorted(os.scandir(root / folder), key=lambda e: e.name):
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                self._check_name(entry.name)
                if entry.is_symlink() and not (root / path).resolve().is_relative_to(inside):
                    raise UsageError(f"{root / path} is a link that leads out of {root}; copy the files instead")
                if entry.is_symlink() and not (root / path).exists():
                    raise UsageError(f"{root / path} is a link to nothing; copy the file there, or remove the link")
                if entry.is_dir():
                    # A link to a folder above would be followed for ever.
                    pending += [path] if len(path.parts) <= depth else []
                elif entry.is_file():
                    files.append(entry.name)
            yield folder, files

    def _on_s3(self, depth: int) -> Iterator[tuple[PurePosixPath, list[str]]]:
        selector = pafs.FileSelector(self.location.path, recursive=True)
        with s3.in_words(self.uri):
            entries = self.location.filesystem.get_file_info(selector)
        found: Tree = {PurePosixPath(): []}
        for entry in entries:
            path = PurePosixPath(entry.path).relative_to(self.location.path)
            folder = path if entry.type == pafs.FileType.Directory else path.parent
            if len(folder.parts) > depth or any(part.startswith(".") for part in path.parts):
                continue
            self._check_name(path.name)
            found.setdefault(folder, [])
            if entry.type == pafs.FileType.File:
                found[folder].append(path.name)
        yield from ((folder, sorted(files)) for folder, files in found.items())

    def _check_name(self, name: str) -> None:
        if not name.isprintable():
            raise UsageError(f"{self.uri}: the name {name!r} cannot be printed; rename it")
