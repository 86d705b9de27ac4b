"""Cron lines: what is read, what is refused and in which words, and when a line fires."""

import time
from datetime import date
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_scheduler.core.cron import MAX_LENGTH, Cron
from job_scheduler.core.cron_fields import InvalidCron
from tests.support.cron_by_hand import DAY, LINES, at, day_matches, walls

NEW_YEAR = at("2026-01-01")  # a Thursday

HANDWRITTEN = {
    "* * * * *": "2026-01-01T00:01 2026-01-01T00:02",
    "*/15 * * * *": "2026-01-01T00:15 2026-01-01T00:30",
    "5-59/15 * * * *": "2026-01-01T00:05 2026-01-01T00:20 2026-01-01T00:35",
    "07 09 * * *": "2026-01-01T09:07 2026-01-02T09:07",
    "0 */6 * * *": "2026-01-01T06:00 2026-01-01T12:00 2026-01-01T18:00 2026-01-02T00:00",
    "0 22-23,0-1 * * *": "2026-01-01T01:00 2026-01-01T22:00 2026-01-01T23:00 2026-01-02T00:00",
    "\t0  0 * * * ": "2026-01-02 2026-01-03",
    "@hourly": "2026-01-01T01:00 2026-01-01T02:00",
    "@daily": "2026-01-02 2026-01-03",
    "@Midnight": "2026-01-02 2026-01-03",
    "@weekly": "2026-01-04 2026-01-11",
    "@monthly": "2026-02-01 2026-03-01",
    "@yearly": "2027-01-01 2028-01-01",
    "@ANNUALLY": "2027-01-01 2028-01-01",
    # days of the week
    "0 9 * * MON-FRI": "2026-01-01T09:00 2026-01-02T09:00 2026-01-05T09:00",
    "0 9 * * mon-fri": "2026-01-01T09:00 2026-01-02T09:00 2026-01-05T09:00",
    "0 0 * * 0": "2026-01-04 2026-01-11",
    "0 0 * * 7": "2026-01-04 2026-01-11",
    "0 0 * * Sun": "2026-01-04 2026-01-11",
    "0 0 * * 5-7": "2026-01-02 2026-01-03 2026-01-04 2026-01-09",
    "0 0 * * FRI-SUN": "2026-01-02 2026-01-03 2026-01-04 2026-01-09",
    "0 0 * * SUN-SUN": "2026-01-04 2026-01-11",
    "0 0 * * SUN-MON": "2026-01-04 2026-01-05 2026-01-11",
    "0 0 * * 1-7/2": "2026-01-02 2026-01-04 2026-01-05 2026-01-07",
    "0 0 * * */2": "2026-01-03 2026-01-04 2026-01-06 2026-01-08",
    "0 0 * * 5L": "2026-01-30 2026-02-27 2026-03-27",
    "0 0 * * friL": "2026-01-30 2026-02-27 2026-03-27",
    "0 0 * * 1,5L": "2026-01-05 2026-01-12 2026-01-19 2026-01-26 2026-01-30",
    "0 0 * * 1#2": "2026-01-12 2026-02-09 2026-03-09",
    "0 0 * * MON#5": "2026-03-30 2026-06-29",
    "0 0 * 2 MON#5": "2044-02-29",
    # days of the month, and months
    "30 2 31 * *": "2026-01-31T02:30 2026-03-31T02:30 2026-05-31T02:30",
    "0 0 30 4,6 *": "2026-04-30 2026-06-30 2027-04-30",
    "0 0 */30 * *": "2026-01-31 2026-02-01 2026-03-01 2026-03-31",
    "0 0 29 2 *": "2028-02-29 2032-02-29",
    "0 0 29 2 */6": "2032-02-29 2048-02-29",
    "0 0 L * *": "2026-01-31 2026-02-28 2026-03-31",
    "0 0 L 2 *": "2026-02-28 2027-02-28 2028-02-29",
    "0 0 LW * *": "2026-01-30 2026-02-27 2026-03-31",
    "0 0 1,15,L * *": "2026-01-15 2026-01-31 2026-02-01",
    "0 0 1 JAN,jul *": "2026-07-01 2027-01-01",
    "0 12 * JAN-MAR/2 SUN": "2026-01-04T12:00 2026-01-11T12:00",
    "59 23 31 12 *": "2026-12-31T23:59 2027-12-31T23:59",
    # both days: either is enough, unless one begins with a star
    "0 0 13 * FRI": "2026-01-02 2026-01-09 2026-01-13 2026-01-16",
    "0 0 30 2 MON": "2026-02-02 2026-02-09",
    "0 0 13 * */5": "2026-02-13 2026-03-13 2026-09-13",
    "0 0 */2 * MON": "2026-01-05 2026-01-19 2026-02-09",
}


@pytest.mark.parametrize("line", HANDWRITTEN)
def test_line_fires_when_its_author_would_say(line: str) -> None:
    expected = [at(text) for text in HANDWRITTEN[line].split()]
    assert list(islice(Cron.parse(line).walls_after(NEW_YEAR), len(expected))) == expected


@settings(deadline=None, max_examples=60)  # a hundred days are looked at
@given(LINES, st.dates(date(2000, 1, 1), date(2039, 1, 1)), st.data())
def test_any_line_fires_at_the_minutes_that_match(
    line: str, day: date, data: st.DataObject
) -> None:
    try:
        cron = Cron.parse(line)
    except InvalidCron:
        return
    seconds = data.draw(st.integers(0, 86_399)) + data.draw(st.sampled_from([0, 0.5]))
    begin = at(day.isoformat())
    start = begin + DAY / 86_400 * seconds
    end = begin + 70 * DAY
    by_hand = list(islice((wall for wall in walls(line, day, 70) if wall > start), 40))
    found = list(islice((wall for wall in cron.walls_after(start)), len(by_hand) or 1))
    assert found == by_hand or (not by_hand and found[0] >= end)

    before = [wall for wall in walls(line, day - 70 * DAY, 71) if wall < start][-40:]
    back = list(islice(cron.walls_before(start), len(before) or 1))
    assert back == before[::-1] or (not before and back[0] < begin - 70 * DAY)


@settings(deadline=None, max_examples=40)  # ten thousand days are looked at
@given(LINES)
def test_line_is_refused_if_and_only_if_no_day_matches(line: str) -> None:
    # These years have every calendar that there is.
    days = (date(2001, 1, 1) + n * DAY for n in range(28 * 366))
    fires = any(day_matches(line, day) for day in days)
    if not fires:
        with pytest.raises(InvalidCron, match="never fires"):
            Cron.parse(line)
        return
    cron = Cron.parse(line)
    assert next(cron.walls_after(NEW_YEAR)) > NEW_YEAR
    assert Cron.parse(cron.line) == cron  # the canonical text is a fixed point


@pytest.mark.parametrize(
    "line",
    [
        "0 0 30 2 *",
        "0 0 31 4,6,9,11 *",
        "0 0 */16 * MON#2",
        "0 0 LW * */6",
        "0 0 */23 1 5L",
        "0 0 30 2 */2",
    ],
)
def test_line_that_never_fires_is_refused_at_once(line: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(InvalidCron, match="never fires, since no year has such a day: day of m"):
        Cron.parse(line)
    assert time.perf_counter() - begin < 0.1  # 0.2 ms, where nothing else runs


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("  0\t09 * * mon-Fri ", "0 9 * * MON-FRI"),
        ("@Daily", "0 0 * * *"),
        ("*/1 0-23/1 01-07/02 jan,2 5l,Fri#1", "* 0-23 1-7/2 JAN,2 5L,FRI#1"),
        ("5-5 0 lw,L * 07", "5 0 LW,L * 7"),
    ],
)
def test_line_has_one_form(written: str, line: str) -> None:
    assert Cron.parse(written).line == line


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "has five fields (minute, hour, day of month, month, day of week), this one 0;"),
        ("0 0 * *", "this one 4; there is none for seconds or years"),
        ("0 0 0 1 * *", "this one 6; there is none for seconds or years"),
        ("0 " * 101, "a cron line has at most 200 characters, this one 202"),
        ("0 0 * * *\n", r"not '\n'; write the five fields on one line, like 0 9 * * MON-FRI"),
        ("0\x1c0 * * *", r"not '\x1c'"),
        ("٣ 0 * * *", "has only ASCII letters, digits, signs and blanks, not '٣'"),
        ("@reboot", "'@reboot' is not supported; there are @hourly, @daily, @midnight, @weekly"),
        ("@daily 5", "'@daily 5' is not supported"),
        ("60 0 * * *", "minute: '60' is not from 0 to 59; a field is *, a value, a range like 0-3"),
        ("0 24 * * *", "hour: '24' is not from 0 to 23"),
        ("0 0-24 * * *", "hour: '0-24' is not from 0 to 23"),
        ("0 0 0 * *", "day of month: '0' is not from 1 to 31; a field is *, a value, a range like"),
        ("0 0 L-3 * *", "day of month: 'L-3' is not"),
        ("0 0 15W * *", "L (the last day), LW (the last from Monday to Friday), or a list"),
        ("0 0 L/2 * *", "day of month: 'L/2' is not"),
        ("0 0 ? * 1", "day of month: '?' is not"),
        ("0 0 * 13 *", "month: '13' is not from 1 to 12 or JAN to DEC; "),
        ("0 0 * JANUARY *", "month: 'JANUARY' is not"),
        ("0 0 * MON *", "month: 'MON' is not"),
        ("0 0 * * 8", "day of week: '8' is not from 0 to 7 or SUN to SAT; "),
        ("0 0 * * L", "5L (the month's last Friday), 1#2 (its second Monday), or a list"),
        ("0 0 * * 8L", "day of week: '8L' is not"),
        ("0 0 * * 1#6", "in '1#6', what follows # must be from 1 to 5, the number of the weekday"),
        ("0 0 * * 1#0", "for the last one write L, like 5L"),
        ("0 0 * * 1-5#2", "day of week: '1-5#2' is not"),
        ("0 0 * * FRI-MON", "the range 'FRI-MON' runs backwards; write 5-6,0-1"),
        ("0 22-2 * * *", "hour: the range '22-2' runs backwards; write 22-23,0-2"),
        ("5/15 * * * *", "minute: crons differ in what '5/15' means; write 5-59/15"),
        ("0 0 * * 1/2", "day of week: crons differ in what '1/2' means; write 1-6/2"),
        ("*/60 * * * *", "minute: the step of '*/60' must be from 1 to 59"),
        ("*/0 * * * *", "minute: the step of '*/0' must be from 1 to 59"),
        ("0 0 * * */7", "day of week: the step of '*/7' must be from 1 to 6"),
        ("0-10/11 * * * *", "minute: the step of '0-10/11' must be from 1 to 10"),
        ("5-5/2 * * * *", "minute: '5-5/2' has a step in a range of one; write 5"),
        ("5-5/1 * * * *", "minute: '5-5/1' has a step in a range of one; write 5"),
        ("*,5 * * * *", "minute: '*,5' names every value and more; write * alone"),
        ("1,,2 * * * *", "minute: '' is not"),
        ("007 * * * *", "minute: '007' is not"),
        ("-5 * * * *", "minute: '-5' is not"),
        ("1-2-3 * * * *", "minute: '1-2-3' is not"),
        ("*/5/2 * * * *", "minute: '*/5/2' is not"),
        ("H * * * *", "minute: 'H' is not"),
    ],
)
def test_refusal_says_which_field_and_what_to_write(line: str, text: str) -> None:
    with pytest.raises(InvalidCron) as refused:
        Cron.parse(line)
    assert text in str(refused.value)


def test_longest_line_is_read() -> None:
    line = "0,0 0 * * *".replace("0,0", ",".join(["10"] * 64))
    assert Cron.parse(line + " " * (MAX_LENGTH - len(line))).line == line


@given(st.text("0123456789*/,-#LW@ \tMONJAN?", max_size=30) | st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cron = Cron.parse(text)
    except InvalidCron:
        return
    assert Cron.parse(cron.line) == cron
    assert next(cron.walls_after(NEW_YEAR))


def test_time_ends_where_the_years_do() -> None:
    cron = Cron.parse("0 0 * * *")
    assert list(cron.walls_after(at("9999-12-30T12:00"))) == [at("9999-12-31")]
    assert list(cron.walls_before(at("0001-01-02T12:00"))) == [at("0001-01-02"), at("0001-01-01")]


@pytest.mark.parametrize(
    ("line", "fixed", "either"),
    [
        ("0 0 1 * 1", True, True),
        ("*/5 0 1 * *", False, False),
        ("0,*/5 */2 */3 * 1", False, False),
        ("0-59/5,*/7 0-23 1,*/3 * 1,*/2", True, True),
    ],
)
def test_star_at_a_fields_beginning_is_what_counts(line: str, fixed: bool, either: bool) -> None:
    cron = Cron.parse(line)
    assert (cron.fixed, cron.either_day) == (fixed, either)
