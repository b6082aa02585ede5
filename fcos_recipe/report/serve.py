"""Serve the report of a running training, on the loopback interface only."""

import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fcos_recipe.errors import UserError, printable

REFRESH = 5  #: seconds


class Server(ThreadingHTTPServer):
    """Answers `/` with a page and nothing else.

    Only 127.0.0.1 and localhost are accepted as Host, which prevents DNS rebinding: a foreign name
    that was made to point to this machine gets no page.

    Args:
        port: port number; 0 chooses a free one.
        make: `make(refresh)` returns the page; called again when a file of the run has changed.
        folder: run directory.

    Raises:
        UserError: the port can't be used.
    """

    daemon_threads = True

    def __init__(self, port: int, make: Callable[[int | None], str], folder: Path):
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--serve {port}: {why}; choose another port, or 0 for any") from None
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self._make, self._folder = make, folder
        self._lock = threading.Lock()
        self._made: dict[float | None, tuple[list, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def page(self, refresh: int | None) -> bytes:
        """The page; made again only if a file of the run has changed."""
        with self._lock:
            state: list[tuple[int, int] | None] = []
            for name in ("metrics.jsonl", "eval.json", "analysis.json", "facts.json",
                         "environment.json", "model_final.pdparams"):  # fmt: skip
                try:
                    found = (self._folder / name).stat()
                    state.append((found.st_size, found.st_mtime_ns))
                except OSError:
                    state.append(None)
            if self._made.get(refresh, (None,))[0] != state:
                self._made[refresh] = state, self._make(refresh).encode()
            return self._made[refresh][1]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser that disconnected
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "fcos", ""
    timeout = 20  # seconds until an idle connection is closed

    def do_GET(self):
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            return self._answer(403, b"use the address 127.0.0.1 or localhost\n", "text/plain")
        if self.path not in ("/", "/?still"):
            return self._answer(404, b"this server only has the page /\n", "text/plain")
        try:
            content = self.server.page(REFRESH if self.path == "/" else None)
        except UserError as error:  # for example, the directory was removed
            return self._answer(503, f"{printable(str(error))}\n".encode(), "text/plain")
        self._answer(200, content, "text/html")

    do_HEAD = do_GET

    def _answer(self, code: int, content: bytes, kind: str) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content)),
            "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass
