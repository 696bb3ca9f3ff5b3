"""Copies of remote files stay within their limit, and none that is in use is ever removed."""

import subprocess
import sys
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from nearid_ray.data.store import Location, locate
from nearid_ray.embedding.copies import LIMIT_VARIABLE, Copies, default_limit_bytes
from nearid_ray.errors import UsageError

SIZE = 1000


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Location, pafs.FileInfo]]:
    """Five files of one size."""
    (tmp_path / "remote").mkdir()
    found = []
    for number in range(5):
        path = tmp_path / "remote" / f"{number}.arrow"
        path.write_bytes(bytes([number]) * SIZE)
        place = locate(path)
        found.append((place, place.filesystem.get_file_info(place.path)))
    return found


def kept(copies: Copies) -> list[int]:
    """Which files have a copy, by its name: reading one would count as using it."""
    return sorted(int(path.stem[-1]) for path in copies.folder.glob("*.arrow"))


def test_a_copy_is_made_once_and_holds_what_the_file_holds(
    files: list[tuple[Location, pafs.FileInfo]], tmp_path: Path
) -> None:
    first, second = (Copies(tmp_path / "copies", 10 * SIZE) for _ in range(2))
    path = first.fetch(*files[3])
    assert path is not None and path.read_bytes() == bytes([3]) * SIZE
    made = path.stat().st_ino
    assert first.fetch(*files[3]) == path == second.fetch(*files[3]) and path.stat().st_ino == made


def test_a_file_that_changed_is_copied_again(files: list[tuple[Location, pafs.FileInfo]], tmp_path: Path) -> None:
    copies, (place, found) = Copies(tmp_path / "copies", 10 * SIZE), files[0]
    old = copies.fetch(place, found)
    Path(place.path).write_bytes(b"x" * (SIZE + 1))
    new = copies.fetch(place, place.filesystem.get_file_info(place.path))
    assert old is not None and new is not None and old != new and new.read_bytes() == b"x" * (SIZE + 1)


def test_the_least_recently_used_make_room(files: list[tuple[Location, pafs.FileInfo]], tmp_path: Path) -> None:
    for number in (0, 1, 2, 0):
        copies = Copies(tmp_path / "copies", 3 * SIZE)
        assert copies.fetch(*files[number])
        copies.close()
    assert copies.fetch(*files[3]) and kept(copies) == [0, 2, 3]
    assert copies.fetch(*files[4]) and kept(copies) == [0, 3, 4]


def test_none_in_use_is_removed_even_where_another_gets_no_room(
    files: list[tuple[Location, pafs.FileInfo]], tmp_path: Path
) -> None:
    mine, other = (Copies(tmp_path / "copies", 2 * SIZE) for _ in range(2))
    assert mine.fetch(*files[0]) and mine.fetch(*files[1])
    assert other.fetch(*files[2]) is None and kept(mine) == [0, 1]
    assert other.fetch(*files[1]), "what is there is shared"
    mine.close()
    assert other.fetch(*files[2]) and kept(other) == [1, 2]
    assert other.fetch(*files[3]) is None


def test_what_a_killed_process_held_or_was_copying_is_free_again(
    files: list[tuple[Location, pafs.FileInfo]], tmp_path: Path
) -> None:
    holding = f"""
import os, signal
from nearid_ray.data.store import locate
from nearid_ray.embedding.copies import Copies
place = locate({files[0][0].path!r})
copies = Copies({str(tmp_path / "copies")!r}, {SIZE})
assert copies.fetch(place, place.filesystem.get_file_info(place.path))
open({str(tmp_path / "copies" / "half.part")!r}, "wb").write(b"x" * {SIZE})
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", holding], check=False)
    copies = Copies(tmp_path / "copies", SIZE)
    assert ended.returncode == -9 and kept(copies) == [0]
    assert copies.fetch(*files[1]) and kept(copies) == [1] and not list(copies.folder.glob("*.part"))


def test_the_limit_is_a_number_of_gib_or_a_share_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "1.5")
    assert default_limit_bytes(tmp_path) == 3 * 2**29
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(UsageError, match="NEARID_COPIES_GIB is 'much'; expected a number of GiB"):
        default_limit_bytes(tmp_path)
    monkeypatch.delenv(LIMIT_VARIABLE)
    assert default_limit_bytes(tmp_path) > 0
