"""Stands between a client and an S3 server, and does something at chosen requests."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """What a server says instead of doing its work."""

    status: int
    code: str = "Planted"


Fault = Callable[[str, str], Answer | None]
"""What is answered to a request (method, path); None passes it on."""


@contextmanager
def faulty_proxy(server_port: int, fault: Fault, host: str = "127.0.0.1") -> Iterator[str]:
    """Endpoint of a proxy on `host` that answers some requests itself and passes on all others."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            body = self._body()
            if planted := fault(self.command, self.path):
                error = f"<Error><Code>{planted.code}</Code><Message>planted</Message></Error>"
                said = b"" if planted.status == 200 else error.encode()
                self._answer(planted.status, [("Content-Type", "application/xml")], said)
                return
            onward = http.client.HTTPConnection("127.0.0.1", server_port)
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Host as it was, which the signature covers
                if name.lower() != "expect":
                    onward.putheader(name, value)
            onward.endheaders(body)
            reply = onward.getresponse()
            self._answer(reply.status, reply.getheaders(), reply.read())
            onward.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

        def _body(self) -> bytes:
            """As it came: with the chunks' lengths where it is chunked."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while length := int((line := self.rfile.readline()).partition(b";")[0], 16):
                parts += [line, self.rfile.read(length + 2)]
            parts.append(line)
            while parts[-1] != b"\r\n":  # what follows the chunks
                parts.append(self.rfile.readline())
            return b"".join(parts)

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                    self.send_header(name, value)
            length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    proxy = ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
