"""Qwen-Image's three parts on a hub, by the real client against a hub on this machine: pinned, fetched, refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from nearid_ray.synthesis.engines.qwen_image import LORA_FILE
from tests.synthesis.tiny.hub_server import Repository, serve
from tests.synthesis.tiny.qwen import publish

SCRIPT = """
import json, sys
from pathlib import Path
from nearid_ray.errors import UsageError
from nearid_ray.synthesis import catalog
from tests.synthesis.tiny.engines import row

cache = Path(sys.argv[1])

def recipe(base, net, lora, *more):
    said = {"weights": base, "options.controlnet": net, "options.lora": lora, "resolution_px": 64, "steps": 2}
    options = [*(f"{name}={value}" for name, value in said.items()), *more]
    return catalog.choose(["qwen-image-512"], [f"qwen-image-512.{option}" for option in options])

def said(*places):
    try:
        [(pinned, engine)] = recipe(*places).checked()
    except UsageError as error:
        return str(error)
    early = sorted(file.name for file in cache.rglob("*.safetensors"))
    engine.load()
    late = sorted({file.name for file in cache.rglob("*") if file.is_file()})
    again = pinned.make()
    return {
        "settings": engine.settings, "early": early, "late": late, "options": pinned.options,
        "picture": int(engine.generate([row()])[0].image_HW3.sum()), "again": again.config.options,
    }

print(json.dumps({
    "hub": said("own/base", "own/net", "own/lora"),
    "here": said(*sys.argv[2:5]),
    "file": said("own/base", "own/net", "own/lora", "options.lora_file=other.safetensors"),
    "gated": said("own/base", "own/gated", "own/lora"),
    "nothing": said("own/base", "own/net", "own/nothing"),
}))
"""


@pytest.fixture(scope="module")
def answers(tiny_weights, tmp_path_factory):
    """What loading said for each choice of parts, in a process of its own: the client reads its address once."""
    published = publish(tiny_weights("qwen-image"), tmp_path_factory.mktemp("published"))
    home, lora = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("lora")
    shutil.copy(published.lora, lora / LORA_FILE)
    (published.controlnet / "example.png").write_bytes(b"not needed")
    repositories = {
        "own/base": Repository(published.base, "a" * 40),
        "own/net": Repository(published.controlnet, "b" * 40),
        "own/lora": Repository(lora, "d" * 40),
        "own/gated": Repository(published.controlnet, gated=True),
    }
    with serve(repositories) as address:
        at = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        paths = os.pathsep.join(path for path in sys.path if path)
        places = [str(home), *(str(place) for place in (published.base, published.controlnet, lora))]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *places],
            env=os.environ | at | {"PYTHONPATH": paths, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_parts_on_the_hub_paint_what_the_same_files_here_paint(answers):
    assert answers["hub"]["picture"] == answers["here"]["picture"]


def test_each_part_is_pinned_to_its_own_commit_in_the_settings_and_in_the_plan(answers):
    options = answers["hub"]["settings"]["options"]
    assert (options["controlnet_revision"], options["lora_revision"]) == ("b" * 40, "d" * 40)
    assert answers["hub"]["again"] == options
    assert f"revision={'a' * 40}" in answers["hub"]["options"]


def test_checking_fetches_no_weights_and_loading_only_those_that_are_needed(answers):
    assert answers["hub"]["early"] == []
    assert LORA_FILE in answers["hub"]["late"] and "example.png" not in answers["hub"]["late"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("file", ["options.lora own/lora is no path here, and its other.safetensors cannot be had from the hub"]),
        ("gated", ["options.controlnet own/gated", "its owner asks for terms to be accepted", "hf auth login"]),
        ("nothing", ["options.lora own/nothing", "the hub has no such model, or it is private"]),
    ],
)
def test_what_the_hub_refuses_is_said_before_a_worker_starts(answers, case, expected):
    for words in expected:
        assert words in answers[case]
    assert answers[case].startswith("qwen-image-512: options.")
