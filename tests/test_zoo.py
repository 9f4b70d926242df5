"""Known names: what goes with them, and where they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnlib.util import UserError, cached_path
from stylegan_di import zoo


def test_cifar10_brings_its_teacher_labels_and_reference() -> None:
    known = zoo.entry("cifar10.pkl")
    assert known is not None
    assert known.teacher == "edm-cifar10-32x32-cond-vp.pkl"
    assert (known.label_dim, known.reference) == (10, "cifar10-32x32.npz")
    assert known.url == "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/cifar10.pkl"


@pytest.mark.parametrize("known", zoo.ENTRIES.values(), ids=lambda known: known.name)
def test_entries_fit_together(known: zoo.Entry) -> None:
    assert (known.label_dim is None) == (known.name.endswith(".npz") or "classifier" in known.name)
    if known.teacher is not None:
        teacher = zoo.ENTRIES[known.teacher]
        assert (teacher.label_dim, teacher.reference) == (known.label_dim, known.reference)
    if known.reference is not None:
        assert known.reference in zoo.ENTRIES
    if "uncond" in known.name:
        assert known.label_dim == 0


def test_entry_goes_by_the_file_name() -> None:
    for name in ("cifar10.pkl", "/somewhere/cifar10.pkl", Path("a/cifar10.pkl"), "https://example.org/cifar10.pkl"):
        assert zoo.entry(name) is zoo.ENTRIES["cifar10.pkl"]
    assert zoo.entry("network-snapshot-000200.pkl") is None


def test_local_then_shipped_then_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assets, here, cache = tmp_path / "assets", tmp_path / "here", tmp_path / "cache"
    assets.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(zoo, "ASSETS", assets)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(cache))
    name = "cifar10.pkl"
    url = zoo.ENTRIES[name].url
    assert url is not None
    cached = cached_path(url)
    cached.parent.mkdir(parents=True)
    for path in (cached, assets / name, Path(name)):
        path.write_bytes(b"x")
        assert zoo.resolve(name) == path
    assert zoo.resolve(here / name) == here / name
    assert zoo.resolve(url) == cached


def test_offline_the_message_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(zoo, "ASSETS", tmp_path / "assets")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UserError) as caught:
        zoo.resolve("edm-cifar10-32x32-cond-vp.pkl")
    message = str(caught.value)
    assert "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-cond-vp.pkl" in message
    assert str(tmp_path / "downloads") in message
    with pytest.raises(UserError, match=r"fashion-gan\.pkl: this file comes with the package but is missing"):
        zoo.resolve("fashion-gan.pkl")


def test_unknown_names_list_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"known names like it: cifar10\.pkl"):
        zoo.resolve("cifar-10.pkl")
    with pytest.raises(UserError, match="there is no such file"):
        zoo.resolve(tmp_path / "cifar10.pkl")
    with pytest.raises(UserError, match="folder"):
        zoo.resolve(tmp_path)
