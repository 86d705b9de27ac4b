"""When recurring tasks fall due; above all where clocks change: in each zone, at each change."""

import time
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from itertools import pairwise
from zoneinfo import TZPATH, ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_scheduler.constants import DstFold, DstGap
from job_scheduler.core.cron import Cron
from job_scheduler.core.cron_fields import InvalidCron
from job_scheduler.core.rhythm import (
    CronRhythm,
    IntervalRhythm,
    Rhythm,
    UnknownZone,
    after_gap,
    load_zone,
    local_instants,
    zone_names,
)
from tests.support.cron_by_hand import DAY, HOURS, LINES, MINUTE, MINUTES, at, occurrences, utc

HOUR, TICK = timedelta(hours=1), timedelta(microseconds=1)


@cache
def rhythm(line: str, zone: str, gap: str = "shift", fold: str = "first") -> CronRhythm:
    """A line's rhythm."""
    return CronRhythm(Cron.parse(line), load_zone(zone), DstGap(gap), DstFold(fold))


def between(rhythm: Rhythm, start: datetime, end: datetime) -> list[datetime]:
    """The occurrences from one instant on and before another, found forwards and backwards."""
    forward, moment = [], rhythm.first_after(start - TICK)
    while moment is not None and moment < end:
        forward.append(moment)
        moment = rhythm.first_after(moment)
    backward, moment = [], rhythm.last_until(end - TICK)
    while moment is not None and moment >= start:
        backward.append(moment)
        moment = rhythm.last_until(moment - TICK)
    assert forward == backward[::-1]
    assert all(each.tzinfo is UTC for each in forward)
    return forward


# ----------------------------------------------------------------------------- known changes

KNOWN = {
    # put forward from 02:00 to 03:00
    ("30 2 * * *", "Europe/Berlin", "shift", "first"): (
        "2026-03-28",
        "2026-03-28T01:30 2026-03-29T01:00 2026-03-30T00:30",
    ),
    ("30 2 * * *", "Europe/Berlin", "skip", "first"): (
        "2026-03-28",
        "2026-03-28T01:30 2026-03-30T00:30 2026-03-31T00:30",
    ),
    ("0,15,30 2-3 * * *", "Europe/Berlin", "shift", "first"): (
        "2026-03-29",
        "2026-03-29T01:00 2026-03-29T01:15 2026-03-29T01:30 2026-03-30T00:00",
    ),
    ("*/30 2 * * *", "Europe/Berlin", "shift", "first"): (
        "2026-03-28T12:00",
        "2026-03-30T00:00 2026-03-30T00:30",
    ),
    # put back from 03:00 to 02:00
    ("30 2 * * *", "Europe/Berlin", "shift", "first "): (
        "2026-10-24",
        "2026-10-24T00:30 2026-10-25T00:30 2026-10-26T01:30",
    ),
    ("30 2 * * *", "Europe/Berlin", "shift", "second"): (
        "2026-10-24",
        "2026-10-24T00:30 2026-10-25T01:30 2026-10-26T01:30",
    ),
    ("0,30 2 * * *", "Europe/Berlin", "shift", "both"): (
        "2026-10-25",
        "2026-10-25T00:00 2026-10-25T00:30 2026-10-25T01:00 2026-10-25T01:30 2026-10-26T01:00",
    ),
    ("*/30 2 * * *", "Europe/Berlin", "skip", "first"): (
        "2026-10-25",
        "2026-10-25T00:00 2026-10-25T00:30 2026-10-25T01:00 2026-10-25T01:30 2026-10-26T01:00",
    ),
    ("0 * * * *", "Europe/Berlin", "skip", "first"): (
        "2026-10-25",
        "2026-10-25T00:00 2026-10-25T01:00 2026-10-25T02:00",
    ),
    # 30 minutes
    ("15 2 * * *", "Australia/Lord_Howe", "shift", "first"): (
        "2026-10-03",
        "2026-10-03T15:30 2026-10-04T15:15",
    ),
    ("45 1 * * *", "Australia/Lord_Howe", "shift", "both"): (
        "2026-04-04",
        "2026-04-04T14:45 2026-04-04T15:15 2026-04-05T15:15",
    ),
    # 30 December did not exist
    ("0 9 * * *", "Pacific/Apia", "shift", "first"): (
        "2011-12-29T12:00",
        "2011-12-29T19:00 2011-12-30T10:00 2011-12-30T19:00",
    ),
    ("0 9 * * *", "Pacific/Apia", "skip", "first"): (
        "2011-12-29T12:00",
        "2011-12-29T19:00 2011-12-30T19:00 2011-12-31T19:00",
    ),
    ("*/30 * * * *", "Pacific/Apia", "shift", "first"): (
        "2011-12-30T09:30",
        "2011-12-30T09:30 2011-12-30T10:00 2011-12-30T10:30",
    ),
    # no midnight
    ("0 0 * * *", "America/Santiago", "shift", "first"): (
        "2026-09-05",
        "2026-09-05T04:00 2026-09-06T04:00 2026-09-07T03:00",
    ),
    ("0 0 * * *", "America/Sao_Paulo", "shift", "first"): (
        "2018-11-03",
        "2018-11-03T03:00 2018-11-04T03:00 2018-11-05T02:00",
    ),
    # the day's last hour; a day later, then
    ("30 23 * * *", "America/Nuuk", "shift", "first"): (
        "2026-03-28",
        "2026-03-28T01:30 2026-03-29T01:00 2026-03-30T00:30",
    ),
    # for the month of Ramadan, and winter time as the exception
    ("30 2 * * *", "Africa/Casablanca", "shift", "first"): (
        "2026-02-14",
        "2026-02-14T01:30 2026-02-15T01:30 2026-02-16T02:30",
    ),
    ("30 1 * * *", "Europe/Dublin", "shift", "second"): (
        "2026-10-24",
        "2026-10-24T00:30 2026-10-25T01:30 2026-10-26T01:30",
    ),
    ("30 1 * * *", "Europe/Dublin", "shift", "first"): (
        "2026-03-28",
        "2026-03-28T01:30 2026-03-29T01:00 2026-03-30T00:30",
    ),
    # other standard times: forward, and back
    ("15 0 * * *", "Asia/Pyongyang", "shift", "first"): (
        "2018-05-03T14:00",
        "2018-05-03T15:45 2018-05-04T15:15",
    ),
    ("45 23 * * *", "Asia/Pyongyang", "shift", "both"): (
        "2015-08-14",
        "2015-08-14T14:45 2015-08-14T15:15 2015-08-15T15:15",
    ),
    ("0 0 29 2 *", "America/New_York", "shift", "first"): (
        "2026-01-01",
        "2028-02-29T05:00 2032-02-29T05:00",
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_clocks_that_change_are_followed_as_is_known(case: tuple[str, str, str, str]) -> None:
    line, zone, gap, fold = (each.strip() for each in case)
    start, expected = KNOWN[case]
    instants = [utc(text) for text in expected.split()]
    assert between(rhythm(line, zone, gap, fold), utc(start), instants[-1] + TICK) == instants


# -------------------------------------------------------------------- each change of each zone

Change = tuple[datetime, timedelta, timedelta]


def offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    """What a zone's clocks are ahead of UTC."""
    ahead = moment.astimezone(zone).utcoffset()
    assert ahead is not None
    return ahead


@cache
def zones() -> dict[str, ZoneInfo]:
    """The zones, those that are others under another name left out."""
    data = files("tzdata").joinpath("zoneinfo")
    by_rules = {data.joinpath(*name.split("/")).read_bytes(): name for name in sorted(zone_names())}
    return {name: load_zone(name) for name in by_rules.values()}


@cache
def changes(zone: ZoneInfo) -> list[Change]:
    """When its clocks change from 2000 to 2040, and the offsets before and after."""
    found = []
    moment = utc("2000-01-01")
    before = offset(moment, zone)
    while moment < utc("2040-01-01"):
        following = moment + 5 * DAY  # no zone's clocks change twice within
        after = offset(following, zone)
        if after != before:
            early, late = moment, following
            while late - early > timedelta(seconds=1):
                middle = (early + (late - early) / 2).replace(microsecond=0)
                early, late = (middle, late) if offset(middle, zone) == before else (early, middle)
            found.append((late, before, after))
        moment, before = following, after
    return found


def test_every_zone_has_its_changes() -> None:
    assert len(zones()) > 300
    assert sum(len(changes(zone)) for zone in zones().values()) > 5_000


def test_each_change_of_each_zone_is_followed() -> None:
    for name, zone in zones().items():
        for number, (change, before, after) in enumerate(changes(zone)):
            wall = (change + (before + after) / 2).replace(tzinfo=None, second=0)
            line = f"{wall.minute} {wall.hour} * * *"
            previous = (wall - DAY - before).replace(tzinfo=UTC)
            following = (wall + DAY - after).replace(tzinfo=UTC)
            first, second = (wall - each for each in (before, after))
            first, second = first.replace(tzinfo=UTC), second.replace(tzinfo=UTC)
            if after > before:
                assert local_instants(wall, zone) == []
                assert after_gap(wall, zone) == change
                expected = {("shift", "first"): [change]}
                expected |= {("skip", "first"): []} if number % 4 < 2 else {}
            else:
                assert local_instants(wall, zone) == [first, second]
                passes = {"first": [first], "second": [second], "both": [first, second]}
                fold = ("first", "first", "second", "both")[number // 2 % 4]
                expected = {("shift", fold): passes[fold]}
            for (gap, fold), on_the_day in expected.items():
                found, chain = rhythm(line, name, gap, fold), [*on_the_day, following]
                for earlier, later in pairwise([previous, *chain]):
                    assert found.first_after(earlier) == later, (name, change, gap, fold)
                assert found.last_until(following - TICK) == [previous, *on_the_day][-1], name


def test_elapsed_time_has_no_pause_and_no_double_at_any_change() -> None:
    for name, zone in zones().items():
        for change, before, after in changes(zone)[-2:]:
            begin = change - 2 * HOUR
            instants = [begin + n * MINUTE for n in range(240)]
            minutes = [(each, each.astimezone(zone)) for each in instants]
            quarters = [each for each, shown in minutes if shown.minute % 15 == 0]
            found = between(rhythm("*/15 * * * *", name), begin, begin + 4 * HOUR)
            assert found == quarters, (name, change)
            if (after - before) % timedelta(minutes=15) == timedelta(0):
                assert {b - a for a, b in pairwise(found)} == {15 * MINUTE}


@pytest.mark.parametrize(
    ("zone", "line", "start", "end"),
    [
        ("America/Santiago", "0 0 * * *", date(2017, 1, 1), date(2020, 1, 1)),
        ("Europe/Berlin", "30 2 * * *", date(2024, 1, 1), date(2027, 1, 1)),
        ("Australia/Lord_Howe", "15 2 * * *", date(2024, 1, 1), date(2027, 1, 1)),
        ("Africa/Casablanca", "30 2 * * *", date(2024, 1, 1), date(2027, 1, 1)),
    ],
)
def test_each_local_day_has_one_occurrence(zone: str, line: str, start: date, end: date) -> None:
    moment, days = rhythm(line, zone).first_after(local(start, zone)), []
    while moment is not None and (day := moment.astimezone(load_zone(zone)).date()) < end:
        days.append(day)
        moment = rhythm(line, zone).first_after(moment)
    assert days == [start + n * DAY for n in range((end - start).days)]


def local(day: date, zone: str) -> datetime:
    """The instant before a local day begins."""
    return datetime(day.year, day.month, day.day, tzinfo=load_zone(zone)).astimezone(UTC) - TICK


# ------------------------------------------------------------------------ against the dumb way

ODD = [
    *("Europe/Berlin", "Europe/Dublin", "Australia/Lord_Howe", "Pacific/Apia", "America/Santiago"),
    *("Africa/Casablanca", "America/Nuuk", "Asia/Pyongyang", "America/Caracas", "Asia/Gaza"),
]
NEAR = st.tuples(MINUTES, HOURS, st.just("* * *")).map(" ".join)


@settings(deadline=None)  # thousands of minutes are looked at
@given(
    LINES | NEAR, st.sampled_from(ODD), st.sampled_from(DstGap), st.sampled_from(DstFold), st.data()
)
def test_any_line_falls_due_around_a_change_as_by_hand(
    line: str, name: str, gap: DstGap, fold: DstFold, data: st.DataObject
) -> None:
    try:
        cron = Cron.parse(line)
    except InvalidCron:
        return
    zone = load_zone(name)
    greatest = max(changes(zone), key=lambda each: abs(each[2] - each[1]))
    change, *_ = data.draw(st.sampled_from([greatest, *changes(zone)[-6:]]))
    day = change.astimezone(zone).date() - 2 * DAY
    by_hand = occurrences(line, zone, day, 5, gap=gap, fold=fold)
    found = CronRhythm(cron, zone, gap, fold)
    # The days before and after may shift something into these, or out of them.
    start, end = (utc((day + n * DAY).isoformat()) for n in (1, 4))
    moment = start + data.draw(st.integers(0, 3 * 86_400 * 10)) * timedelta(seconds=0.1)
    after, until = found.first_after(moment), found.last_until(moment)
    assert after == next((each for each in by_hand if each > moment), after)
    assert after is None or after > moment
    assert until == next((each for each in by_hand[::-1] if each <= moment), until)
    assert until is not None
    assert until <= moment
    assert found.last_until(until) == until
    assert found.first_after(until) == after
    if len(by_hand) < 300:
        assert between(found, start, end) == [each for each in by_hand if start <= each < end]


def test_offset_of_seconds_is_kept() -> None:
    found = rhythm("0 0 * * *", "Africa/Monrovia")  # 44 minutes and 30 seconds behind, until 1972
    assert found.first_after(utc("1970-01-01T12:00")) == utc("1970-01-02T00:44:30")
    assert rhythm("* * * * *", "Africa/Monrovia").last_until(utc("1970-01-01T12:00")) == utc(
        "1970-01-01T11:59:30"
    )


def test_time_that_never_exists_is_not_sought_for_ever() -> None:
    found = rhythm("30 2 * 3 0L", "Europe/Berlin", "skip")
    begin = time.perf_counter()
    assert found.first_after(utc("2026-01-01")) is None
    assert found.last_until(utc("2200-01-01")) is None
    assert found.last_until(utc("2026-01-01")) == utc("1980-03-30T01:30")  # the change was at 02:00
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_time_ends_where_the_years_do(zone: str) -> None:
    found = rhythm("*/5 * * * *", zone)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert found.first_after(last) is None
    assert found.last_until(first) is None
    after, until = found.first_after(first), found.last_until(last)
    assert after is not None
    assert until is not None
    assert (after.year, until.year) == (2, 9999)


# ---------------------------------------------------------------------------------- intervals


def test_interval_counts_from_its_anchor_which_is_the_first() -> None:
    anchor = utc("2026-01-01T00:00:00.000001")
    found = IntervalRhythm(0.1, anchor)
    assert found.first_after(utc("1970-01-01")) == anchor
    assert found.last_until(anchor - TICK) is None
    assert found.last_until(anchor) == anchor
    assert found.first_after(anchor) == anchor + timedelta(seconds=0.1)
    later = utc("2126-01-01")
    assert found.first_after(later) == later + TICK  # nothing has drifted in a hundred years
    assert found.last_until(later) == later + TICK - timedelta(seconds=0.1)


@given(
    st.integers(1, 10**13),
    st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - made aware below
    st.integers(0, 10**15),
)
def test_interval_has_the_multiples_and_no_others(step: int, start: datetime, apart: int) -> None:
    anchor = start.replace(tzinfo=UTC)
    found = IntervalRhythm(step / 1e6, anchor)
    moment = anchor + apart * TICK
    after, until = found.first_after(moment), found.last_until(moment)
    assert until is not None
    assert after is not None
    assert until <= moment < after == until + step * TICK
    assert (until - anchor) % (step * TICK) == timedelta(0)


def test_interval_ends_where_the_years_do() -> None:
    found = IntervalRhythm(86_400, utc("2026-01-01"))
    assert found.first_after(utc("9999-12-31T12:00")) is None


@pytest.mark.parametrize("seconds", [0, -1, 1e-7, float("nan")])
def test_interval_without_length_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"a microsecond at least|NaN"):
        IntervalRhythm(seconds, utc("2026-01-01"))


# -------------------------------------------------------------------------------------- zones


def test_local_time_becomes_instants() -> None:
    zone = load_zone("Europe/Berlin")
    assert local_instants(at("2026-07-01T12:00"), zone) == [utc("2026-07-01T10:00")]
    assert local_instants(at("2026-03-29T02:30"), zone) == []
    assert after_gap(at("2026-03-29T02:30"), zone) == utc("2026-03-29T01:00")
    assert after_gap(at("2026-03-29T02:00:00.000001"), zone) == utc("2026-03-29T01:00")
    assert local_instants(at("2026-03-29T03:00"), zone) == [utc("2026-03-29T01:00")]
    twice = [utc("2026-10-25T00:00:00.5"), utc("2026-10-25T01:00:00.5")]
    assert local_instants(at("2026-10-25T02:00:00.5"), zone) == twice


@pytest.mark.parametrize("name", sorted(zone_names()))
def test_every_zone_is_there(name: str) -> None:
    assert load_zone(name).key == name
    assert load_zone(name) is load_zone(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "'' is no time zone; write a name like Europe/Berlin, or UTC"),
        ("europe/berlin", "did you mean Europe/Berlin"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("New York", "did you mean America/New_York?"),
        ("Etc/GMT+15", "did you mean Etc/GMT+5 or "),
        ("utc", "did you mean UTC"),
        ("Factory", "'Factory' is no time zone"),
        ("localtime", "'localtime' is no time zone"),
        ("posixrules", "'posixrules' is no time zone"),
        ("posix/Europe/Berlin", "is no time zone"),
        ("../zoneinfo/Europe/Berlin", "is no time zone"),
        ("/etc/passwd", "is no time zone"),
        (f"{TZPATH[0]}/Europe/Berlin", "is no time zone"),
        ("Europe", "'Europe' is no time zone"),
        ("Europe/Berlin\0", "is no time zone"),
        ("Europe/Berlin ", "did you mean Europe/Berlin"),
        ("Ä" * 65, "a time zone's name has at most 64 characters, this one 65"),
    ],
)
def test_unknown_zone_is_named_with_what_may_be_meant(name: str, text: str) -> None:
    with pytest.raises(UnknownZone) as refused:
        load_zone(name)
    assert text in str(refused.value)
