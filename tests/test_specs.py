"""'sid:alpha=1.2' on the command line and the dataclass that it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import pytest

from stylegan_di.diffusion import NOISE_LAWS, KarrasLaw, LogNormalLaw, VPLaw
from stylegan_di.divergences import DIVERGENCES, IKL, SIM, RealUID, SiD
from stylegan_di.dnnlib.util import UserError, did_you_mean
from stylegan_di.specs import (
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    number,
    parse,
    parse_sum,
    usage,
)


@dataclass(frozen=True)
class Wheel:
    size: float = number(1.5, Range(0, 10, open_low=True))
    spokes: int = number(12, POSITIVE)
    colour: Literal["red", "green"] = "red"


@dataclass(frozen=True)
class Bell:
    pass


PARTS: dict[str, type[Any]] = {"wheel": Wheel, "bell": Bell}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("wheel", Wheel()),
        ("wheel:size=2", Wheel(2.0)),
        ("wheel:size=1e-3,spokes=7,colour=green", Wheel(0.001, 7, "green")),
        ("wheel:colour=green,size=10", Wheel(10.0, colour="green")),
        ("bell", Bell()),
    ],
)
def test_specs_are_parsed(text: str, value: object) -> None:
    found = parse(text, PARTS, "--part")
    assert found == value
    if isinstance(found, Wheel):
        assert (type(found.size), type(found.spokes)) == (float, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--part=: there is no ''; accepted: wheel, bell"),
        ("whel", "--part=whel: there is no 'whel'; accepted: wheel, bell; did you mean wheel?"),
        ("tyre", "--part=tyre: there is no 'tyre'; accepted: wheel, bell"),
        ("wheel:sise=1",
         "--part=wheel:sise=1: 'wheel' has no field 'sise'; accepted: size, spokes, colour; did you mean size?"),
        ("bell:size=1", "--part=bell:size=1: 'bell' has no field 'size'; it has no fields"),
        ("wheel:", "--part=wheel:: 'wheel' has no field ''; accepted: size, spokes, colour"),
        ("wheel:size=2,", "--part=wheel:size=2,: 'wheel' has no field ''; accepted: size, spokes, colour"),
        ("wheel:size=1,size=2", "--part=wheel:size=1,size=2: 'size' is given twice; give it once"),
        ("wheel:size=\u0663",
         "--part=wheel:size=\u0663: size=\u0663; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:size=1_0", "--part=wheel:size=1_0: size=1_0; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:size=0",
         "--part=wheel:size=0: size=0; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:size=big",
         "--part=wheel:size=big: size=big; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:size", "--part=wheel:size: 'size' has no value; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:size=", "--part=wheel:size=: size=; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:colour", "--part=wheel:colour: 'colour' has no value; accepted: red, green"),
        ("wheel:size=nan", "--part=wheel:size=nan: size=nan; accepted: a number above 0 to 10, such as size=1.5"),
        ("wheel:spokes=inf",
         "--part=wheel:spokes=inf: spokes=inf; accepted: a number above 0 that is whole, such as spokes=12"),
        ("wheel:spokes=1.5",
         "--part=wheel:spokes=1.5: spokes=1.5; accepted: a number above 0 that is whole, such as spokes=12"),
        ("wheel:colour=rad",
         "--part=wheel:colour=rad: colour=rad; accepted: red, green; did you mean red?"),
        ("wheel:colour=blue", "--part=wheel:colour=blue: colour=blue; accepted: red, green"),
    ],
)  # fmt: skip
def test_refusals_name_the_option_the_value_and_what_is_accepted(text: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse(text, PARTS, "--part")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("bell", [(1.0, Bell())]),
        ("0.5*wheel", [(0.5, Wheel())]),
        ("bell+1e-3*wheel:size=3,spokes=7+2*bell", [(1.0, Bell()), (0.001, Wheel(3.0, 7)), (2.0, Bell())]),
    ],
)
def test_sums_are_parsed(text: str, terms: list[tuple[float, object]]) -> None:
    assert parse_sum(text, PARTS, "--part") == terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bell+", "--part=bell+: there is no ''; accepted: wheel, bell"),
        ("0*bell", "--part=0*bell: the weight '0' is not a number above 0, such as 0.5*bell"),
        ("bell+-1*wheel", "--part=bell+-1*wheel: the weight '-1' is not a number above 0, such as 0.5*wheel"),
        ("x*bell", "--part=x*bell: the weight 'x' is not a number above 0, such as 0.5*bell"),
        ("inf*bell", "--part=inf*bell: the weight 'inf' is not a number above 0, such as 0.5*bell"),
        ("*bell", "--part=*bell: the weight '' is not a number above 0, such as 0.5*bell"),
        ("bell+whel", "--part=bell+whel: there is no 'whel'; accepted: wheel, bell; did you mean wheel?"),
    ],
)
def test_refusals_of_sums(text: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_sum(text, PARTS, "--part")
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("accepted", "inside", "outside", "text"),
    [
        (FINITE, [-1e30, 0, 5], [math.inf, -math.inf, math.nan], "a finite number"),
        (POSITIVE, [1e-30, 5], [0, -1, math.inf, math.nan], "a number above 0"),
        (NOT_NEGATIVE, [0, 5], [-1e-30, math.inf], "a number from 0 on"),
        (SHARE, [0, 0.5, 1], [-0.1, 1.1, math.nan], "a number from 0 to 1"),
        (Range(0, 1, open_low=True), [0.1, 1], [0, 2], "a number above 0 to 1"),
        (Range(0, 1, open_high=True), [0, 0.9], [1, -1], "a number from 0 to below 1"),
        (Range(0, 1, open_low=True, open_high=True), [0.5], [0, 1], "a number above 0 to below 1"),
    ],
)
def test_ranges(accepted: Range, inside: list[float], outside: list[float], text: str) -> None:
    assert all(value in accepted for value in inside)
    assert not any(value in accepted for value in outside)
    assert str(accepted) == text


def test_suggestions_are_made_only_for_what_is_close() -> None:
    assert did_you_mean("sidd", ["ikl", "sid", "sim"]) == "; did you mean sid?"
    assert did_you_mean("photograph", ["ikl", "sid", "sim"]) == ""


def test_usage_lists_names_fields_and_defaults() -> None:
    assert usage(PARTS) == "wheel:size=1.5,spokes=12,colour=red; bell"


@pytest.mark.parametrize(
    ("text", "value", "table"),
    [
        ("ikl", IKL(), DIVERGENCES),
        ("ikl:weight=dmd,f=js", IKL("dmd", "js"), DIVERGENCES),
        ("ikl:f=js,clip=5.0", IKL(f="js", clip=5.0), DIVERGENCES),
        ("sid:alpha=1.2", SiD(1.2), DIVERGENCES),
        ("sim:c=0.1", SIM(0.1), DIVERGENCES),
        ("realuid:alpha=0.9", RealUID(0.9), DIVERGENCES),
        ("lognormal:P_mean=-0.4", LogNormalLaw(-0.4), NOISE_LAWS),
        ("karras:t_max=0.8", KarrasLaw(t_max=0.8), NOISE_LAWS),
        ("vp", VPLaw(), NOISE_LAWS),
        ("wheel:spokes=7", Wheel(spokes=7), PARTS),
    ],
)
def test_specs_of_the_tables(text: str, value: object, table: dict[str, type[Any]]) -> None:
    assert parse(text, table, "--option") == value


ENTRIES = [(name, cls, table) for table in (DIVERGENCES, NOISE_LAWS, PARTS) for name, cls in table.items()]


def written(name: str, value: Any) -> str:
    """A value as its spec, with all of its fields."""
    return f"{name}:" + ",".join(f"{field.name}={getattr(value, field.name)}" for field in fields(value))


def changed(value: Any) -> list[Any]:
    """The same with each of its fields at another accepted value."""
    types, others = get_type_hints(type(value)), []
    for field in fields(value):
        if get_args(types[field.name]):
            others += [replace(value, **{field.name: choice}) for choice in get_args(types[field.name])]
        else:
            accepted = field.metadata.get("range", FINITE)
            default: Any = field.default
            near = [type(default)(default * factor) for factor in (0.5, 2, 3)]
            base = replace(value, f="js") if field.name == "clip" else value  # which has no effect without f
            others.append(replace(base, **{field.name: next(x for x in near if x in accepted and x != default)}))
    return others


@pytest.mark.parametrize(("name", "cls", "table"), ENTRIES, ids=lambda part: part if isinstance(part, str) else "")
def test_every_entry_of_the_tables_is_parsed_from_its_fields(name: str, cls: type[Any], table: dict[str, Any]) -> None:
    assert is_dataclass(cls)
    value = parse(name, table, "--option")
    assert value == cls()
    others = changed(value)
    assert bool(others) == bool(fields(cls))
    for other in others:
        assert parse(written(name, other), table, "--option") == other


@pytest.mark.parametrize(("name", "cls", "table"), ENTRIES, ids=lambda part: part if isinstance(part, str) else "")
def test_every_default_is_accepted(name: str, cls: type[Any], table: dict[str, Any]) -> None:
    given = ",".join(f"{field.name}={field.default}" for field in fields(cls))
    assert parse(f"{name}:{given}" if given else name, table, "--option") == cls()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sidd", "--divergence=sidd: there is no 'sidd'; accepted: ikl, sid, sim, fisher, realuid; did you mean sid?"),
        ("ikl:alpha=1", "--divergence=ikl:alpha=1: 'ikl' has no field 'alpha'; accepted: weight, f, clip"),
        ("ikl:weight=two", "--divergence=ikl:weight=two: weight=two; accepted: sigma2, one, dmd"),
        ("ikl:clip=1", "--divergence=ikl:clip=1: clip=1; accepted: a number above 1, such as clip=10"),
        ("sid:alpha=nan", "--divergence=sid:alpha=nan: alpha=nan; accepted: a number from 0 to 10, such as alpha=1"),
        ("sid:alpha=", "--divergence=sid:alpha=: alpha=; accepted: a number from 0 to 10, such as alpha=1"),
        ("sim:c=0", "--divergence=sim:c=0: c=0; accepted: a number above 0, such as c=0.03"),
        ("fisher:weight=sigma",
         "--divergence=fisher:weight=sigma: weight=sigma; accepted: sigma4, sigma2, one; did you mean sigma4?"),
        ("realuid:alpha=1.02",
         "--divergence=realuid:alpha=1.02: alpha=1.02; accepted: a number above 0 to 1, such as alpha=0.94"),
    ],
)  # fmt: skip
def test_refusals_of_divergences(text: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse(text, DIVERGENCES, "--divergence")
    assert str(refusal.value) == message
