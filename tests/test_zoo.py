"""Known names: what goes with them, and where they are found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from stylegan_di import zoo
from stylegan_di.dnnlib import download
from stylegan_di.dnnlib.download import cached_path
from stylegan_di.dnnlib.util import UserError
from tests.golden_edm import GOLDEN

PICKLE = b"\x80\x04x"  # begins like a pickle


def test_cifar10_brings_its_teacher_labels_and_reference() -> None:
    known = zoo.entry("cifar10.pkl")
    assert known is not None
    assert known.teacher == "edm-cifar10-32x32-cond-vp.pkl"
    assert (known.label_dim, known.reference) == (10, "cifar10-32x32.npz")
    assert known.url == "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/cifar10.pkl"


@pytest.mark.parametrize("known", zoo.ENTRIES.values(), ids=lambda known: known.name)
def test_entries_fit_together(known: zoo.Entry) -> None:
    is_pickle = known.name.endswith(".pkl") and known.folder not in (zoo.EDM2_REFS, zoo.NGC_METRICS)
    is_network = is_pickle or known.folder in (zoo.ADM, zoo.DMD2)
    assert (known.label_dim is not None) == is_network
    assert (known.url is None) == known.name.startswith("fashion-")
    assert known.url is None or sum(known.url.startswith(beginning) for beginning in zoo.TERMS) == 1
    assert known.sha256 is None or len(known.sha256) == 64
    if known.teacher is not None:
        teacher = zoo.ENTRIES[known.teacher]
        assert (teacher.label_dim, teacher.reference) == (known.label_dim, known.reference)
    if known.reference is not None:
        assert known.reference in zoo.ENTRIES
    if "uncond" in known.name:
        assert known.label_dim == 0


def test_stylegan3s_published_networks() -> None:
    shapes = json.loads(gzip.decompress((GOLDEN / "format" / "published_shapes_sg3.json.gz").read_bytes()))
    published = {name for configuration in shapes.values() for name in configuration["published_files"]}
    assert {name for name in zoo.ENTRIES if name.startswith("stylegan3-")} == published
    assert len(published) == 12
    known = zoo.ENTRIES["stylegan3-r-afhqv2-512x512.pkl"]
    start = "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan"
    assert known.url == f"{start}3/versions/1/files/stylegan3-r-afhqv2-512x512.pkl"
    assert zoo.ENTRIES["stylegan2-ffhqu-256x256.pkl"].url == f"{start}2/versions/1/files/stylegan2-ffhqu-256x256.pkl"
    assert "non-commercial" in zoo.terms_of("stylegan3-t-ffhq-1024x1024.pkl")
    assert "non-commercial" in zoo.terms_of(f"{start}3/versions/1/files/metrics/inception-2015-12-05.pkl")


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
        path.write_bytes(PICKLE)
        assert zoo.resolve(name) == path
    assert zoo.resolve(here / name) == here / name
    assert zoo.resolve(url) == cached


@pytest.mark.parametrize(("name", "kind"), [("fashion-gan.pkl", "shipped"), ("vgg16-397923af.pth", "published")])
def test_a_file_here_with_another_hash_is_not_used_for_a_known_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    Path(name).write_bytes(PICKLE)
    known = zoo.ENTRIES[name]
    meant = zoo.ASSETS / name if kind == "shipped" else tmp_path / "fetched"
    monkeypatch.setattr(zoo, "open_url", lambda url, sha256: meant if (url, sha256) == (known.url, known.sha256) else 0)
    assert zoo.resolve(name) == meant
    told = capsys.readouterr().err
    assert f"{name}: the file of this name here is not the {kind} one, which is used; write {tmp_path / name}" in told
    assert zoo.resolve(f"./{name}") == Path(name)  # a path is meant as it is
    if kind == "shipped":
        Path(name).write_bytes((zoo.ASSETS / name).read_bytes())
        assert zoo.resolve(name) == Path(name)
    assert capsys.readouterr().err == ""


def test_a_file_here_whose_hash_is_not_known_is_used_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    Path("ffhq.pkl").write_bytes(PICKLE)
    assert zoo.resolve("ffhq.pkl") == Path("ffhq.pkl")
    assert "ffhq.pkl: the file of this name here is used; whether it is the published" in capsys.readouterr().err


def test_what_needs_no_download_is_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name = "cifar10.pkl"
    url = zoo.ENTRIES[name].url
    assert url is not None
    for local in ("fashion-gan.pkl", "no-such-name.pkl", tmp_path / name):  # shipped; refused at once; a path
        assert zoo.is_local(local)
    for published in (name, url, "paper-fig11b-cifar10/cifar10u.pkl", "https://example.org/x.pkl"):
        assert not zoo.is_local(published)
    cached = cached_path(url)
    cached.parent.mkdir(parents=True)
    for path in (cached, Path(name)):
        path.write_bytes(PICKLE)
        assert zoo.is_local(name)
        assert zoo.is_local(url) == (path == cached)
        path.unlink()


def test_offline_the_message_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(zoo, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
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


def test_published_urls() -> None:
    for name, url in (
        ("lpips-vgg.pth", "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth"),
        ("edm2-img64-s-1073741-0.075.pkl", f"{zoo.NVIDIA}edm2/posthoc-reconstructions/edm2-img64-s-1073741-0.075.pkl"),
        ("img512.pkl", f"{zoo.NVIDIA}edm2/dataset-refs/img512.pkl"),
        ("sid-cifar10-cond-alpha1.2.pkl", f"{zoo.SID}cifar10-cond/alpha1.2/network-snapshot-1.200000-713312.pkl"),
        ("sid-imagenet64-alpha1.pkl", f"{zoo.SID}imagenet64/alpha1/network-snapshot-1.000000-492836.pkl"),
        ("edm-cifar10-cond-vp-ddo.pkl", f"{zoo.DDO}edm-cifar10-cond-vp-ddo.pkl"),
        ("r3gan-ffhq-256x256.pkl", f"{zoo.R3GAN}FFHQ-256x256/resolve/main/network-snapshot-final.pkl"),
        ("r3gan-imgnet-32x32.pkl", f"{zoo.R3GAN}ImgNet-32x32/resolve/main/ImageNet-32x32.pkl"),
        ("dmd2-imagenet64-fid2.61.bin",
         f"{zoo.DMD2}imagenet_lr2e-6_scratch_fid2.61_checkpoint_model_405500/pytorch_model.bin"),
    ):
        assert zoo.ENTRIES[name].url == url
    assert len([name for name in zoo.ENTRIES if name.startswith("edm2-") and not name.endswith("-ddo.pkl")]) == 51
    assert zoo.ENTRIES["edm2-img512-xs-uncond-2147483-0.045.pkl"].label_dim == 0


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("paper-fig11b-cifar10/cifar10u.pkl", zoo.SG2 + "paper-fig11b-cifar10/cifar10u.pkl"),
        ("raw-snapshots/edm2-img512-s/x-0.100.pkl", zoo.NVIDIA + "edm2/raw-snapshots/edm2-img512-s/x-0.100.pkl"),
    ],
)
def test_files_of_published_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, url: str) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = cached_path(url)
    path.parent.mkdir(parents=True)
    path.write_bytes(PICKLE)
    assert zoo.resolve(name) == path
    for other in ("raw-snapshots/../x.pkl", "raw-snapshots/", "paper-fig11b-cifar10/x.txt"):
        with pytest.raises(UserError, match="no such file"):
            zoo.resolve(other)


def test_terms_are_shown_once_for_what_is_published_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10.pkl", "ffhq.pkl", "edm-ffhq-64x64-uncond-vp.pkl", "mine.pkl"):
        Path(name).write_bytes(b"x")
    for name, terms in (
        ("mine.pkl", None), ("fashion-gan.pkl", None), ("cifar10.pkl", "NVIDIA Source Code License, non-commercial"),
        ("cifar10.pkl", None), ("ffhq.pkl", None), ("edm-ffhq-64x64-uncond-vp.pkl", "CC BY-NC-SA 4.0"),
    ):  # fmt: skip
        zoo.resolve(name)
        error = capsys.readouterr().err
        unknown = name.endswith("pkl") and name not in ("mine.pkl", "fashion-gan.pkl")
        assert ("the file of this name here is used" in error) == unknown
        assert error.count("\n") == unknown + (terms is not None)
        assert terms is None or terms in error
    cached_path(zoo.SG2 + "x.pkl").parent.mkdir(parents=True)
    cached_path(zoo.EDM2 + "x.pkl").write_bytes(PICKLE)
    zoo.resolve(zoo.EDM2 + "x.pkl")
    assert "(NVlabs/edm2)" in capsys.readouterr().err


def test_detectors_are_checked_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    name = "vgg16-397923af.pth"
    cached = cached_path(zoo.TORCHVISION + name)
    for path in (tmp_path / "copy.pth", cached):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(PICKLE)
    with pytest.raises(UserError, match="not 397923af8e79cdbb"):
        zoo.published(name, tmp_path / "copy.pth")
    with pytest.raises(UserError, match=f"the download failed.*put the file at {cached}"):
        zoo.published(name)  # what was in the cache is dropped
    assert not cached.exists()
