"""tools/view.py without a browser: what it draws, what its server answers and refuses, and what the command refuses."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from stylegan_di.commands import main, view
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.latents import mix_styles
from stylegan_di.explore.opening import open_gan, open_generator
from stylegan_di.explore.viewer.export import ORT_FILES
from stylegan_di.explore.viewer.looks import Look, Viewer
from stylegan_di.explore.viewer.server import LONGEST, ViewServer
from stylegan_di.images import to_uint8
from tests.test_generate import EDM_COND, SG2_COND, make, one_step  # noqa: F401
from tests.tiny import r3gan_networks, save_gan


@pytest.fixture(scope="module")
def viewer() -> Viewer:
    return Viewer([SG2_COND])


@pytest.fixture(scope="module")
def server(viewer: Viewer) -> Iterator[ViewServer]:
    with ViewServer(viewer, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# What is drawn.


@pytest.mark.parametrize(
    ("look", "options"),
    [
        (Look(seed=3), []),
        (Look(seed=4294967295, class_index=7, trunc=0.6), ["--class=7", "--trunc=0.6"]),
        (Look(seed=5, noise_mode="random"), ["--noise-mode=random"]),
        (Look(seed=5, noise_mode="none", second=9, amount=0.5), ["--noise-mode=none"]),  # no style is taken
    ],
)
def test_a_picture_is_that_of_generate(look: Look, options: list[str], viewer: Viewer, tmp_path: Path) -> None:
    (expected,) = make(tmp_path, SG2_COND, f"--seeds={look.seed}", *options).values()
    np.testing.assert_array_equal(viewer.picture(look).permute(1, 2, 0).numpy(), expected)


def test_between_two_seeds_some_styles_go_part_of_the_way(viewer: Viewer) -> None:
    gan = open_gan(SG2_COND)
    first, second = gan.mapped([3], class_index=2), gan.mapped([4], class_index=2)
    half = (first + second) / 2
    half[:, 3:] = first[:, 3:]
    picture = viewer.picture(Look(seed=3, class_index=2, second=4, amount=0.5, styles=(0, 1, 2)))
    assert int((picture.int() - gan.uint8_of_ws(half, [3])[0].int()).abs().max()) <= 1


def test_whole_styles_of_the_second_seed_are_a_mixture(viewer: Viewer) -> None:
    gan = open_gan(SG2_COND)
    mixed = mix_styles(gan.mapped([3]), gan.mapped([4]), [1, 2])[0]
    picture = viewer.picture(Look(seed=3, second=4, amount=1, styles=(1, 2)))
    torch.testing.assert_close(picture, gan.uint8_of_ws(mixed, [3])[0], rtol=0, atol=0)


def test_a_saved_latent_is_drawn_again_by_generate(viewer: Viewer, tmp_path: Path) -> None:
    look = Look(seed=3, second=4, amount=0.3, styles=(0, 5))
    (tmp_path / "w.npz").write_bytes(viewer.latent(look))
    (again,) = make(tmp_path / "out", SG2_COND, f"--projected-w={tmp_path / 'w.npz'}").values()
    np.testing.assert_array_equal(viewer.picture(look).permute(1, 2, 0).numpy(), again)


def test_networks_without_styles_are_shown_by_seed(one_step: str, tmp_path: Path) -> None:  # noqa: F811
    for name in (one_step, str(save_gan(tmp_path / "r3gan.pkl", r3gan_networks))):
        viewer = Viewer([name])
        described = viewer.described()
        assert (described["styles"], described["trunc"], described["noise"]) == (0, False, [])
        expected = to_uint8(open_generator(name).draw([8], class_index=1))[0]
        torch.testing.assert_close(viewer.picture(Look(seed=8, class_index=1)), expected, rtol=0, atol=0)
        with pytest.raises(UserError, match="has no w; its latent is the seed's"):
            viewer.latent(Look())


def test_a_teacher_beside_its_student_at_the_same_latent(one_step: str) -> None:  # noqa: F811
    described = Viewer([EDM_COND, one_step]).described()
    assert [network["name"] for network in described["networks"]] == ["edm-cond.pkl", "student.pkl"]


def test_networks_of_other_latents_are_no_pair() -> None:
    with pytest.raises(UserError, match=r"A and B do not match: shape of z \[32\] against \[3, 16, 16\]"):
        Viewer([SG2_COND, EDM_COND])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1), ("seed", 2**32), ("seed", 1.0), ("seed", True), ("seed", "1"), ("class_index", 10),
        ("trunc", "1"), ("trunc", float("nan")), ("trunc", 1e9), ("noise_mode", "loud"), ("noise_mode", ["const"]),
        ("second", None), ("amount", 1.5), ("styles", [6]), ("styles", "0"), ("styles", [[0]]), ("network", 1),
        ("colour", 1),
    ],
)  # fmt: skip
def test_what_no_page_asks_is_refused(name: str, value: Any, viewer: Viewer) -> None:
    with pytest.raises(UserError, match=f"^{name}=.* is not accepted for these networks"):
        viewer.look({name: value})


# The server.


def answer(
    server: ViewServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Sends a request with the given headers (Content_Type: ...) and returns status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        if body is not None:
            headers = {"Content_Type": "application/json", "Content_Length": str(len(body))} | headers
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def test_the_server_gives_its_page_and_pictures(server: ViewServer, viewer: Viewer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, headers, body = answer(server, "GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'"name": "sg2-cond.pkl"' in body
    assert b"{{" not in body
    asked = {"seed": 5, "class_index": None, "trunc": 0.5, "styles": [0, 1], "amount": 1, "second": 6}
    status, headers, body = answer(server, "POST", "/picture", json.dumps(asked).encode())
    assert (status, headers["Content-Type"]) == (200, "image/png")
    expected = viewer.picture(Look(seed=5, trunc=0.5, styles=(0, 1), amount=1, second=6))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), expected.permute(1, 2, 0).numpy())
    status, _, body = answer(server, "POST", "/latent", b'{"seed": 5}', Origin=server.url.rstrip("/"))
    assert (status, body) == (200, viewer.latent(Look(seed=5)))


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {"Host": "evil.example"}, 403),
        ("GET", "/", None, {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("GET", "/", None, {"Host": ""}, 403),
        ("POST", "/picture", b"{}", {"Host": "evil.example"}, 403),
        ("POST", "/picture", b"{}", {"Origin": "http://evil.example"}, 403),
        ("POST", "/picture", b"{}", {"Origin": "null"}, 403),
        ("POST", "/picture", b"{}", {"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ("POST", "/picture", b"{}", {"Content_Type": "text/plain"}, 415),
        ("POST", "/picture", b" " * (LONGEST + 1), {}, 413),
        ("POST", "/picture", b"", {"Content_Length": "-1"}, 413),
        ("POST", "/picture", b"{", {}, 400),
        ("POST", "/picture", b"[]", {}, 400),
        ("POST", "/picture", b"\xff", {}, 400),
        ("POST", "/picture", b"[" * LONGEST, {}, 400),
        ("POST", "/picture", b'{"seed": -1}', {}, 400),
        ("POST", "/picture", b'{"trunc": 1' + b"0" * 400 + b"}", {}, 400),
        ("POST", "/picture", b'{"amount": 1' + b"0" * 400 + b"}", {}, 400),
        ("POST", "/picture", b'{"noise_mode": "\\ud800"}', {}, 400),
        ("POST", "/picture", b'{"\\ud800": 1}', {}, 400),
        ("POST", "/picture", b"", {"Content_Length": "9" * 5000}, 413),
        ("POST", "/", b"{}", {}, 404),
        ("GET", "/picture", None, {}, 404),
        ("GET", "/../../../../etc/passwd", None, {}, 404),
        ("GET", "//etc/passwd", None, {}, 404),
        ("GET", "/?file=/etc/passwd", None, {}, 404),
        ("PUT", "/", b"{}", {}, 501),
    ],
)
def test_others_are_refused(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, server: ViewServer
) -> None:
    assert answer(server, method, path, body, **headers)[0] == status


# The command.


def test_the_command_says_where_the_page_is_until_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def interrupted(server: ViewServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ViewServer, "serve_forever", interrupted)
    monkeypatch.setattr(view.webbrowser, "open", opened.append)
    result = CliRunner().invoke(main, ["view", SG2_COND, "--port=0", "--open", "--device=cpu"])
    assert result.exit_code == 0, result.output
    (url,) = opened
    assert result.output.strip() == f"{url} shows {SG2_COND}; Ctrl-C ends it"
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/", url)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(view.main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return result.output


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    page = f"--export={tmp_path / 'page.html'}"
    assert "--port is for the page that is served here" in refused(SG2_COND, page, "--port=1")
    assert "--open is for the page that is served here" in refused(SG2_COND, page, "--open")
    assert "--device is for the page that is served here" in refused(SG2_COND, page, "--device=cpu")
    assert f"--ort={tmp_path} is for --export; leave it out" in refused(SG2_COND, f"--ort={tmp_path}")


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port={port}: Address already in use; choose another" in refused(SG2_COND, f"--port={port}")


def test_a_page_cannot_hold_what_has_no_styles(tmp_path: Path) -> None:
    message = refused(EDM_COND, f"--export={tmp_path / 'page.html'}")
    assert "edm-cond.pkl is a diffusion teacher, and a page can hold StyleGAN2, StyleGAN3 and R3GAN networks" in message


def test_the_runtime_has_to_be_there(tmp_path: Path) -> None:
    message = refused(SG2_COND, f"--export={tmp_path / 'page'}", f"--ort={tmp_path}")
    assert f"--ort={tmp_path}: {ORT_FILES[0]} cannot be read (No such file or directory)" in message
    assert "npm install onnxruntime-web@" in message
    assert not (tmp_path / "page").exists()


def test_a_folder_cannot_be_a_page(tmp_path: Path) -> None:
    for name in ORT_FILES:
        (tmp_path / name).touch()
    (tmp_path / "page.html").mkdir()
    message = refused(SG2_COND, f"--export={tmp_path / 'page.html'}", f"--ort={tmp_path}")
    assert f"--export={tmp_path / 'page.html'} is a folder; give a file that ends in .html" in message
