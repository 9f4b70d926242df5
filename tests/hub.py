"""A server that answers as the Hugging Face hub does, of repositories of models in memory."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_api

COMMIT = "0" * 40
Files = dict[str, bytes]  # by path


class Hub:
    """`repos` are by owner/name, `private` those that are; `given` are the paths of the files that were fetched.

    `tokens` are those that came with what was sent.
    """

    def __init__(self) -> None:
        self.address = ""
        self.repos: dict[str, Files] = {}
        self.given: list[str] = []
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.large_tokens: set[str] = set()  # that came with requests for these
        self.odd: dict[str, tuple[int, dict[str, str]]] = {}  # by path of a file: the status and headers of answers

    def use(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        """Makes huggingface_hub of this process ask here, with an empty cache."""
        patch.setattr(constants, "ENDPOINT", self.address)
        template = self.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(hf_api.api, "endpoint", self.address)
        patch.setenv("HF_TOKEN", "hf_of_a_test")

    def get(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?", path):
            files = self.repos.get(found[1])
            if files is None:
                return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
            info: Any = {"id": found[1], "sha": COMMIT, "private": False, "tags": []}
            info["siblings"] = [{"rfilename": name} for name in files]
            if found[2] == "tree":
                info = [{"type": "file", "path": n, "size": len(data), "oid": n} for n, data in files.items()]
            return 200, json.dumps(info).encode(), {"Content-Type": "application/json"}
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            if found[1] not in self.repos:
                return 404, b"", {"X-Error-Code": "RepoNotFound"}
            data = self.repos[found[1]].get(found[2])
            if data is None:
                return 404, b"", {"X-Error-Code": "EntryNotFound"}
            self.given.append(found[2])
            status, odd = self.odd.get(found[2], (200, {}))
            return status, data, {"ETag": f'"{abs(hash(data))}"', "X-Repo-Commit": COMMIT} | odd
        if path.startswith("/large/"):
            return 200, self.large[path.removeprefix("/large/")], {}
        return 404, b"", {}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.repos:
                return 409, {"error": "exists"}
            self.repos[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            return 200, {"url": f"{self.address}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [
                {"path": each["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in json.loads(body)["files"]
            ]  # fmt: skip
            return 200, {"files": files}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.address}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            self._commit(self.repos[found[1]], [json.loads(line) for line in body.splitlines()])
            address = f"{self.address}/{found[1]}/commit/{COMMIT}"
            return 200, {"success": True, "commitUrl": address, "commitOid": COMMIT}
        return 404, {}

    def _commit(self, files: Files, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that listens on this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self) -> None:
            if self.path.startswith("/large/"):
                hub.large_tokens.add(self.headers.get("Authorization", ""))
            self.answer(*hub.get(self.path.partition("?")[0]))

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, value = hub.post(self.path.partition("?")[0], self.body())
            self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def do_PUT(self) -> None:
            hub.large[self.path.rpartition("/")[2]] = self.body()
            self.answer(200, b"", {})

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
