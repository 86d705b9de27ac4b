"""A cron line in words, and the warnings beside it: they are true, and they are told."""

import re
from collections.abc import Sequence
from datetime import date

import pytest
from hypothesis import given, settings

from job_scheduler.constants import DstFold, DstGap
from job_scheduler.core.cron import Cron
from job_scheduler.core.cron_fields import InvalidCron
from job_scheduler.core.cron_words import describe, warnings
from job_scheduler.core.rhythm import load_zone
from tests.support.cron_by_hand import DAY, LINES, day_matches, times, utc

NOW = utc("2026-05-07T10:03")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("* * * * *", "Every minute."),
        ("*/15 * * * *", "Every 15 minutes."),
        ("0,30 * * * *", "Every 30 minutes."),
        ("@hourly", "At minute 0 of every hour."),
        ("5,7 * * * *", "At minutes 5 and 7 of every hour."),
        ("*/7 * * * *", "At minutes 0 through 56 in steps of 7 of every hour."),
        ("@daily", "At 00:00 every day."),
        ("@weekly", "At 00:00 on Sunday."),
        ("@monthly", "At 00:00 on the 1st of each month."),
        ("@yearly", "At 00:00 on the 1st of January."),
        ("0 9 * * MON-FRI", "At 09:00 on Monday through Friday."),
        ("0,30 9,17 * * 6,0", "At 09:00, 09:30, 17:00 and 17:30 on Saturday and Sunday."),
        ("0 9 * * SUN-THU", "At 09:00 on Sunday through Thursday."),
        ("30 2 31 * *", "At 02:30 on the 31st of each month."),
        ("0 0 L,15 * *", "At 00:00 on the 15th and the last day of each month."),
        (
            "0 0 LW 1-3 *",
            "At 00:00 on the last working day (Monday to Friday) of January through March.",
        ),
        ("0 0 1-3,12,22,23 * *", "At 00:00 on the 1st through the 3rd, the 12th, the 22nd and the"),
        ("0 0 * * 1#2,5L", "At 00:00 on the second Monday and the last Friday of each month."),
        ("0 0 * 2 1,5L", "At 00:00 on Monday in February and on the last Friday of February."),
        ("0 0 13 * 5", "At 00:00 on the 13th of each month and also on Friday."),
        ("0 0 13 * */5", "At 00:00 on the 13th of each month if it is Sunday or Friday."),
        ("0 0 1-31 * 5", "At 00:00 every day."),
        ("0 0 * 6,8 *", "At 00:00 every day in June and August."),
        ("*/20 * * 6 *", "Every 20 minutes in June."),
        ("* 9-17 * * *", "Every minute from 09:00 through 17:59 every day."),
        ("*/10 9 * * *", "At 09:00, 09:10, 09:20, 09:30, 09:40 and 09:50 every day."),
        ("*/5 9-17 * * *", "Every 5 minutes from 09:00 through 17:55 every day."),
        ("*/5 9,17 * * *", "Every 5 minutes of hours 9 and 17 every day."),
        ("30 9-17 * * *", "Every hour from 09:30 through 17:30 every day."),
        ("0 */2 * * *", "Every 2 hours from 00:00 through 22:00 every day."),
        ("1-8 3 * * *", "At minutes 1 through 8 of hour 3 every day."),
        ("0 0-5,22 * * *", "At minute 0 of hours 0 through 5 and 22 every day."),
    ],
)
def test_line_reads_as_people_say_it(line: str, words: str) -> None:
    assert describe(Cron.parse(line)).startswith(words)


# ----------------------------------------------------------------- the words, understood again

MONTHS = [
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
PLACES = ["first", "second", "third", "fourth", "fifth"]


def items(text: str) -> list[str]:
    """What a list in words lists."""
    return re.split(r", | and | or ", text)


def values(text: str, order: Sequence[str]) -> set[str]:
    """What lists and ranges name, of things in order that goes round."""
    found: set[str] = set()
    for item in items(text):
        first, _, rest = item.partition(" through ")
        last, _, step = rest.partition(" by ")
        begin = order.index(first)
        length = (order.index(last or first) - begin) % len(order)
        found |= {order[(begin + n) % len(order)] for n in range(0, length + 1, int(step or 1))}
    return found


def times_understood(text: str) -> set[tuple[int, int]]:
    """The hours and minutes that the words name."""
    clock = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in range(60)]
    numbers = [str(n) for n in range(60)]
    if re.fullmatch(r"At [0-9:, and]+", text):
        return {(int(each[:2]), int(each[3:])) for each in items(text.removeprefix("At "))}
    head, _, span = text.partition(" from ")
    first, last = span.split(" through ") if span else ("00:00", "23:59")
    within = {(int(each[:2]), int(each[3:])) for each in clock if first <= each <= last}
    if hours := re.fullmatch(r"Every (?:(\d+) )?hours?", head):
        begin, step = int(first[:2]), int(hours[1] or 1)
        return {
            each for each in within if each[1] == int(first[3:]) and not (each[0] - begin) % step
        }
    head, _, hours_named = head.partition(" of ")
    any_hour = hours_named in {"", "every hour"}
    named = set(numbers) if any_hour else values(re.sub("hours? ", "", hours_named), numbers)
    every = re.fullmatch(r"Every (?:(\d+) )?minutes?", head)
    minutes = (
        {str(n) for n in range(0, 60, int(every[1] or 1))}
        if every
        else values(re.sub("At minutes? ", "", head), numbers)
    )
    return {each for each in within if str(each[0]) in named and str(each[1]) in minutes}


def days_understood(text: str, day: date) -> bool:
    """Whether the words about days name a day."""
    if " and also on " in text:
        return any(days_understood(part, day) for part in text.split(" and also on "))
    text, _, condition = text.partition(" if it is ")
    if condition:
        return days_understood(text, day) and any(
            days_understood(part, day) for part in condition.split(" or ") for part in items(part)
        )
    if " and on " in text:
        return any(days_understood(part, day) for part in text.split(" and on "))
    text, *months = re.split(r" (?:of|in) ", text)
    named = values(months[0], MONTHS) if months and months != ["each month"] else MONTHS
    if MONTHS[day.month - 1] not in named:
        return False
    return text in {"", "every day"} or any(day_understood(item, day) for item in items(text))


def day_understood(item: str, day: date) -> bool:
    """Whether one entry of a list of days names a day."""
    weekday, words = WEEKDAYS[day.weekday()], item.removeprefix("the ").split(" ")
    is_last = (day + 7 * DAY).month != day.month
    if words == ["last", "day"]:
        return (day + DAY).month != day.month
    if words[:3] == ["last", "working", "day"]:
        later = [day + n * DAY for n in range(1, 4)]
        return day.weekday() < 5 and all(
            each.weekday() > 4 or each.month != day.month for each in later
        )
    if words[0] == "last":
        return weekday == words[1] and is_last
    if words[0] in PLACES:
        return weekday == words[1] and (day.day - 1) // 7 == PLACES.index(words[0])
    if words[0][0].isdigit():
        plain = re.sub(r"the |(?<=\d)(st|nd|rd|th)", "", item)
        return str(day.day) in values(plain, [str(n) for n in range(1, 32)])
    return weekday in values(item, WEEKDAYS)


@settings(deadline=None)  # thousands of days are looked at
@given(LINES)
def test_words_say_what_the_line_says(line: str) -> None:
    try:
        words = describe(Cron.parse(line))
    except InvalidCron:
        return
    text = words.removesuffix(".").replace(" in steps of ", " by ")
    clock, every, rest = text.partition(" every day")
    if not every:
        clock, _, rest = re.sub(r"( on | in )", r"|\1", text, count=1).partition("|")
    assert times_understood(clock) == set(times(line))
    about_days = rest.removeprefix(" on ")
    for n in range(0, 28 * 366, 17):
        day = date(2001, 1, 1) + n * DAY
        assert days_understood(about_days, day) == day_matches(line, day), (words, day)


# ------------------------------------------------------------------------------------ warnings


def told(line: str, zone: str = "UTC", gap: str = "shift", fold: str = "first") -> list[str]:
    """The warnings of a line."""
    return warnings(Cron.parse(line), load_zone(zone), DstGap(gap), DstFold(fold), NOW)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 9 * * MON-FRI", []),
        ("*/15 */6 * * *", []),
        ("0 0 L * *", []),
        ("0 0 31,L * *", []),
        ("0 0 1-31 * 5", []),
        ("0 0 31 1,3 *", []),
        ("0 0 29 2 *", ["29 February comes in leap years only; for a month's last day write L."]),
        ("0 0 29 1-3 *", ["29 February comes in leap years only; for a month's last day write L."]),
        ("0 0 30-31 * *", ["The 30th: skips February; for a month's last day write L."]),
        (
            "0 0 1,31 * *",
            [
                "The 31st: skips February, April, June, September and November;"
                " for a month's last day write L."
            ],
        ),
        (
            "0 0 13 * FRI",
            [
                "Fires on the 13th of each month AND ALSO on Friday: with both a day of month and a"
                " day of week, either is enough."
            ],
        ),
        (
            "0 0 * * SUN#5,1#2",
            ["Not every month has a fifth Sunday; for the last one write 0L."],
        ),
        (
            "*/7 */5 * * *",
            [
                "Every 7 minutes begins anew each hour: from minute 56 to minute 0 it is 4.",
                "Every 5 hours begins anew each day: from hour 20 to hour 0 it is 4.",
            ],
        ),
    ],
)
def test_what_may_surprise_about_days_and_steps_is_told(line: str, expected: list[str]) -> None:
    assert told(line) == expected


BERLIN = "Europe/Berlin"
ELAPSED = "as a line with * for minute or hour follows elapsed time."


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            ("30 2 * * *", BERLIN, "shift", "first"),
            [
                "02:30 comes twice on 2026-10-25: fires the first time only (fold: first).",
                "02:30 does not exist on 2027-03-28: fires at 03:00 instead (gap: shift).",
            ],
        ),
        (
            ("0,30 2 * * *", BERLIN, "skip", "second"),
            [
                "02:00 to 02:30 come twice on 2026-10-25: fires the second time only"
                " (fold: second).",
                "02:00 to 02:30 do not exist on 2027-03-28: left out (gap: skip).",
            ],
        ),
        (
            ("0 2 * * *", BERLIN, "skip", "both"),
            [
                "02:00 comes twice on 2026-10-25: fires both times (fold: both).",
                "02:00 does not exist on 2027-03-28: left out (gap: skip).",
            ],
        ),
        (
            ("*/30 2 * * *", BERLIN, "skip", "second"),
            [
                f"02:00 to 02:30 come twice on 2026-10-25: fires both times, {ELAPSED}",
                f"02:00 to 02:30 do not exist on 2027-03-28: nothing fires instead, {ELAPSED}",
            ],
        ),
        (
            ("30 23 * * *", "America/Nuuk", "shift", "first"),
            [
                "23:30 comes twice on 2026-10-24: fires the first time only (fold: first).",
                "23:30 does not exist on 2027-03-27: fires at 00:00 on 2027-03-28 instead"
                " (gap: shift).",
            ],
        ),
        (
            ("30 2 28 3 *", BERLIN, "shift", "first"),
            ["02:30 does not exist on 2027-03-28: fires at 03:00 instead (gap: shift)."],
        ),
        (
            ("30 2 * 3 0L", BERLIN, "skip", "first"),
            ["it never fires: its times do not exist there, and are left out."],
        ),
        (("0 3 * * *", BERLIN, "shift", "first"), []),
        (("59 1 * * *", BERLIN, "shift", "first"), []),
        (("*/15 * * * *", BERLIN, "shift", "first"), []),
    ],
)
def test_next_change_of_the_clocks_that_meets_the_line_is_told(
    case: tuple[str, str, str, str], expected: list[str]
) -> None:
    assert told(*case) == [f"In {case[1]}, {text}" for text in expected]
