"""Names of the Hugging Face hub, and pushing to it, against a server that answers as it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import stylegan_di
from stylegan_di import hub as names
from stylegan_di import zoo
from stylegan_di.commands import push
from stylegan_di.dnnlib import download
from stylegan_di.dnnlib.util import UserError
from stylegan_di.networks.stylegan2 import Generator
from stylegan_di.snapshots.card import card, cell, licence_of, metrics_before, without_folders
from stylegan_di.snapshots.checkpoint import load_snapshot, save_snapshot
from stylegan_di.snapshots.teacher_files import open_teacher
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.teachers.edm import EDMTeacher
from tests.test_resume import commands, invoke, whole_run
from tests.tiny import save_files, save_gan, save_teacher

pytest.importorskip("huggingface_hub")
from tests.hub import Hub, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a GAN alone, a teacher alone, and a repository of several networks."""
    monkeypatch.setattr(download, "cache_folder", lambda: tmp_path / "notices" / "downloads")  # that of kernels stays
    gan, teacher = save_gan(tmp_path / "gan.pkl").read_bytes(), save_teacher(tmp_path / "t.safetensors").read_bytes()
    with serve() as hub:
        hub.repos = {
            "me/gan": {"README.md": b"a GAN", "x/gan.pkl": gan},
            "me/teacher": {"teacher.safetensors": teacher},
            "me/both": {"gan.pkl": gan, "teacher.safetensors": teacher},
            "me/none": {"README.md": b"nothing"},
        }
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


def test_what_a_name_says() -> None:
    assert names.parse("hf:owner/name") == names.HubName("owner/name", None, "")
    assert names.parse("hf:o/n@v1.0/a/b-c.pkl") == names.HubName("o/n", "v1.0", "a/b-c.pkl")
    for wrong in ("hf:", "hf:owner", "hf:owner/name/../x.pkl", "hf:owner/name/", "hf:a b/c", "hf:a/b@c d"):
        with pytest.raises(UserError, match="accepted is hf:owner/name, or hf:owner/name@revision/file"):
            names.parse(wrong)


def test_networks_are_opened_by_their_names(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """By the repository where it holds one network, else by the file; and once more without a transfer."""
    for name in ("hf:me/gan", "hf:me/gan/x/gan.pkl", "hf:me/both@main/gan.pkl"):
        assert isinstance(stylegan_di.load_generator(name), StyleGAN2Student)
    assert isinstance(open_teacher("hf:me/teacher"), EDMTeacher)
    assert isinstance(open_teacher("hf:me/both/teacher.safetensors"), EDMTeacher)
    assert set(hub.given) == {"x/gan.pkl", "gan.pkl", "teacher.safetensors"}
    told = capsys.readouterr().err
    assert told.count("Terms of https://huggingface.co/me/gan/ and the files beside it: see its page.") == 1
    assert zoo.is_local("hf:me/gan/x/gan.pkl")
    assert not zoo.is_local("hf:me/none/gan.pkl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/both", "several network files: gan.pkl, teacher.safetensors; name one, as in hf:me/both/FILE"),
        ("hf:me/none", "no network file; name the file, as in hf:me/none/FILE"),
        ("hf:me/gan/y.pkl", "hf:me/gan/y.pkl could not be downloaded"),
        ("hf:nobody/nothing", "hf:nobody/nothing could not be downloaded"),
    ],
)
def test_what_is_not_there_is_told(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        stylegan_di.load_generator(name)
    assert message in str(refusal.value)


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"^hf:me/gan needs the package huggingface_hub, which is not installed"):
        names.fetch("hf:me/gan")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub, when it sends large files
def test_a_run_takes_both_networks_from_the_hub_and_goes_back_there(hub: Hub, tmp_path: Path) -> None:
    """Refined from names of the hub, sent, and opened by the new name: the same weights."""
    (tmp_path / "files").mkdir()
    of_files = commands(save_files(tmp_path / "files"))["di"]
    others = [option for option in of_files if not option.startswith(("--gan-pkl", "--teacher"))]
    run = whole_run(tmp_path / "runs", *others, "--gan-pkl=hf:me/gan", "--teacher=hf:me/teacher")
    assert run.name.startswith("00000-gan-di")
    told = load_snapshot(run / "network-best.pkl").metadata
    assert (told["gan_pkl"], told["teacher"]) == ("hf:me/gan", "hf:me/teacher")

    refused = CliRunner().invoke(push.main, [str(run), "me/refined"])
    assert refused.exit_code == 2
    assert "--licence is missing: the terms of hf:me/gan, hf:me/teacher are not known" in refused.output
    result = CliRunner().invoke(push.main, [str(run), "me/refined", "--licence=mit", "--private"])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "use it as hf:me/refined" in result.output
    sent = hub.repos["me/refined"]
    assert sent.keys() >= {"README.md", "network.safetensors", "before_after.png"}
    assert hub.private == {"me/refined"}
    assert hub.tokens == {"Bearer hf_of_a_test"}
    card = sent["README.md"].decode()
    assert "license: mit\nbase_model: me/gan\ntags:\n- gan\n- diff-instruct\n" in card
    before = json.loads((run / "result.json").read_text())["before"]["fd_fashion"]
    assert f"| fd_fashion | {before:.4g} | {told['metric/fd_fashion']:.4g} |" in card
    assert "| teacher | `hf:me/teacher`: terms not known |" in card
    assert str(tmp_path) not in card
    assert str(tmp_path).encode() not in sent["network.safetensors"]  # nor in the provenance
    first, again = load_snapshot(run / "network-best.pkl"), load_snapshot("hf:me/refined")
    for name, network in first.networks.items():
        other = again.networks[name]
        if network is not None:
            assert other is not None
            assert all(value.equal(other.state_dict()[key]) for key, value in network.state_dict().items())


def test_what_would_be_sent_can_be_looked_at(tmp_path: Path) -> None:
    result = CliRunner().invoke(push.main, ["fashion-gan.pkl", "me/fashion", f"--dest={tmp_path / 'card'}"])
    assert result.exit_code == 0, result.output + str(result.exception)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "A StyleGAN2 of 16x16 pixels, 1 channel, 10 classes." in card
    assert "stylegan-di generate --network=hf:me/fashion" in card
    with Image.open(tmp_path / "card" / "samples.png") as picture:
        assert picture.width >= push.WIDTH
    assert isinstance(stylegan_di.load_generator(tmp_path / "card" / "network.safetensors"), StyleGAN2Student)


def test_a_folder_without_networks_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(push.main, [str(tmp_path), "me/x"])
    assert "the folder holds no network-best or network-snapshot" in result.output
    assert "accepted is hf:owner/name" in CliRunner().invoke(push.main, ["fashion-gan.pkl", "x"]).output
    refused = CliRunner().invoke(push.main, ["fashion-gan.pkl", "me/x@main/a.pkl", f"--dest={tmp_path}"])
    assert refused.output == "Error: me/x@main/a.pkl: accepted is owner/name\n"
    refused = CliRunner().invoke(push.main, ["fashion-gan.pkl", "me/x", "--licence=mit\nbase_model: a/b"])
    assert "Error: --licence='mit\\nbase_model: a/b': accepted is an identifier of the hub" in refused.output


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4.62391, "4.624"),
        (123456.0, "123456"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        ("2026-11-24", "2026-11-24"),
        ("train.py --kind=di", "`train.py --kind=di`"),
        ("a`b``c.pkl", "``` a`b``c.pkl ```"),
        ("a\n# b\x1b[31m\u202ec", "`a # b [31m c`"),
        ("a|b\\|c", r"`a\|b\|c`"),
        ({"a": None}, "`{'a': None}`"),
        ("x" * 3000, "x" * 2000 + "..."),
    ],
)
def test_whatever_a_file_says_stays_in_its_cell(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_odd_provenance_makes_a_card(tmp_path: Path) -> None:
    snapshot = load_snapshot("fashion-gan.pkl")
    snapshot.metadata = {"gan_pkl": "hf:no name\n", "metric/a|b": "x", "metric/fd": [1], "kimg": [2], "date": None}
    rows = [line for line in card("me/x", snapshot, "mit", {"fd": 2.0}, "").splitlines() if line.startswith("| ")]
    assert rows == [
        "| metric | before | after |", r"| `a\|b` | | x |", "| fd | 2 | `[1]` |", "| | |",
        "| GAN | `hf:no name`: terms not known |", "| thousands of images | `[2]` |", "| date | None |",
    ]  # fmt: skip
    (tmp_path / "result.json").write_text('{"before": {"fd": "x"}}')
    with pytest.raises(UserError, match=r"result\.json: found contents that cannot be read"):
        metrics_before(tmp_path)


@pytest.mark.parametrize(
    ("mode", "size", "shown"),
    [("L", (1, 1), (640, 640)), ("RGB", (40, 36), (640, 576)), ("RGBA", (300, 200), (900, 600)),
     ("L", (1, 3000), (1, 2560)), ("RGB", (3000, 2400), (2560, 2048))],
)  # fmt: skip
def test_the_picture_of_a_card_is_neither_tiny_nor_huge(
    mode: str, size: tuple[int, int], shown: tuple[int, int], tmp_path: Path
) -> None:
    Image.new(mode, size).save(tmp_path / "before_after.png")
    picture = push.fitted(tmp_path / "before_after.png")
    assert (picture.mode, picture.size) == ("L" if mode == "L" else "RGB", shown)


def test_a_picture_that_cannot_be_shown_is_told(tmp_path: Path) -> None:
    Image.new("1", (14000, 7000)).save(tmp_path / "large.png")
    (tmp_path / "none.png").write_bytes(b"none")
    for name, found in (("large", "more than 89 million pixels"), ("none", "no picture that can be")):
        with pytest.raises(UserError, match=rf"{name}\.png: found {found}.*\. Remove it to go without it"):
            push.fitted(tmp_path / f"{name}.png")


def test_a_network_whose_images_are_no_pictures_is_sent_without_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    widths = dict(channel_base=64, channel_max=8)
    network = Generator(z_dim=8, c_dim=0, w_dim=8, img_resolution=8, img_channels=4, synthesis_kwargs=widths)
    save_snapshot(tmp_path / "gan.pkl", {"G_ema": network}, extras={}, metadata={})
    arguments = [str(tmp_path / "gan.pkl"), "me/x", "--licence=mit", f"--dest={tmp_path / 'card'}"]
    result = CliRunner().invoke(push.main, arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert {path.name for path in (tmp_path / "card").iterdir()} == {"README.md", "network.safetensors"}


def test_the_licence_follows_from_what_a_network_is_made_of() -> None:
    assert licence_of({"gan_pkl": "fashion-gan.pkl", "teacher": "fashion-teacher.pkl"}) == "apache-2.0"
    assert licence_of({"gan_pkl": "cifar10.pkl", "teacher": "edm-cifar10-32x32-cond-vp.pkl"}) == "other"
    assert licence_of({"converted_from": "sid-cifar10-cond-alpha1.pkl", "data": "unknown.zip"}) == "other"
    for unknown in ({}, {"gan_pkl": "mine.pkl"}, {"gan_pkl": "cifar10.pkl", "data": "mine.zip"}):
        with pytest.raises(UserError, match="--licence is missing"):
            licence_of(unknown)


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("/home/me/train.py --gan-pkl=/data/a/gan.pkl --outdir=~/runs", "train.py --gan-pkl=gan.pkl --outdir=runs"),
        (r"--data=C:\mine\data.zip --ref=file:///srv/ref.npz", "--data=data.zip --ref=ref.npz"),
        ("--teacher=0.5*/a/b.pkl+0.5*hf:owner/name/c.pkl", "--teacher=0.5*b.pkl+0.5*hf:owner/name/c.pkl"),
        ("https://example.org/a/b.pkl runs/x.pkl 1/2", "https://example.org/a/b.pkl runs/x.pkl 1/2"),
    ],
)
def test_paths_of_this_machine_are_not_published(text: str, shortened: str) -> None:
    assert without_folders(text) == shortened


def test_dry_runs_ask_no_hub(hub: Hub) -> None:
    arguments = ["--kind=di", "--gan-pkl=hf:me/gan/x/gan.pkl", "--teacher=hf:me/teacher", "--metrics=none", "--dry-run"]
    assert invoke(*arguments).exit_code == 0
    assert hub.given == []


# A server that is not to be trusted.


def refusal_of(name: str) -> str:
    with pytest.raises(UserError) as refusal:
        names.fetch(name)
    assert "could not be downloaded" in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ETag", '"../../../../outside"'),
        ("X-Linked-Etag", "/outside"),
        ("X-Linked-Etag", '"a\\\\b"'),
        ("X-Repo-Commit", "../../outside"),
        ("X-Repo-Commit", ".."),
        ("X-Xet-Hash", "../outside"),
    ],
)
def test_headers_that_lead_out_of_the_cache(hub: Hub, tmp_path: Path, header: str, value: str) -> None:
    before = {path for path in tmp_path.rglob("*") if (tmp_path / "cache") not in path.parents}
    hub.odd["x/gan.pkl"] = 200, {header: value}
    assert f"the header {header} of {hub.address}/me/gan/resolve/main/x/gan.pkl is" in refusal_of("hf:me/gan/x/gan.pkl")
    after = {path for path in tmp_path.rglob("*") if (tmp_path / "cache") not in path.parents}
    assert after == before
    hub.odd.clear()
    assert names.fetch("hf:me/gan/x/gan.pkl").read_bytes() == hub.repos["me/gan"]["x/gan.pkl"]


def test_a_large_file_comes_from_elsewhere_without_the_token(hub: Hub) -> None:
    """As the hub sends them: by a redirection to another host, with the size and the ETag of what lies there."""
    data = hub.repos["me/gan"]["x/gan.pkl"]
    hub.large["abc"] = data
    elsewhere = hub.address.replace("127.0.0.1", "localhost") + "/large/abc"
    linked = {"Location": elsewhere, "X-Linked-Etag": '"abc"', "X-Linked-Size": str(len(data))}
    hub.odd["x/gan.pkl"] = 302, linked
    path = names.fetch("hf:me/gan/x/gan.pkl")
    assert path.read_bytes() == data
    assert hub.large_tokens == {""}
    for wrong, reason in (
        ({"X-Linked-Size": str(len(data) - 1), "X-Linked-Etag": '"d"'}, "Consistency check failed"),
        ({"X-Linked-Size": str(1 << 36), "X-Linked-Etag": '"e"'}, f"has {1 << 36} bytes; up to {1 << 35} are fetched"),
        ({"X-Linked-Size": "\u00b2", "X-Linked-Etag": '"f"'}, "bytes; up to"),
        ({"Location": "file:///etc/passwd", "X-Linked-Etag": '"g"'}, "UnsupportedProtocol"),
    ):
        hub.odd["x/gan.pkl"] = 302, linked | {"X-Repo-Commit": "1" * 40} | wrong
        assert reason in refusal_of("hf:me/gan@other/x/gan.pkl")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"MAX_BYTES": 1000}, r"bytes; up to 1000 are fetched"),
        ({"MAX_SECONDS": 0}, "it takes longer than 0 s"),
        ({"RATE_SECONDS": 0, "MIN_RATE": 1e12}, "fewer than 1000000000000 bytes per second arrive"),
    ],
)
def test_limits_of_other_downloads_hold(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], reason: str
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(download, name, value)
    assert reason in refusal_of("hf:me/gan/x/gan.pkl")


def test_more_bytes_than_a_listing_may_have(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_LISTING", 100)
    assert "bytes; up to 100 are fetched" in refusal_of("hf:me/gan")


def test_a_poisoned_cache_of_the_hub_heals(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = hub.repos["me/gan"]["x/gan.pkl"]
    hub.repos["me/gan"]["x/gan.pkl"] = b"<!doctype html>"
    with pytest.raises(UserError, match=r"^hf:me/gan/x/gan.pkl: it is a web page instead of the file; it lies at /"):
        names.fetch("hf:me/gan/x/gan.pkl")
    hub.repos["me/gan"]["x/gan.pkl"] = data
    path = names.fetch("hf:me/gan/x/gan.pkl")
    assert path.read_bytes() == data
    path.resolve().write_bytes(b"")
    capsys.readouterr()
    assert names.fetch("hf:me/gan/x/gan.pkl").read_bytes() == data
    assert "is fetched anew: it is empty" in capsys.readouterr().err
    path.resolve().write_bytes(data[:-1] + b"x")
    monkeypatch.setenv(download.REFRESH, "1")
    assert names.fetch("hf:me/gan/x/gan.pkl").read_bytes() == data


def test_a_library_too_old_to_be_watched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.utils

    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: object())
    with pytest.raises(UserError, match=r"is too old: pip install -U 'huggingface_hub>=1.0'"):
        names.fetch("hf:me/gan/x/gan.pkl")
