"""Options are declared once, in TrainConfig: their types, ranges and help, and what --help makes of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest
from click.testing import CliRunner

import train
from stylegan_di.config import TrainConfig
from stylegan_di.dnnlib.cli import CommaList, Device
from stylegan_di.dnnlib.util import UserError, option_name
from stylegan_di.options import Option, option, options_of
from stylegan_di.presets import EDM_PRESETS, KIND_DEFAULTS, RECIPES, gan_preset
from stylegan_di.specs import FINITE, POSITIVE, Range

OPTIONS = {declared.name: declared for declared in options_of(TrainConfig)}
NUMBERS = [declared for declared in OPTIONS.values() if declared.item in (int, float)]
PARAMETERS = {parameter.name: parameter for parameter in train.main.params}
every = pytest.mark.parametrize("declared", OPTIONS.values(), ids=list(OPTIONS))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(train.main, list(arguments))


def help_of(*arguments: str) -> str:
    result = CliRunner().invoke(train.main, [*arguments, "--help"], terminal_width=120)
    assert result.exit_code == 0, result.output
    return result.output


def base() -> dict[str, Any]:
    return dict(kind="di", teacher="made here")


# Each field.


def test_every_field_but_the_kind_is_declared() -> None:
    assert [field.name for field in fields(TrainConfig) if field.name != "kind"] == list(OPTIONS)


@every
def test_an_option_says_what_it_is_and_where_it_belongs(declared: Option) -> None:
    assert declared.help.rstrip().endswith((".", "]"))
    assert declared.group
    assert set(declared.kinds) <= set(KIND_DEFAULTS)
    assert declared.help in " ".join(PARAMETERS[declared.name].help.split())  # type: ignore[union-attr]
    assert PARAMETERS[declared.name].opts == [option_name(declared.name)]


@every
def test_the_command_line_has_the_annotated_type(declared: Option) -> None:
    annotation, found = get_type_hints(TrainConfig)[declared.name], PARAMETERS[declared.name].type
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if declared.name == "device":
        assert isinstance(found, Device)
    elif get_origin(annotation) is Literal:
        assert isinstance(found, click.Choice)
        assert tuple(found.choices) == get_args(annotation)
    elif declared.choices and not declared.many:
        assert isinstance(found, click.Choice)
        assert tuple(found.choices) == declared.choices
    elif get_origin(annotation) is tuple:
        assert isinstance(found, CommaList)
        assert found.item is (str if get_origin(parts[0]) is Literal else parts[0])
        assert found.choices == declared.choices
    else:
        assert found is {str: click.STRING, int: click.INT, float: click.FLOAT, bool: click.BOOL}[
            parts[0] if parts else annotation
        ]


def outside(accepted: Range) -> list[float]:
    """Numbers just outside a range, and what is no number."""
    found = [math.nan, math.inf, -math.inf]
    if accepted.low > -math.inf:
        found.append(accepted.low if accepted.open_low else accepted.low - 1)
    if accepted.high < math.inf:
        found.append(accepted.high if accepted.open_high else accepted.high + 1)
    return found


@pytest.mark.parametrize("declared", NUMBERS, ids=lambda declared: declared.name)
def test_a_number_outside_its_range_is_refused_by_name(declared: Option) -> None:
    for number in outside(declared.accepted):
        given = declared.item(number) if declared.item is int and math.isfinite(number) else number
        value = (given,) if declared.many else given
        with pytest.raises(UserError) as refusal:
            TrainConfig(**(base() | {declared.name: value}))
        assert str(refusal.value) == f"{option_name(declared.name)}={given}: accepted is {declared.accepted}"


@pytest.mark.parametrize("declared", NUMBERS, ids=lambda declared: declared.name)
def test_the_bounds_themselves_are_accepted_where_they_belong_to_the_range(declared: Option) -> None:
    accepted = declared.accepted
    bounds = [accepted.low] * (not accepted.open_low) + [accepted.high] * (not accepted.open_high)
    for number in filter(math.isfinite, bounds):
        declared.check((number,) if declared.many else number)


def test_no_number_may_be_anything() -> None:
    assert [declared.name for declared in NUMBERS if declared.accepted == FINITE] == []


@pytest.mark.parametrize(
    "declared", [declared for declared in OPTIONS.values() if declared.choices], ids=lambda declared: declared.name
)
def test_another_choice_is_refused_by_name_with_a_suggestion(declared: Option) -> None:
    known = declared.choices[-1]
    with pytest.raises(UserError) as refusal:
        TrainConfig(**(base() | {declared.name: (known + "x",) if declared.many else known + "x"}))
    listed = ", ".join(declared.choices)
    assert str(refusal.value).startswith(f"{option_name(declared.name)}={known}x: accepted are {listed}; did you mean")
    result = invoke(f"{option_name(declared.name)}={known}x")
    assert result.exit_code == 2
    assert f"Invalid value for '{option_name(declared.name)}'" in result.output


def test_all_presets_are_within_the_ranges() -> None:
    presets = [*KIND_DEFAULTS.values(), *EDM_PRESETS.values()]
    presets += [options for recipe in RECIPES.values() for options in recipe.uses.values()]
    presets += [
        gan_preset(cfg, resolution=resolution, gpus=gpus, batch=None, cuda=True)
        for cfg in ("auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar")
        for resolution in (32, 1024)
        for gpus in (1, 8)
    ]
    for declared in OPTIONS.values():
        declared.check(declared.default)
        for options in presets:
            declared.check(options.get(declared.name))


@dataclass(frozen=True)
class Own:
    plain: int = 3
    declared: tuple[int, ...] = option((2,), "Two.", POSITIVE, group="Numbers", kinds=("edm",))


def test_other_fields_are_no_options() -> None:
    expected = Option("declared", (2,), "Two.", "Numbers", ("edm",), POSITIVE, int, True, False, ())
    assert list(options_of(Own)) == [expected]
    with pytest.raises(UserError, match=r"--declared=0: accepted is a number above 0"):
        expected.check((1, 0))


# --help.


def sections(text: str) -> dict[str, set[str]]:
    """The options of each section of a help text."""
    found: dict[str, set[str]] = {}
    title = ""
    for line in text.partition("\n  --kind=di --help shows")[0].splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            title = line[:-1]
        elif line.startswith("  -") and title:
            found.setdefault(title, set()).add(next(word for word in line.split() if word.startswith("--")))
    return found


def test_help_shows_every_option_in_its_group() -> None:
    found = sections(help_of())
    expected: dict[str, set[str]] = {}
    for declared in OPTIONS.values():
        expected.setdefault(declared.group, set()).add(option_name(declared.name))
    assert found.pop("Options") == {"--kind", "--dry-run", "--debug", "--help"}
    assert found == expected


@pytest.mark.parametrize("kind", KIND_DEFAULTS)
@pytest.mark.parametrize("form", ["--kind={}", "--kind {}"])
def test_help_of_a_kind_shows_its_options_alone(kind: str, form: str) -> None:
    shown = set().union(*sections(help_of(*form.format(kind).split())).values())
    own = {option_name(declared.name) for declared in OPTIONS.values() if not declared.kinds or kind in declared.kinds}
    assert shown == own | {"--kind", "--dry-run", "--debug", "--help"}
    assert ("--transfer" in shown, "--gan-pkl" in shown) == (kind == "edm", kind == "di")


def shown_default(text: str, name: str) -> str:
    """What a help text says of an option's default."""
    _, _, rest = text.partition(f"  {name} ")
    words = " ".join(rest.partition("\n  -")[0].split())
    return words.rpartition("[default: ")[2].rstrip("]") if "[default: " in words else ""


@pytest.mark.parametrize(
    ("name", "edm", "gan", "di", "general"),
    [
        ("--batch", "512", "64", "128", "by --kind"),
        ("--lr", "0.001", "0.001", "1e-05", "by --kind"),
        ("--ema", "500.0", "10.0", "500.0", "by --kind"),
        ("--aug", "", "ada", "noaug", "by --kind"),
        ("--tick", "50.0", "4.0", "50.0", "by --kind"),
        ("--metrics", "none", "fid50k_full", "fid50k_full", "by --kind"),
        ("--channel-mult", "2,2,2", "", "2,2,2", "2,2,2"),
        ("--beta1", "0.9", "0.0", "0.0", "by --kind"),
        ("--divergence", "", "", "ikl", "ikl"),
        ("--subset", "all", "all", "all", "all"),
        ("--desc", "", "", "", ""),
    ],
)
def test_help_shows_the_defaults_of_the_kind(name: str, edm: str, gan: str, di: str, general: str) -> None:
    found = [shown_default(help_of(*arguments), name) for arguments in (["--kind=edm"], ["--kind=gan"], ["--kind=di"])]
    assert [*found, shown_default(help_of(), name)] == [edm, gan, di, general]


def test_help_of_a_kind_that_is_none_is_the_general_one() -> None:
    assert sections(help_of("--kind=foo")) == sections(help_of())


# Specs and names, judged before anything is opened.


CRITIC = ["--divergence=ikl:f=js", "--data=z", "--gan-pkl=y"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--divergence=ikk"], "--divergence=ikk: there is no 'ikk'; accepted: ikl, sid, sim, fisher, realuid; did you "
                               "mean ikl?"),
        (["--divergence=sid:alhpa=1"], "'sid' has no field 'alhpa'; accepted: alpha; did you mean alpha?"),
        (["--divergence=ikl+2*sidd"], "no 'sidd'; accepted: ikl, sid, sim, fisher, realuid; did you mean sid?"),
        (["--divergence=ikl+-1*sid"], "the weight '-1' is not a number above 0"),
        (["--divergence=ikl:f=jss"], "f=jss; accepted: "),
        (["--noise-law=karas"], "--noise-law=karas: there is no 'karas'; accepted: lognormal, karras, loguniform, vp, "
                                "ve; did you mean karras?"),
        (["--fake-noise-law=lognormal:P_men=0"], "'lognormal' has no field 'P_men'; accepted: P_mean, P_std; did you "
                                                 "mean P_mean?"),
        (["--noise-law=none"], "--noise-law=none: there is no 'none'"),
        ([*CRITIC, "--critic-noise-law=vpp"], "--critic-noise-law=vpp: there is no 'vpp'"),
        (["--metrics=fid50k_ful"], "there is no metric 'fid50k_ful'"),
        (["--metrics=fid50k_full,kid50k_fulll"], "there is no metric 'kid50k_fulll'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [True, False])
def test_a_spec_or_name_that_is_none_is_refused_before_anything_is_opened(
    arguments: list[str], message: str, dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file was looked for")

    monkeypatch.setattr("stylegan_di.preflight.check", never)
    monkeypatch.setattr("stylegan_di.training.launch.build", never)
    options = ["--kind=di", "--teacher=x", *arguments, f"--outdir={tmp_path / 'runs'}", *["--dry-run"] * dry]
    result = invoke(*options)
    assert result.exit_code == 2, result.output + str(result.exception)
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()


def test_metrics_that_are_close_are_suggested() -> None:
    result = invoke("--kind=di", "--teacher=x", "--metrics=fid50k_ful", "--dry-run")
    assert "did you mean fid50k_full?" in result.output


def test_the_noise_levels_of_a_preconditioning_are_its_own_unless_given() -> None:
    def law(*options: str) -> str:
        result = invoke("--kind=edm", "--data=/none", "--metrics=is50k", *options, "--dry-run")
        text = result.output[result.output.index("{") :] if "{" in result.output else ""
        return str(json.loads(text)["noise_law"]) if text else result.output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stylegan_di.preflight.check", lambda *_, **__: None)
        assert [law(f"--precond={name}") for name in ("edm", "vp", "ve")] == ["lognormal", "vp", "ve"]
        assert law("--precond=vp", "--noise-law=lognormal:P_mean=0") == "lognormal:P_mean=0"
