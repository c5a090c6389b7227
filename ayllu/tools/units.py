"""The tool `units`: conversion of units, with factors that are exact.

Every factor is the definition itself as a fraction of the SI unit: the inch is 0.0254 m and the pound
0.45359237 kg (international yard and pound agreement, 1959), the US gallon 231 cubic inches, the standard
atmosphere 101325 Pa, the electronvolt 1.602176634e-19 J (BIPM, SI Brochure, 9th edition, 2019). A result is
rounded once, when it is written. What has no exact factor isn't here: a month, a year, a radian in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ayllu.tools.calculator import canonical
from ayllu.tools.tool import Tool, ToolError

F = Fraction
_INCH, _POUND, _GRAVITY = F("0.0254"), F("0.45359237"), F("9.80665")
_NONE = F(0)
_PREFIXES = {"n": F(1, 10**9), "µ": F(1, 10**6), "m": F(1, 1000), "c": F(1, 100), "k": F(1000), "M": F(10**6)}
_WORDS = {"nano": "n", "micro": "µ", "milli": "m", "centi": "c", "kilo": "k", "mega": "M"}


@dataclass(frozen=True)
class Unit:
    """A unit: what it measures; `value * factor + offset` is in SI units. `symbol` is how it is written."""

    symbol: str
    measures: str
    factor: Fraction
    offset: Fraction = _NONE


# what it measures: symbol, factor, further names (English, German, Telugu); a * takes the prefixes
_TABLE: dict[str, list[tuple[str, Fraction, str]]] = {
    "length": [
        ("m*", F(1), "meter metre మీటర్ మీటర్లు"),
        ("in", _INCH, "inch inches zoll"),
        ("ft", 12 * _INCH, "foot feet fuß fuss అడుగు అడుగులు"),
        ("yd", 36 * _INCH, "yard"),
        ("mi", 63360 * _INCH, "mile meile మైలు మైళ్లు"),
        ("nmi", F(1852), "nautical_mile seemeile"),
    ],
    "mass": [
        ("g*", F(1, 1000), "gram gramm gramme గ్రాము గ్రాములు"),
        ("t", F(1000), "tonne"),
        ("lb", _POUND, "lbs pound pfund_avdp"),
        ("oz", _POUND / 16, "ounce unze"),
        ("st", 14 * _POUND, "stone"),
    ],
    "time": [
        ("s*", F(1), "second sekunde sec సెకను"),
        ("min", F(60), "minute నిమిషం నిమిషాలు"),
        ("h", F(3600), "hour hr stunde గంట గంటలు"),
        ("d", F(86400), "day tag రోజు రోజులు"),
        ("wk", F(604800), "week woche వారం"),
    ],
    "area": [
        ("m2", F(1), "m² square_meter square_metre quadratmeter"),
        ("km2", F(10**6), "km² square_kilometer quadratkilometer"),
        ("cm2", F(1, 10**4), "cm² square_centimeter"),
        ("ha", F(10**4), "hectare hektar"),
        ("acre", 4840 * (36 * _INCH) ** 2, "acres"),
        ("ft2", (12 * _INCH) ** 2, "ft² sqft square_foot square_feet"),
        ("mi2", (63360 * _INCH) ** 2, "mi² square_mile"),
    ],
    "volume": [
        ("l*", F(1, 1000), "liter litre లీటర్ లీటర్లు"),
        ("m3", F(1), "m³ cubic_meter cubic_metre kubikmeter"),
        ("gal", 231 * _INCH**3, "gallon us_gallon"),
        ("impgal", F("0.00454609"), "imperial_gallon"),
        ("pt", 231 * _INCH**3 / 8, "pint us_pint"),
        ("cup", 231 * _INCH**3 / 16, "cup"),
        ("floz", 231 * _INCH**3 / 128, "fluid_ounce"),
    ],
    "speed": [
        ("m/s", F(1), "mps"),
        ("km/h", F(1000, 3600), "kmh kph"),
        ("mph", 63360 * _INCH / 3600, "mi/h"),
        ("kn", F(1852, 3600), "knot knoten"),
        ("ft/s", 12 * _INCH, "fps"),
    ],
    "pressure": [
        ("Pa*", F(1), "pascal"),
        ("hPa", F(100), "hectopascal"),
        ("bar", F(10**5), "bar"),
        ("mbar", F(100), "millibar"),
        ("atm", F(101325), "atmosphere atmosphäre"),
        ("psi", _POUND * _GRAVITY / _INCH**2, ""),
    ],
    "energy": [
        ("J*", F(1), "joule"),
        ("cal*", F("4.184"), "calorie kalorie"),
        ("Wh*", F(3600), "watt_hour wattstunde"),
        ("eV", F("1.602176634e-19"), "electronvolt"),
        ("BTU", F("1055.05585262"), ""),
    ],
    "power": [
        ("W*", F(1), "watt"),
        ("hp", 550 * 12 * _INCH * _POUND * _GRAVITY, "horsepower"),
        ("PS", 75 * _GRAVITY, "pferdestärke"),
    ],
    "force": [("N*", F(1), "newton"), ("lbf", _POUND * _GRAVITY, ""), ("kgf", _GRAVITY, "kilopond")],
    "angle": [
        ("deg", F(1), "° degree grad"),
        ("turn", F(360), "turn"),
        ("arcmin", F(1, 60), ""),
        ("gon", F(9, 10), ""),
    ],
    "data": [
        ("bit", F(1), "bit"),
        ("B", F(8), "byte"),
        ("kB", F(8 * 10**3), "kilobyte"),
        ("MB", F(8 * 10**6), "megabyte"),
        ("GB", F(8 * 10**9), "gigabyte"),
        ("TB", F(8 * 10**12), "terabyte"),
        ("KiB", F(8 * 2**10), "kibibyte"),
        ("MiB", F(8 * 2**20), "mebibyte"),
        ("GiB", F(8 * 2**30), "gibibyte"),
    ],
}


def _units() -> dict[str, Unit]:
    """Every name -> its unit. Symbols as they are; words in small letters, and as plurals."""
    found: dict[str, Unit] = {}
    for measures, rows in _TABLE.items():
        for symbol, factor, names in rows:
            bare = symbol.rstrip("*")
            prefixed = {"": (bare, factor)}
            if symbol.endswith("*"):
                prefixed |= {p: (p + bare, factor * size) for p, size in _PREFIXES.items()}
            for prefix, (name, value) in prefixed.items():
                unit = Unit(name, measures, value)
                found.setdefault(name, unit)
                word = next((w for w, p in _WORDS.items() if p == prefix), "")
                for other in names.split():
                    for spelt in (other, f"{other}s", f"{other}n", f"{other}e"):
                        found.setdefault(word + spelt, unit)
    kelvin, celsius = F(1), F("273.15")
    for symbol, factor, offset, names in (
        ("K", kelvin, F(0), "kelvin"),
        ("°C", F(1), celsius, "C degC celsius సెల్సియస్"),
        ("°F", F(5, 9), celsius - F(160, 9), "F degF fahrenheit ఫారెన్‌హీట్"),
    ):
        for name in (symbol, *names.split()):
            found[name] = Unit(symbol, "temperature", factor, offset)
    return found


UNITS = _units()


def unit_of(name: str) -> Unit:
    """The unit of a name. ToolError for others."""
    spelt = "_".join(name.split()).replace("μ", "µ")
    found = UNITS.get(spelt)
    if found is None and len(spelt) > 3:  # a word; in symbols MW and mW are not the same
        found = UNITS.get(spelt.lower()) or UNITS.get(spelt.casefold())
    if found is None:
        raise ToolError(f"there is no unit {name[:30]}")
    return found


def convert(value: Fraction, source: Unit, target: Unit) -> Fraction:
    """The exact value in `target`. ToolError where the two measure different things."""
    if source.measures != target.measures:
        raise ToolError(f"{source.symbol} is {source.measures}, {target.symbol} is {target.measures}")
    return (value * source.factor + source.offset - target.offset) / target.factor


def _run(arguments: dict[str, Any]) -> str:
    source, target = unit_of(arguments["from"]), unit_of(arguments["to"])
    value = arguments["value"]
    if abs(value) > 1e30 or value != value:
        raise ToolError("the number is too large")
    return f"{canonical(convert(F(repr(value)), source, target))} {target.symbol}"


UNIT_TOOL = Tool(
    name="units",
    description="Converts a value from one unit to another: length, mass, time, temperature, data and so on.",
    parameters={
        "type": "object",
        "properties": {
            "value": {"type": "number"},
            "from": {"type": "string", "maxLength": 30, "description": "such as km/h or mile"},
            "to": {"type": "string", "maxLength": 30},
        },
        "required": ["value", "from", "to"],
    },
    run=_run,
)
