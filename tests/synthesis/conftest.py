"""Tiny pipelines of every diffusers class, each built once."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_weights("sdxl")`: the folder of the tiny pipeline of a kind. Tests must not change it; copy it first."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        from tests.synthesis.tiny import pipelines

        if kind not in folders:
            folders[kind] = pipelines.save(kind, tmp_path_factory.mktemp(kind))
        return folders[kind]

    return folder
