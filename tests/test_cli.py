"""The scripts' seeds, devices and errors."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from stylegan_di.commands import COMMANDS, dataset, inspect
from stylegan_di.commands.generate import main as generate
from stylegan_di.dnnlib.cli import (
    MAX_SEED,
    MAX_SEEDS,
    Choice,
    CommaList,
    Device,
    Seeds,
    at_home,
    default_device,
    parse_seeds,
    user_errors,
)
from stylegan_di.dnnlib.logger import Logger
from stylegan_di.dnnlib.terminal import one_line
from stylegan_di.dnnlib.util import Problems, UserError
from stylegan_di.snapshots.checkpoint import save_snapshot
from tests.tiny import gan_networks

TOOLS = [path.stem for path in (Path(__file__).parent.parent / "tools").glob("[!_]*.py")]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0,3,10-13", [0, 3, 10, 11, 12, 13]),
        ("5-5", [5]),
        (" 4 , 2-3 ", [4, 2, 3]),
        ("3,1,3", [3, 1, 3]),
        (str(MAX_SEED), [MAX_SEED]),
    ],
)
def test_seeds_are_listed_in_the_order_given(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5-3", "5-3 runs backwards; write 3-5"),
        ("a", "'a' is not a seed; accepted are whole numbers"),
        ("-1", "'-1' is not a seed"),
        ("", "'' is not a seed"),
        ("1,,2", "'' is not a seed"),
        ("1.5", "'1.5' is not a seed"),
        ("0-1e12", "'0-1e12' is not a seed"),
        ("٣", "is not a seed"),
        ("1_000", "is not a seed"),
        ("9" * 5000, "is not a seed"),
        (str(MAX_SEED + 1), "above 4294967295, the largest seed"),
        (f"0-{MAX_SEED}", "more than 1,000,000 seeds"),
        (f"0-{MAX_SEEDS - 1},0", "more than 1,000,000 seeds"),
    ],
)
def test_other_seeds_are_refused_and_the_message_says_what_is_accepted(text: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_seeds(text)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 400


@click.command()
@click.option("--seeds", type=Seeds(), default="0-2")
@click.option("--device", type=Device(), default=default_device())
@click.option("--trouble")
@user_errors
def command(seeds: list[int], device: str, trouble: str | None) -> None:
    if trouble is not None:
        raise UserError(trouble)
    click.echo(f"{seeds} {device}")


def test_a_command_gets_seeds_and_a_device() -> None:
    result = CliRunner().invoke(command, ["--seeds=1,4-5", "--device=cpu"])
    assert result.exit_code == 0
    assert result.output == "[1, 4, 5] cpu\n"
    assert CliRunner().invoke(command, []).output.startswith("[0, 1, 2] ")


def test_a_wrong_seed_is_an_error_of_its_option() -> None:
    result = CliRunner().invoke(command, ["--seeds=5-3"])
    assert result.exit_code == 2
    assert "'--seeds'" in result.stderr
    assert "write 3-5" in result.stderr


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "meta", "", "cuda:999"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    result = CliRunner().invoke(command, [f"--device={device}"])
    assert result.exit_code == 2
    assert "'--device'" in result.stderr


def test_another_choice_gets_a_suggestion_where_one_is_close() -> None:
    @click.command()
    @click.option("--solver", type=Choice(["euler", "heun", "dpmpp"]))
    @click.option("--parts", type=CommaList(str, ["mapping", "b4"]))
    def chooses(solver: str, parts: tuple[str, ...]) -> None:
        click.echo(f"{solver} {parts}")

    assert CliRunner().invoke(chooses, ["--solver=heun", "--parts=b4"]).output == "heun ('b4',)\n"
    for given, told in (
        ("--solver=dpmp", "'dpmp' is not one of 'euler', 'heun', 'dpmpp'; did you mean dpmpp?"),
        ("--solver=x", "'x' is not one of 'euler', 'heun', 'dpmpp'."),
        ("--parts=maping", "'maping' is not one of 'mapping', 'b4'; did you mean mapping?"),
    ):
        result = CliRunner().invoke(chooses, [given])
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (
            2, f"Error: Invalid value for '{given.partition('=')[0]}': {told}"
        )  # fmt: skip


def test_every_command_makes_suggestions() -> None:
    for name in COMMANDS:
        found = importlib.import_module(f"stylegan_di.commands.{name.replace('-', '_')}").main
        plain = [p.name for p in found.params if isinstance(p.type, click.Choice) and not isinstance(p.type, Choice)]
        assert (name, plain) == (name, [])


def test_the_home_folder_in_every_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @click.command()
    @click.option("--file", type=click.Path(path_type=Path))
    @click.option("--text")
    @click.option("--files", type=click.Path(path_type=Path), multiple=True)
    @user_errors
    def shows(file: Path | None, text: str | None, files: tuple[Path, ...]) -> None:
        click.echo(f"{file} {text} {','.join(map(str, files))}")

    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in (
        (["--file=~/a"], f"{tmp_path}/a None "),
        (["--text=~"], f"None {tmp_path} "),
        (["--text=inception=~/a,vgg16=~/b"], f"None inception={tmp_path}/a,vgg16={tmp_path}/b "),
        (["--text=0.7*~/A.pkl"], f"None 0.7*{tmp_path}/A.pkl "),
        (["--text=a~/b"], "None a~/b "),
        (["--files=~/a", "--files=b"], f"None None {tmp_path}/a,b"),
    ):
        assert CliRunner().invoke(shows, given).output == expected + "\n"


def test_a_users_mistake_is_one_line_on_stderr_and_status_2() -> None:
    result = CliRunner().invoke(command, ["--trouble=no such file\nhere"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "Error: no such file here\n"


def test_several_mistakes_are_a_line_each() -> None:
    @click.command()
    @user_errors
    def fails() -> None:
        raise Problems("a.pkl\nError: \x1b[31m", "b.pkl")

    result = CliRunner().invoke(fails)
    assert result.exit_code == 2
    assert result.stderr == "Error: 2 problems:\n  a.pkl Error: \\x1b[31m\n  b.pkl\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"? ?\\udcff\n"), ("latin-1", b"\xe9 ?\\udcff\n"), ("utf-8", b"\xc3\xa9 \xe5\x90\x8d\\udcff\n")],
)
def test_what_the_output_cannot_encode_is_replaced(
    encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of a file may have letters that the locale lacks, or bytes that are no letters."""

    @click.command()
    @user_errors
    def says() -> None:
        click.echo("é 名\udcff")

    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding))
    says.main([], standalone_mode=False)
    assert output.getvalue() == written


#: Clears the screen, sets its title, turns direction, hides what stands before; each with what is shown.
STEERING = {
    "\x1b[2J\x1b]0;me\x07": r"\x1b[2J\x1b]0;me\x07", "a\u202egpj.exe": r"a\u202egpj.exe", "\x9b2J": r"\x9b2J",
    "x\rError: none": r"x\rError: none", "a\x08b\x7f": r"a\x08b\x7f", "\u2066\u200b\ufeff": r"\u2066\u200b\ufeff",
    "\U000e0041": r"\U000e0041", "é 名 😀": "é 名 😀",
}  # fmt: skip


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_what_would_steer_a_terminal_is_shown(text: str, tmp_path: Path) -> None:
    """On both streams, in errors, and in the log of a run; line ends of names too, where each has its line."""

    @click.command()
    @user_errors
    def says() -> None:
        with Logger(tmp_path / "log.txt"):
            print(text)
        print(text, file=sys.stderr)
        raise UserError(f"{text} is none\nand more")

    result = CliRunner().invoke(says)
    shown = STEERING[text]
    assert result.stdout == f"{shown}\n"
    assert result.stderr == f"{shown}\nError: {shown.replace(chr(92) + 'r', ' ')} is none and more\n"
    assert (tmp_path / "log.txt").read_text() == f"{shown}\n"
    assert one_line(f"{text}\n\t") == shown + r"\n\t"


def test_names_in_files_from_strangers_are_shown(tmp_path: Path) -> None:
    """Of a data set's files and classes, of networks, keys, arguments and provenance."""
    network = {"G_ema": gan_networks()["G_ema"]}
    metadata = {"kind\nSHA-256     0": "di\x1b[31m\nwarning     none"}
    save_snapshot(tmp_path / "a\x1b[2J.safetensors", network, extras={}, metadata=metadata)
    (tmp_path / "b\x1b[2J\n0").mkdir()
    (tmp_path / "b\x1b[2J\n0" / "x\u202e.png").write_bytes(b"")
    for main, arguments in (
        (inspect.main, [str(tmp_path / "a\x1b[2J.safetensors")]),
        (dataset.main, [f"--source={tmp_path}", "--check"]),
        (inspect.main, [str(tmp_path / "b\x1b[2J\n0" / "x\u202e.png")]),
    ):
        output = CliRunner().invoke(main, arguments).output
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert r"\x1b[2J" in output
        assert not any(line.startswith(("0", "warning     none")) for line in output.splitlines())
        assert output.count("\nSHA-256  ") <= 1


@pytest.mark.parametrize("name", ["train", "generate", "calc_metrics", *(f"tools.{tool}" for tool in sorted(TOOLS))])
def test_every_command_has_the_users_errors(name: str) -> None:
    assert "debug" in {parameter.name for parameter in importlib.import_module(name).main.params}


def test_other_errors_stay_what_they_are() -> None:
    @user_errors
    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert fails.__name__ == "fails"


def test_the_default_device_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == "cpu"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("~/a.zip", "/home/me/a.zip"),
        ("~", "/home/me"),
        ("0.7*~/a.pkl", "0.7*/home/me/a.pkl"),
        ("vgg16=~/a.pt,lpips=~/b.pt", "vgg16=/home/me/a.pt,lpips=/home/me/b.pt"),
        ("a~/b", "a~/b"),
        ("~b", "~b"),
        (Path("~/out"), Path("/home/me/out")),
        (("~/a", "b"), ("/home/me/a", "b")),
        (3, 3),
        (None, None),
    ],
)
def test_the_home_folder_is_meant_where_the_shell_leaves_it(
    given: object, taken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home(given) == taken


def test_commands_get_their_paths_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--network=fashion-gan.pkl", "--seeds=0", "--outdir=~/out", "--grid=~/grid.png", "--device=cpu"]
    assert CliRunner().invoke(generate, options).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "grid.png"}
