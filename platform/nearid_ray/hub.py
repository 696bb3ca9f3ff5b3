"""Models from folders and from the Hugging Face hub: which of the two a name means, and what went wrong, in words."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nearid_ray.errors import UsageError

DECIDING_FILES = (".json", ".txt", ".model", ".safetensors", ".bin", ".py")
"""Endings of the files of a model that decide what it computes."""

_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 64 << 10


def is_folder(spec: str, what: str, expected: str) -> bool:
    """Whether `spec` is a folder here; False for what reads as a hub id (owner/name).

    Raises:
        UsageError: it is a file, or a path at which there is nothing; `what` names the setting, `expected` the files.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return True
    if folder.exists():
        raise UsageError(f"{what} {spec} is a file; expected a folder with {expected}, or a hub id")
    if spec.startswith(("/", ".", "~")) or spec.count("/") != 1 or not spec.strip("/ "):
        raise UsageError(
            f"{what} {spec!r}: there is no such folder; expected one with {expected}, or a hub id owner/name"
        )
    return False


def commit(spec: str, revision: str, file_name: str, what: str) -> str:
    """The hub's commit of a model, found by fetching one of its small files.

    Raises:
        UsageError: it cannot be had (no such model, gated, offline ...), in words; `what` names the setting.
    """
    from huggingface_hub import hf_hub_download

    try:
        # The hub's cache keeps files by commit: .../snapshots/COMMIT/FILE
        file = Path(hf_hub_download(spec, file_name, revision=revision or None))
    except Exception as error:  # its client raises errors of its own, of its transport and of the file system
        at = f" at revision {revision}" if revision else ""
        raise UsageError(
            f"{what} {spec} is no folder here, and its {file_name} cannot be had from the hub{at}: "
            f"{in_words(error, spec)}"
        ) from error
    return file.parents[len(Path(file_name).parts) - 1].name


def fingerprint(folder: Path, endings: Collection[str] = DECIDING_FILES) -> str:
    """A name, 16 hexadecimal digits, of the files in a folder that decide what a model computes, wherever it lies.

    Of large files blocks all over them are read: weights that were trained on differ everywhere, and reading gigabytes
    to name them would take longer than many runs.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        hidden = any(
            part.startswith(".") for part in file.relative_to(folder).parts
        )  # what a download keeps for itself
        if file.suffix in endings and not hidden and file.is_file():
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
            _add_sample(digest, file)
    return digest.hexdigest()[:16]


def read_settings(file: Path, what: str) -> dict[str, Any]:
    """The JSON object of a model's file; `what` names it in messages.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} cannot be read ({error})") from error
    if not isinstance(said, dict):
        raise UsageError(f"{what} holds no settings; expected a JSON object")
    return said


def _add_sample(digest: "hashlib._Hash", file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        for block in range(_SAMPLED_BLOCKS):
            stream.seek(size * block // _SAMPLED_BLOCKS)
            digest.update(stream.read(_BLOCK_BYTES))


def in_words(error: BaseException, spec: str) -> str:
    """Why a model could not be had from the hub or a folder, and what to do about it."""
    from huggingface_hub import errors

    chain = list(causes(error))
    kinds = (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError,
             errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ImportError)  # fmt: skip
    kind = next((known for known in kinds if any(isinstance(one, known) for one in chain)), None)
    if kind is errors.GatedRepoError:
        return (
            f"its owner asks for terms to be accepted. Accept them at https://huggingface.co/{spec}, sign in with "
            "`hf auth login` (or set HF_TOKEN) on every machine, then run the same command again."
        )
    if kind is errors.RepositoryNotFoundError:
        return "the hub has no such model, or it is private. Check the name, or sign in with `hf auth login`."
    if kind is errors.RevisionNotFoundError:
        return "the model has no such revision. Give a branch, tag or commit of it."
    if kind in (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return (
            "it is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set). Where there is a "
            f"connection run `hf download {spec} --local-dir FOLDER` and give that folder."
        )
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if kind is ImportError:
        return f"a package that it needs is not installed here: {first_line}"
    if "meta tensor" in str(error):
        return f"its code does not work with this version of transformers; give a newer revision of it. ({first_line})"
    return first_line


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the bars and notices of loading; what matters in them is checked and said by us."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
