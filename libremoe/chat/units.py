"""Units of one kind into each other, exactly: a short table, in English and French spellings.

Factors: the International System (BIPM, SI brochure, 9th edition) and, for customary units, NIST SP 811, appendix B.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from libremoe.chat.calculator import shown
from libremoe.errors import LibremoeError

# kind: {factor to the kind's first unit: spellings}
_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "1": "m metre meter mètre",
        "1000": "km kilometre kilometer kilomètre",
        "1/100": "cm centimetre centimeter centimètre",
        "1/1000": "mm millimetre millimeter millimètre",
        "1/1000000": "µm um micrometre micrometer micromètre",
        "1/1000000000": "nm nanometre nanometer nanomètre",
        "0.0254": "in inch inches pouce",
        "0.3048": "ft foot feet pied",
        "0.9144": "yd yard",
        "1609.344": "mi mile",
        "1852": "nmi nautical_mile mille_marin",
        "149597870700": "au astronomical_unit unité_astronomique",
        "9460730472580800": "ly light_year année-lumière",
    },
    "mass": {
        "1": "kg kilogram kilogramme",
        "1/1000": "g gram gramme",
        "1/1000000": "mg milligram milligramme",
        "1000": "t tonne",
        "0.45359237": "lb lbs pound livre",
        "0.028349523125": "oz ounce once",
        "6.35029318": "st stone",
    },
    "time": {
        "1": "s sec second seconde",
        "60": "min minute",
        "3600": "h hr hour heure",
        "86400": "d day jour",
        "604800": "week semaine",
        "1/1000": "ms millisecond milliseconde",
        "1/1000000": "µs us microsecond microseconde",
        "31557600": "yr year année",
    },
    "volume": {
        "1": "l L litre liter",
        "1/1000": "ml mL millilitre milliliter",
        "1/100": "cl cL centilitre centiliter",
        "1/10": "dl dL decilitre deciliter décilitre",
        "1000": "m3 m³ cubic_metre cubic_meter mètre_cube",
        "3.785411784": "gal gallon",
        "0.946352946": "qt quart",
        "0.473176473": "pt pint pinte",
        "0.2365882365": "cup tasse",
        "0.0295735295625": "floz fl_oz fluid_ounce",
    },
    "area": {
        "1": "m2 m² square_metre square_meter mètre_carré",
        "1000000": "km2 km² square_kilometre square_kilometer kilomètre_carré",
        "1/10000": "cm2 cm² square_centimetre centimètre_carré",
        "10000": "ha hectare",
        "4046.8564224": "acre",
        "0.09290304": "ft2 sqft square_foot square_feet",
        "2589988.110336": "mi2 square_mile",
    },
    "speed": {
        "1": "m/s metres_per_second meters_per_second",
        "5/18": "km/h kmh kph kilometres_per_hour kilometers_per_hour kilomètre/heure",
        "0.44704": "mph mi/h miles_per_hour",
        "463/900": "kn knot nœud noeud",
        "0.3048": "ft/s fps",
    },
    "data": {
        "1": "B byte octet",
        "1/8": "bit",
        "1000": "kB kilobyte kilooctet ko",
        "1000000": "MB megabyte mégaoctet Mo",
        "1000000000": "GB gigabyte gigaoctet Go",
        "1000000000000": "TB terabyte téraoctet To",
        "1024": "KiB kibibyte",
        "1048576": "MiB mebibyte",
        "1073741824": "GiB gibibyte",
        "1099511627776": "TiB tebibyte",
    },
    "energy": {
        "1": "J joule",
        "1000": "kJ kilojoule",
        "3600": "Wh watt-hour wattheure",
        "3600000": "kWh kilowatt-hour kilowattheure",
        "4.184": "cal calorie",
        "4184": "kcal kilocalorie",
    },
    "power": {
        "1": "W watt",
        "1000": "kW kilowatt",
        "1000000": "MW megawatt mégawatt",
        "745.69987158227022": "hp horsepower",
    },
    "pressure": {
        "1": "Pa pascal",
        "100": "hPa hectopascal mbar",
        "1000": "kPa kilopascal",
        "100000": "bar",
        "101325": "atm atmosphere atmosphère",
        "6894.757293168": "psi",
        "133.322387415": "mmHg",
    },
}
# (factor, offset) to kelvin
_TEMPERATURES = {name: (Fraction(factor), Fraction(offset)) for names, factor, offset in (
    ("K kelvin", "1", "0"), ("C °C celsius degC centigrade", "1", "273.15"),
    ("F °F fahrenheit degF", "5/9", "45967/180")) for name in names.split()}


def _spellings() -> Mapping[str, tuple[str, Fraction]]:
    return {name: (kind, Fraction(factor)) for kind, units in _TABLE.items() for factor, names in units.items()
            for name in names.split()}


_UNITS = _spellings()
_SMALL = {name.lower(): unit for name, unit in _UNITS.items()}


def convert(value: Fraction, unit: str, to: str) -> str:
    """`3 km` in `miles` as "1.86411357671 miles". Raises LibremoeError: an unknown unit, or two kinds."""
    if (start := _temperature(unit)) is not None and (end := _temperature(to)) is not None:
        kelvin = value * start[0] + start[1]
        return f"{shown((kelvin - end[1]) / end[0])} {to.strip()}"
    (kind, factor), (other, to_factor) = _find(unit), _find(to)
    if kind != other:
        raise LibremoeError(f"{unit.strip()} is a {kind}, {to.strip()} a {other}: they cannot be converted")
    return f"{shown(value * factor / to_factor)} {to.strip()}"


def _temperature(name: str) -> tuple[Fraction, Fraction] | None:
    text = name.strip().removeprefix("degrees ").removeprefix("degré ").removeprefix("degrés ")
    return _TEMPERATURES.get(text) or _TEMPERATURES.get(text.lower())


def _find(name: str) -> tuple[str, Fraction]:
    """The exact spelling first (mb is no MB), then without its plural s, then in small letters."""
    text = name.strip().rstrip(".").replace(" ", "_")
    for spelling in (text, text.removesuffix("s"), text.replace("s_", "_").removesuffix("s")):
        if spelling in _UNITS:
            return _UNITS[spelling]
    for spelling in (text.lower(), text.lower().removesuffix("s"), text.lower().removesuffix("es")):
        if spelling in _SMALL and len(spelling) > 2:
            return _SMALL[spelling]
    raise LibremoeError(f"the unit {name.strip()[:40]!r} is not known here")
