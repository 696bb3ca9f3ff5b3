#!/usr/bin/env python3
"""Write requirements.lock: the pinned packages with the hashes of their published files, for `pip --require-hashes`.

python platform/deploy/lock.py INDEX_URL        (the simple index that your pip uses)

Kept are the files that a Linux cluster can install: wheels for CPython 3.11 to 3.13 on x86-64 and 64-bit Arm, and
source archives where there is no such wheel. torch is left out: its build depends on the CUDA of the machines.
"""

import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("requirements.lock")
_DEVELOPMENT = ("mypy", "pytest", "ruff", "types-", "execnet", "iniconfig", "pluggy", "ast_serialize", "librt")
_PYTHON = re.compile(r"-(py3|py2\.py3|cp3(11|12|13)|cp3\d+-abi3)[-.]")
_PLATFORM = re.compile(r"-any\.whl$|(linux|manylinux)[0-9_.a-z]*_(x86_64|aarch64)")


class _Links(HTMLParser):
    """File names of a project's page with their sha256."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = urlsplit(dict(attrs).get("href") or "")
        if tag == "a" and address.fragment.startswith("sha256="):
            name = unquote(address.path.rsplit("/", 1)[-1])
            self.hashes[name] = address.fragment.removeprefix("sha256=")


def pins() -> dict[str, str]:
    """{package: version} of constraints.txt, without torch and what only tests need."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {name: v for name, v in found.items() if name != "torch" and not name.startswith(_DEVELOPMENT)}


def hashes(index: str, name: str, version: str) -> list[str]:
    """Hashes of the version's files that a Linux cluster can install."""
    project = re.sub(r"[-_.]+", "-", name).lower()
    with urllib.request.urlopen(f"{index.rstrip('/')}/{project}/", timeout=60) as answer:
        links = _Links()
        links.feed(answer.read().decode())
    own = re.compile(rf"^{re.sub('[-_.]+', '[-_.]+', re.escape(project).replace(chr(92), ''))}-{re.escape(version)}"
                     r"(-.*\.whl|\.tar\.gz|\.zip)$", re.IGNORECASE)  # fmt: skip
    files = {file: digest for file, digest in links.hashes.items() if own.match(file)}
    wheels = [digest for file, digest in files.items() if _PYTHON.search(file) and _PLATFORM.search(file)]
    archives = [digest for file, digest in files.items() if not file.endswith(".whl")]
    return sorted(wheels or archives)


def main(index: str) -> None:
    """Write the lock file; packages without any file are named and end it."""
    wanted = pins()
    with ThreadPoolExecutor(16) as threads:
        found = dict(zip(wanted, threads.map(lambda item: hashes(index, *item), wanted.items()), strict=True))
    if missing := [name for name, digests in found.items() if not digests]:
        sys.exit(f"no files with hashes for {', '.join(missing)}")
    lines = ["# Written by platform/deploy/lock.py from constraints.txt. torch is installed first (see README).\n"]
    for name, version in wanted.items():
        lines.append(f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{d}" for d in found[name]) + "\n")
    LOCK.write_text("".join(lines))
    print(f"{LOCK}: {len(wanted)} packages, {sum(map(len, found.values()))} hashes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
