"""Weights on a hub, by the real client against a hub on this machine: pinned by commit, loaded, refused in words."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.synthesis.tiny.hub_server import Repository, serve

SCRIPT = """
import json, sys
from dataclasses import replace
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines.sdxl import SETTINGS, SdxlEngine
from tests.synthesis.tiny.engines import row

small = replace(SETTINGS[0], resolution_px=64, steps=2, dtype="float32")

def said(**changes):
    made = SdxlEngine(replace(small, **changes))
    try:
        made.check()
        made.load()
    except UsageError as error:
        return str(error)
    return made.revision, int(made.generate([row()])[0].image_HW3.sum())

folder = sys.argv[1]
print(json.dumps({
    "hub": said(weights="own/sdxl"),
    "folder": said(weights=folder),
    "gated": said(weights="own/gated"),
    "unknown": said(weights="own/nothing"),
    "revision": said(weights="own/sdxl", revision="v9"),
    "part": said(weights="own/part"),
}))
"""


@pytest.fixture(scope="module")
def answers(tiny_weights, tmp_path_factory):
    """What loading said for each repository, in a process of its own: the client reads its address once."""
    folder, home = tiny_weights("sdxl"), tmp_path_factory.mktemp("home")
    part = shutil.copytree(folder, tmp_path_factory.mktemp("part") / "weights")
    (part / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    repositories = {
        "own/sdxl": Repository(folder),
        "own/gated": Repository(folder, gated=True),
        "own/part": Repository(part),
    }
    with serve(repositories) as address:
        at = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        paths = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder)],
            env=os.environ | at | {"PYTHONPATH": paths, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_weights_on_the_hub_are_known_by_their_commit_and_paint_what_the_same_folder_paints(answers):
    assert answers["hub"][0] == "own/sdxl@" + "c" * 40
    assert answers["hub"][1] == answers["folder"][1]


def test_neither_the_hubs_client_nor_the_libraries_write_to_the_terminal(answers):
    assert answers["stderr"] == ""


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("gated", ["own/gated", "its owner asks for terms to be accepted", "hf auth login"]),
        ("unknown", ["own/nothing", "the hub has no such model, or it is private"]),
        ("revision", ["own/sdxl", "at revision v9", "no such revision. Give a branch, tag or commit"]),
        ("part", ["unet/diffusion_pytorch_model.safetensors is missing"]),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(answers, case, expected):
    for words in expected:
        assert words in answers[case]
    assert answers[case].startswith("sdxl-512: weights ")
