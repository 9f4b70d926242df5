"""tools/view.py in headless Chromium: the pictures are those of generate.py, and people can use the page."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from stylegan_di.commands import view
from stylegan_di.explore.viewer import export
from stylegan_di.explore.viewer.export import ORT_FILES, ORT_FOLDER
from stylegan_di.explore.viewer.looks import Look, Viewer
from stylegan_di.explore.viewer.page import asset
from stylegan_di.explore.viewer.server import ViewServer
from stylegan_di.labels import LabelLaw
from stylegan_di.sampling.seeded import numpy_latents
from stylegan_di.snapshots.checkpoint import load_snapshot, save_snapshot
from stylegan_di.snapshots.onnx import to_onnx
from tests.browser import CHROMIUM, Browser, browser
from tests.test_generate import SG2_COND, make
from tests.tiny import gan_networks, r3gan_networks, save_gan

ORT = Path(__file__).resolve().parent.parent / ORT_FOLDER
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium (apt-get install chromium)")
WANTED = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
WANTED += [str(ORT / name) for name in ORT_FILES if not (ORT / name).exists()]
needs_export = pytest.mark.skipif(bool(WANTED), reason=f"export wants {', '.join(WANTED)}")

PIXELS = """[...document.querySelectorAll("figure canvas")].map((canvas) => [canvas.height, canvas.width,
    ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data])"""
FOCUS = """[...document.querySelectorAll("button, input, select")].filter((control) => control.checkVisibility())"""
#: addresses of looks, with the options of generate.py that draw the same
LOOKS = [
    ("#seed=5", ["--seeds=5"]),
    ("#seed=4294967295&class=7&trunc=0.6", ["--seeds=4294967295", "--class=7", "--trunc=0.6"]),
    ("#seed=77&trunc=1.3&noise=none", ["--seeds=77", "--trunc=1.3", "--noise-mode=none"]),
]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The golden GAN, and one that draws brighter pictures."""
    snapshot = load_snapshot(SG2_COND)
    after: Any = snapshot.networks["G_ema"]
    after.synthesis.b16.torgb.bias.add_(0.2)
    path = tmp_path_factory.mktemp("networks") / "brighter.pkl"
    save_snapshot(path, {"G_ema": after}, extras={}, metadata={})
    return [SG2_COND, str(path)]


@pytest.fixture(scope="module")
def viewer(networks: list[str]) -> Viewer:
    return Viewer(networks)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        page.resize(1200, 900)
        yield page


@pytest.fixture(scope="module")
def url(viewer: Viewer) -> Iterator[str]:
    with ViewServer(viewer, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


def shown(page: Browser) -> list[np.ndarray]:
    """The large pictures of the page [H,W,3], which are opaque."""
    pictures = [np.array(data).reshape(height, width, 4) for height, width, *data in page.run(PIXELS)]
    assert all((picture[:, :, 3] == 255).all() for picture in pictures)
    return [picture[:, :, :3] for picture in pictures]


def differences(page: Browser, expected: Sequence[np.ndarray]) -> list[int]:
    """The largest difference, in levels, of each picture."""
    return [int(np.abs(one - other).max()) for one, other in zip(shown(page), expected, strict=True)]


def of_look(viewer: Viewer, **look: Any) -> list[np.ndarray]:
    """What the viewer draws of a look, [H,W,3] of each network."""
    pictures = [viewer.picture(Look(network=index, **look)) for index in range(len(viewer.generators))]
    return [picture.permute(1, 2, 0).numpy().astype(int) for picture in pictures]


def of_generate(folder: Path, networks: list[str], options: list[str]) -> list[np.ndarray]:
    """What generate.py draws."""
    made = [make(folder / str(index), network, *options) for index, network in enumerate(networks)]
    return [image.astype(int) for images in made for image in images.values()]


def saved(page: Browser, button: str, folder: Path, name: str) -> Path:
    """The file that a button saves."""
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.run(f"[...document.querySelectorAll('button')].find((one) => one.ariaLabel === {json.dumps(button)}).click()")
    until = time.monotonic() + 30
    while not (folder / name).exists():
        assert time.monotonic() < until, f"{button}: {[path.name for path in folder.iterdir()]}"
        time.sleep(0.02)
    return folder / name


def check_page(page: Browser, url: str, networks: list[str], viewer: Viewer, folder: Path, *, most: int) -> None:
    """Pictures and saved latents of a page are those of generate.py, up to `most` levels."""
    for place, options in LOOKS:
        page.open(url + place)
        assert max(differences(page, of_generate(folder / place, networks, options))) <= most
    page.open(url + "#seed=3&second=8&amount=0.4&styles=0.2.5&class=1")
    look: dict[str, Any] = {"seed": 3, "second": 8, "amount": 0.4, "styles": (0, 2, 5), "class_index": 1}
    assert max(differences(page, of_look(viewer, **look))) <= most
    latent = saved(page, "Save latent after", folder, "after-brighter-seed0003.npz")
    (again,) = make(folder / "again", networks[1], f"--projected-w={latent}").values()
    assert np.abs(again.astype(int) - shown(page)[1]).max() <= most
    assert page.problems == []


def test_a_served_page_shows_the_pictures_of_generate(
    chromium: Browser, url: str, networks: list[str], viewer: Viewer, tmp_path: Path
) -> None:
    check_page(chromium, url, networks, viewer, tmp_path, most=0)
    chromium.open(f"{url}#seed=6&noise=random")
    assert differences(chromium, of_generate(tmp_path, networks, ["--seeds=6", "--noise-mode=random"])) == [0, 0]
    picture = saved(chromium, "Save picture before", tmp_path, "before-sg2-cond-seed0006.png")
    np.testing.assert_array_equal(np.asarray(Image.open(picture).convert("RGB")), shown(chromium)[0])
    assert not [address for address in chromium.asked if not address.startswith((url, "data:", "blob:"))]


def test_the_keyboard_reaches_every_control_and_each_has_a_name(chromium: Browser, url: str) -> None:
    chromium.open(url)
    count = chromium.run(f"{FOCUS}.length")
    assert count == 4 + 4 + 3 + 3 + 6 + 12  # saving; seed; class, truncation, noise; second seed; styles; seeds nearby
    reached = []
    for _ in range(count):
        chromium.press("Tab")
        reached.append(chromium.run(f"{FOCUS}.indexOf(document.activeElement)"))
    assert reached == list(range(count))
    tree = chromium.send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "spinbutton", "slider", "combobox", "checkbox", "image")
    names = [node["name"]["value"] for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert len(names) == count + 2
    assert all(names)
    assert {"Seed", "Truncation", "Amount", "Style 5", "Next seed", "Save latent before", "Seed 11"} <= set(names)
    assert "Before: seed 0" in names


def test_keys_step_seeds_and_move_sliders(chromium: Browser, url: str, viewer: Viewer) -> None:
    chromium.open(url)
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        chromium.press(key)
    assert differences(chromium, of_look(viewer, seed=2)) == [0, 0]
    chromium.run("document.getElementById('seed').focus()")
    chromium.press("ArrowUp")  # the field's own
    chromium.press("ArrowLeft")  # moves the field's caret
    assert differences(chromium, of_look(viewer, seed=3)) == [0, 0]
    chromium.run("document.getElementById('amount').focus()")
    chromium.press("End")
    assert differences(chromium, of_look(viewer, seed=1)) == [0, 0]  # all of the second seed, which is 1
    chromium.run("document.getElementById('mix').focus()")
    chromium.press("ArrowDown")
    assert chromium.run("document.getElementById('mix').value") == "coarse"
    assert differences(chromium, of_look(viewer, seed=3, amount=1, styles=(0, 1))) == [0, 0]
    assert chromium.run("document.querySelector('figure canvas').ariaLabel") == "Before: seed 3, 100 % towards seed 1"
    address = chromium.run("location.hash")
    chromium.open(url + address)
    assert differences(chromium, of_look(viewer, seed=3, amount=1, styles=(0, 1))) == [0, 0]


def test_a_phone_shows_everything_without_scrolling_sideways(chromium: Browser, url: str) -> None:
    try:
        chromium.resize(360, 740)
        chromium.open(f"{url}#seed=4294967290&amount=0.5")
        assert chromium.run("document.documentElement.scrollWidth") == 360
        controls = chromium.run(f"{FOCUS}.map((one) => one.getBoundingClientRect()).map((at) => [at.left, at.right])")
        assert all(left >= 0 and right <= 360 for left, right in controls)
        heights = chromium.run(f"{FOCUS}.map((one) => (one.closest('.row, label') ?? one).offsetHeight)")
        assert min(heights) >= 24
    finally:
        chromium.resize(1200, 900)


def test_what_went_wrong_is_said_and_the_next_picture_is_drawn(chromium: Browser, url: str, viewer: Viewer) -> None:
    chromium.open(url)
    chromium.send("Network.setBlockedURLs", urls=["*picture*"])
    chromium.press("ArrowRight")
    assert "The server does not answer" in chromium.run("document.getElementById('status').textContent")
    chromium.send("Network.setBlockedURLs", urls=[])
    chromium.press("ArrowRight")
    assert chromium.run("document.getElementById('status').textContent") == ""
    assert differences(chromium, of_look(viewer, seed=2)) == [0, 0]


def test_latents_in_the_browser_are_numpys(chromium: Browser) -> None:
    equal, none, some = LabelLaw.uniform(1000), LabelLaw.uniform(0), LabelLaw.of_counts([0, 2, 0, 5])
    vectors = LabelLaw.of_counts([3, 2**32 - 5, 1], torch.eye(3))
    laws = [LabelLaw.uniform(10), LabelLaw.uniform(1), none, equal, some, vectors]
    seeds = ((0, 32), (1, 7), (2**31, 512), (2**32 - 1, 9), (4, 700), (5, 8))
    cases = [(seed, size, law) for (seed, size), law in zip(seeds, laws, strict=True)]
    calls = json.dumps([(seed, size, law.by_seed.ends) for seed, size, law in cases])
    calls += ".map(([seed, size, ends]) => latentOf(seed, size, ends))"
    chromium.send("Page.navigate", url="about:blank")
    script = f"{asset('worker.js')}; return {calls}.map(({{ z, drawn }}) => [[...z], drawn]);"
    found = chromium.run(f"(() => {{ {script} }})()")
    for (seed, size, law), (z, drawn) in zip(cases, found, strict=True):
        expected, label = numpy_latents([seed], size, law, None)
        np.testing.assert_array_equal(np.float32(z), expected[0].float().numpy())
        assert drawn == (None if label is None else int(label.argmax()))


@pytest.fixture(scope="module")
def exported(networks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with page.html, and with the folder `page`."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, bytes] = {}  # a graph takes seconds, and both pages have the same

    def once(graph: Any, metadata: dict[str, str], **kwargs: Any) -> bytes:
        name = metadata["converted_from"]
        return made[name] if name in made else made.setdefault(name, to_onnx(graph, metadata, **kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "to_onnx", once)
        for dest in (folder / "page.html", folder / "page"):
            result = CliRunner().invoke(view.main, [*networks, f"--export={dest}", f"--ort={ORT}"])
            assert result.exit_code == 0, result.output
            assert str(dest) in result.output
    return folder


@needs_export
def test_an_exported_file_draws_from_disk(
    chromium: Browser, exported: Path, networks: list[str], viewer: Viewer, tmp_path: Path
) -> None:
    url = (exported / "page.html").as_uri()
    check_page(chromium, url, networks, viewer, tmp_path, most=1)
    assert not [address for address in chromium.asked if not address.startswith((url, "data:", "blob:"))]
    assert "random" not in chromium.run("[...document.getElementById('noise').options].map((one) => one.value)")


@needs_export
def test_an_exported_folder_draws_from_any_web_server(
    chromium: Browser, exported: Path, networks: list[str], viewer: Viewer, tmp_path: Path
) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(exported / "page"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        check_page(chromium, url, networks, viewer, tmp_path, most=1)
        assert not [address for address in chromium.asked if not address.startswith((url, "data:", "blob:"))]
        server.shutdown()
    chromium.open((exported / "page" / "index.html").as_uri())
    said = chromium.run("document.getElementById('status').textContent")
    assert said == "A page opened from disk cannot read the files beside it. In its folder: python -m http.server"


@needs_export
def test_an_exported_page_draws_the_labels_that_the_network_knows(chromium: Browser, tmp_path: Path) -> None:
    """Vectors, of which no class can be chosen."""
    law = LabelLaw.of_counts([1, 2], torch.tensor([[3.0, -2.0, 0.5], [-4.0, 1.0, 2.0]]))
    extras = {"training_set_kwargs": {}, "label_law": law.entry()}
    save_snapshot(tmp_path / "vectors.pkl", gan_networks(), extras=extras, metadata={})
    network, dest = str(tmp_path / "vectors.pkl"), tmp_path / "page.html"
    result = CliRunner().invoke(view.main, [network, f"--export={dest}", f"--ort={ORT}"])
    assert result.exit_code == 0, result.output
    expected = make(tmp_path / "made", network, "--seeds=0-3").values()
    for seed, picture in enumerate(expected):
        chromium.open(f"{dest.as_uri()}#seed={seed}")
        assert max(differences(chromium, [picture[:, :, None].astype(int)])) <= 1
    assert not chromium.run("document.getElementById('class').checkVisibility()")
    assert chromium.problems == []


@needs_export
def test_an_exported_r3gan_is_shown_by_seed_and_class(chromium: Browser, tmp_path: Path) -> None:
    network, dest = str(save_gan(tmp_path / "r3gan.pkl", r3gan_networks)), tmp_path / "page.html"
    result = CliRunner().invoke(view.main, [network, f"--export={dest}", f"--ort={ORT}"])
    assert result.exit_code == 0, result.output
    for place, options in (("#seed=5", ["--seeds=5"]), ("#seed=6&class=2", ["--seeds=6", "--class=2"])):
        chromium.open(dest.as_uri() + place)
        (expected,) = make(tmp_path / place, network, *options).values()
        assert max(differences(chromium, [expected[:, :, None].astype(int)])) <= 1
    assert chromium.run(f"{FOCUS}.length") == 1 + 4 + 1 + 12  # saving; seed; class; seeds nearby
    assert chromium.problems == []
