"""A hub on this machine: serves folders as the Hugging Face hub serves repositories, as far as its client asks.

A revision is known by its name or commit. A repository can be gated: its files are then refused as the hub does it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Repository:
    """A folder and what the hub says of it."""

    folder: Path
    commit: str = "c" * 40
    gated: bool = False

    def files(self) -> list[str]:
        return sorted(f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if f.is_file())


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[str]:
    """The address of a hub with these repositories (owner/name)."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *args: object) -> None:
            """Quiet."""

        def _answer(self, with_body: bool) -> None:
            steps = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = steps[:2] == ["api", "models"]
            name = "/".join(steps[2:4] if is_api else steps[:2])
            repository = repositories.get(name)
            if repository is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
            elif is_api:
                self._send(200, _about(name, repository, tree="tree" in steps), {}, with_body)
            elif repository.gated:
                said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
                self._send(403, b"", said, with_body)
            elif steps[3] not in ("main", repository.commit):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
            elif "/".join(steps[4:]) not in repository.files():
                said = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit}
                self._send(404, b"", said, with_body)
            else:
                data = (repository.folder / "/".join(steps[4:])).read_bytes()
                known = {"X-Repo-Commit": repository.commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
                self._send(200, data, known, with_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _about(name: str, repository: Repository, *, tree: bool) -> bytes:
    if tree:
        listing = [
            {"type": "file", "path": file, "oid": "0" * 40, "size": (repository.folder / file).stat().st_size}
            for file in repository.files()
        ]
        return json.dumps(listing).encode()
    siblings = [{"rfilename": file} for file in repository.files()]
    return json.dumps({"id": name, "sha": repository.commit, "siblings": siblings}).encode()
