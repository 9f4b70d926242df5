"""Serves a viewer's page and its pictures to the browser of this machine.

It listens to 127.0.0.1 alone, and answers nobody who comes by another name (a foreign site whose name was made to point
here) or from another page. It reads no file for a request: there are three answers, and no path is looked up.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.viewer.looks import Look, Viewer
from stylegan_di.explore.viewer.page import page
from stylegan_di.images import to_picture

ADDRESS = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost")
LONGEST = 4096  # bytes of a request's body
SECONDS = 30  # after which a silent client is left


class ViewServer(ThreadingHTTPServer):
    """A server of one viewer; `url` is where its page is. Pictures are drawn one at a time.

    Args:
        port: 0 chooses a free one.

    Raises:
        UserError: if the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, viewer: Viewer, port: int) -> None:
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise UserError(f"--port={port}: {error.strerror}; choose another, or 0 for any free one") from None
        self.url = f"http://{ADDRESS}:{self.server_address[1]}/"
        self.viewer = viewer
        self.page = page(viewer.described(), engine="server").encode()
        self.drawing = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that left before its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def png(self, look: Look) -> bytes:
        buffer = io.BytesIO()
        to_picture(self.viewer.picture(look)).save(buffer, format="png")
        return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """GET / is the page; POST /picture and POST /latent answer the JSON of a `Look`."""

    server: ViewServer
    timeout = SECONDS

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self.path != "/":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is only the page /")
        self._answer(self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if not self._from_here():
            return
        answers: dict[str, tuple[Callable[[Look], bytes], str]] = {
            "/picture": (self.server.png, "image/png"),
            "/latent": (self.server.viewer.latent, "application/octet-stream"),
        }
        if self.path not in answers:
            return self._refuse(HTTPStatus.NOT_FOUND, "there are only /picture and /latent")
        if self.headers.get_content_type() != "application/json":  # which no form of another page can send
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > LONGEST:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {LONGEST} bytes, and say how many")
        make, kind = answers[self.path]
        try:
            look = self.server.viewer.look(_object(self.rfile.read(int(length))))
            with self.server.drawing:
                body = make(look)
        except UserError as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # whatever a request that is not the page's makes of it
            return self._refuse(HTTPStatus.BAD_REQUEST, f"this is no request of the page ({type(error).__name__})")
        self._answer(body, kind)

    def _from_here(self) -> bool:
        """Whether the request came to a name of this machine, and from this page; else it is refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.partition(":")[0] not in OWN_NAMES:
            self._refuse(HTTPStatus.FORBIDDEN, f"come by {' or '.join(OWN_NAMES)}")
        elif origin is not None and origin != f"http://{host}":
            self._refuse(HTTPStatus.FORBIDDEN, "another page may not ask")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer(why.encode(errors="replace"), "text/plain; charset=utf-8", status)

    def _answer(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"), ("Referrer-Policy", "no-referrer"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a picture asked for is no news."""


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("send an object in JSON")
    return found
