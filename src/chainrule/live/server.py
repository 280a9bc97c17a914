"""`chainrule lab`: one process that serves the page of one step on loopback, and answers its lab.

Only who has the token may ask: it is in the address of the page, and a page of another origin cannot read it. A request
must name this server as its host, so that no other name can be made to lead here. There is no CORS.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from chainrule.errors import RequestError
from chainrule.lab.rerun import Answer

HOST = "127.0.0.1"
LARGEST = 2**20  # bytes of a question
SLOWEST = 30.0  # seconds in which a request must have come
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TOKEN = "X-Chainrule-Token"


@contextmanager
def _named(port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"port {port} cannot be used: {error.strerror}. Leave --port out for any free one."
        ) from error


def check_port(port: int) -> None:
    """Raise RequestError where a port is taken: before a script runs for minutes, whose page is to be served there."""
    with _named(port):
        HTTPServer((HOST, port), BaseHTTPRequestHandler).server_close()


class LabServer(ThreadingHTTPServer):
    """Serves the page that `page(token)` gives, and answers by `answer`, one question at a time.

    Port 0 is any that is free. Raises RequestError where a port is taken.
    """

    daemon_threads = True
    timeout = 0.5  # seconds between two looks at whether it is idle

    def __init__(self, page: Callable[[str], str], answer: Answer, port: int = 0) -> None:
        with _named(port):
            super().__init__((HOST, port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.page = page(self.token).encode()
        self.answer = answer
        self.turn = threading.Lock()
        self.last = time.monotonic()  # when the last request was answered
        self.hosts = {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_address[1]}/?token={self.token}"

    def serve_until_idle(self, idle: float) -> None:
        """Serve until nothing was asked for so many seconds."""
        self.last = time.monotonic()
        while time.monotonic() - self.last < idle:
            self.handle_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: LabServer
    server_version, sys_version = "chainrule", ""
    timeout = SLOWEST

    def do_GET(self) -> None:
        """Give the page to who has the token."""
        url = urlsplit(self.path)
        if not self._is_ours():
            return
        if url.path == "/favicon.ico":
            self._give(HTTPStatus.NO_CONTENT, b"", "image/x-icon")
        elif url.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing at this address.")
        elif self._has_token(parse_qs(url.query).get("token", [""])[0]):
            self._give(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """Answer a question of the page."""
        if not self._is_ours() or not self._has_token(self.headers.get(TOKEN, "")):
            return
        if self.path != "/ask" or self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.BAD_REQUEST, "A question is JSON, posted to /ask.")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > LARGEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A question has up to {LARGEST:,} bytes.")
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST, "The question is no JSON.")
            return
        with self.server.turn:
            answer = self.server.answer(asked)
        self._give(HTTPStatus.OK, _json(answer), "application/json")

    def _is_ours(self) -> bool:
        """Whether a request is for this server by its own name, and from its own page where it comes from one."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in self.server.hosts or origin not in (None, f"http://{host}"):
            self._refuse(HTTPStatus.FORBIDDEN, "The request is not from this server's own page.")
            return False
        return True

    def _has_token(self, token: str) -> bool:
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(
                HTTPStatus.FORBIDDEN, "The token is missing or wrong: open the address that the command printed."
            )
            return False
        self.server.last = time.monotonic()
        return True

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self.close_connection = True  # what was sent is not read
        self._give(status, _json({"error": sentence}), "application/json")

    def _give(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the terminal is the user's."""


def _json(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, allow_nan=False).encode()
