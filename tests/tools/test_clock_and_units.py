"""The clock with a clock of our own; units against their definitions."""

import datetime
import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.tools.clock import clock_tool, utc_now, zone_of
from ayllu.tools.tool import Toolbox, ToolError
from ayllu.tools.units import _TABLE, UNIT_TOOL, UNITS, convert, unit_of

NO_ZONE = "error: there is no time zone {}; names are such as Europe/Berlin or UTC"
NOON = datetime.datetime(2024, 2, 29, 12, 0, tzinfo=datetime.UTC)


def clock(here="UTC", **arguments):
    return Toolbox([clock_tool(lambda: NOON, here)]).run("clock", json.dumps(arguments)).text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "Thursday 2024-02-29 12:00 UTC+00:00"),
        ({"zone": "Europe/Berlin"}, "Thursday 2024-02-29 13:00 UTC+01:00"),
        ({"zone": "berlin"}, "Thursday 2024-02-29 13:00 UTC+01:00"),
        ({"zone": "Asia/Kolkata"}, "Thursday 2024-02-29 17:30 UTC+05:30"),
        ({"zone": "Lima"}, "Thursday 2024-02-29 07:00 UTC-05:00"),
        ({"zone": "Los Angeles"}, "Thursday 2024-02-29 04:00 UTC-08:00"),
        ({"zone": "Atlantis"}, NO_ZONE.format("Atlantis")),
        ({"zone": "../etc/passwd"}, NO_ZONE.format("../etc/passwd")),
        ({"days": 1}, "Friday 2024-03-01"),
        ({"date": "2023-02-28", "days": 1}, "Wednesday 2023-03-01"),
        ({"date": "2024-03-01"}, "Friday 2024-03-01"),
        ({"date": "0999-12-31", "days": 1}, "Wednesday 1000-01-01"),
        ({"date": "1000-01-01", "days": -1}, "Tuesday 0999-12-31"),
        ({"until": "2024-03-01"}, "1 day"),
        ({"date": "2024-03-01", "until": "2023-03-01"}, "-366 days"),
        ({"date": "2024-02-30"}, "error: 2024-02-30 is no date; write it as 2024-02-28"),
        ({"days": -4_000_000}, "error: that is outside of the years 1 to 9999"),
        ({"days": 1, "until": "2024-03-01"}, "error: give either days or until"),
    ],
)  # fmt: skip
def test_clock(arguments, text):
    assert clock(**arguments) == text


def test_the_users_zone_and_the_machines_time():
    assert clock("Europe/Berlin") == "Thursday 2024-02-29 13:00 UTC+01:00"
    assert clock("Europe/Berlin", zone="UTC").endswith("12:00 UTC+00:00")
    assert abs(utc_now() - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    with pytest.raises(ToolError):
        zone_of("")


@pytest.mark.parametrize(
    ("value", "source", "target", "text"),
    [
        (1, "mile", "km", "1.609344 km"),
        (1, "in", "cm", "2.54 cm"),
        (100, "km/h", "m/s", "27.7777777778 m/s"),
        (1, "lb", "kg", "0.45359237 kg"),
        (1, "gal", "l", "3.785411784 l"),
        (1, "acre", "m2", "4046.8564224 m2"),
        (1, "mi2", "acre", "640 acre"),
        (1, "atm", "Pa", "101325 Pa"),
        (-40, "°C", "°F", "-40 °F"),
        (100, "celsius", "fahrenheit", "212 °F"),
        (0, "K", "C", "-273.15 °C"),
        (0.1, "m", "mm", "100 mm"),
        (3, "Stunden", "Minuten", "180 min"),
        (2, "Tage", "hours", "48 h"),
        (2, "kilometers", "Meile", "1.24274238447 mi"),
        (1, "kilowatt hour", "MJ", "3.6 MJ"),
        (1, "kWh", "MJ", "3.6 MJ"),
        (5, "గంట", "నిమిషాలు", "300 min"),
        (1, "GiB", "MB", "1073.741824 MB"),
        (1, "MW", "mW", "1000000000 mW"),
        (2, "cups", "floz", "16 floz"),
        (16, "bits", "bytes", "2 B"),
        (1, "kg", "m", "error: kg is mass, m is length"),
        (1, "KN", "N", "error: there is no unit KN"),
        (1e31, "m", "km", "error: the number is too large"),
    ],
)
def test_units(value, source, target, text):
    arguments = json.dumps({"value": value, "from": source, "to": target})
    assert Toolbox([UNIT_TOOL]).run("units", arguments).text == text


@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.fractions())
def test_there_and_back_is_exact(a, b, value):
    source, target = UNITS[a], UNITS[b]
    if source.measures == target.measures:
        assert convert(convert(value, source, target), target, source) == value
    else:
        with pytest.raises(ToolError):
            convert(value, source, target)


def test_no_symbol_means_two_things():
    for rows in _TABLE.values():
        for symbol, factor, names in rows:
            for name in (symbol.rstrip("*"), *names.split()):
                assert unit_of(name).factor == factor, name
    assert all(isinstance(unit.factor, Fraction) and unit.factor > 0 for unit in UNITS.values())
