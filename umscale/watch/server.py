"""One page over HTTP on the loopback interface: read-only, and nothing on it comes from anywhere else.

Everything that a store says arrives as JSON and is put into the page as text, so a hostile label stays a label; a
policy forbids the page every script but its own. Requests whose ``Host`` is not this machine's are refused: a page
elsewhere whose name was made to resolve to 127.0.0.1 gets nothing.
"""

import json
import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from umscale.errors import UserError
from umscale.watch.state import State

ADDRESS = "127.0.0.1"
FRESH_SECONDS = 1.0
"""For so long a state that was read is given out again."""


class Server(ThreadingHTTPServer):
    """Serves the page of a store on ``port`` of the loopback interface; 0 takes a free one.

    Raises:
        UserError: the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, state: State, port: int = 0) -> None:
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} cannot be listened on ({error}); --port 0 takes a free one"
            ) from None
        self.state = state
        self.page = files("umscale.watch").joinpath("page.html").read_text(encoding="utf-8")
        self._lock = threading.Lock()
        self._read: tuple[float, bytes] | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def current(self) -> bytes:
        """Return the state as JSON; one thread reads it at a time."""
        with self._lock:
            now = time.monotonic()
            if self._read is None or now - self._read[0] > FRESH_SECONDS:
                try:
                    found: dict[str, Any] = self.state.read()
                except (UserError, OSError) as error:
                    found = {"error": " ".join(str(error).split())}
                self._read = (time.monotonic(), json.dumps(found, allow_nan=False).encode())
            return self._read[1]


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the page and its data; nothing else is there."""

    server: Server
    server_version = "umscale"
    sys_version = ""
    timeout = 20

    def do_GET(self) -> None:
        """Send the page or its data."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send their headers."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            content = self.server.page.replace("NONCE", nonce).encode()
            self._send(content, "text/html; charset=utf-8", body, nonce)
        elif self.path == "/state.json":
            self._send(self.server.current(), "application/json", body)
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _send(self, content: bytes, kind: str, body: bool, nonce: str = "") -> None:
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        policy = (
            f"default-src 'none'; script-src {own}; style-src {own}; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus) -> None:
        content = f"{status.value} {status.phrase}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line on a terminal."""
