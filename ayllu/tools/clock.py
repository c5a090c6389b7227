"""The tool `clock`: what time it is, here or elsewhere, and counting in days (proleptic Gregorian calendar).

    {}                                            the time now, in UTC or the zone that the user gave
    {"zone":"Europe/Berlin"} {"zone":"Lima"}      there: a name of the IANA time zone database, or its city
    {"date":"2024-02-28","days":2}                a date so many days later or earlier
    {"date":"2024-02-28","until":"2024-03-01"}    days from one date to another

The time comes from a function that the caller gives, so that a conversation can be repeated.
"""

from __future__ import annotations

import datetime
import functools
import zoneinfo
from collections.abc import Callable
from typing import Any

from ayllu.tools.tool import Tool, ToolError

MAX_DAYS = 4_000_000
Now = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """This machine's time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of a name or of a city that the database names. ToolError for others."""
    wanted = "_".join(name.split())
    known = _zones()
    if not known:
        raise ToolError("this machine has no time zones (its package is called tzdata)")
    found = known.get(wanted.casefold())
    if found is None:
        raise ToolError(f"there is no time zone {name[:40]}; names are such as Europe/Berlin or UTC")
    return zoneinfo.ZoneInfo(found)


@functools.cache
def _zones() -> dict[str, str]:
    """Names and cities in small letters -> names."""
    names = sorted(zoneinfo.available_timezones())
    cities = {name.rpartition("/")[2].casefold(): name for name in names if not name.startswith("Etc/")}
    return cities | {name.casefold(): name for name in names}


def told(moment: datetime.datetime) -> str:
    """`Wednesday 2026-11-25 01:31 UTC+01:00`."""
    offset = moment.strftime("%z")
    return f"{moment:%A %Y-%m-%d %H:%M} UTC{offset[:3]}:{offset[3:5]}"


def clock_tool(now: Now = utc_now, zone: str = "UTC") -> Tool:
    """The tool `clock`; `zone` is where the user is."""

    def run(arguments: dict[str, Any]) -> str:
        here = arguments.get("zone", zone)
        moment = now().astimezone(datetime.UTC if here == "UTC" else zone_of(here))
        if not arguments.keys() & {"date", "days", "until"}:
            return told(moment)
        start = _date(arguments["date"]) if "date" in arguments else moment.date()
        if "days" in arguments and "until" in arguments:
            raise ToolError("give either days or until")
        if "until" in arguments:
            days = (_date(arguments["until"]) - start).days
            return f"{days} day{'s' * (abs(days) != 1)}"
        try:
            day = start + datetime.timedelta(days=arguments.get("days", 0))
        except OverflowError:
            raise ToolError("that is outside of the years 1 to 9999") from None
        return f"{day:%A} {day.isoformat()}"  # %Y has no leading zeros here

    date = {"type": "string", "maxLength": 10, "description": "such as 2024-02-28"}
    return Tool(
        name="clock",
        description="The time and date now, in a time zone; a date some days later; days between dates.",
        parameters={
            "type": "object",
            "properties": {
                "zone": {"type": "string", "maxLength": 40, "description": "such as Europe/Berlin"},
                "date": date,
                "days": {"type": "integer", "minimum": -MAX_DAYS, "maximum": MAX_DAYS},
                "until": date,
            },
        },
        run=run,
        varies=True,
    )


def _date(text: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise ToolError(f"{text} is no date; write it as 2024-02-28") from None
