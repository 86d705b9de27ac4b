"""What follows an occurrence: after its run, after a downtime, and at the ends of a recurrence."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job_scheduler.constants import CATCH_UP_MAX, CatchUp, Overlap, RecoverPastTasks
from job_scheduler.core.recurrence import Recurrence

BEGIN = datetime(2031, 7, 1, tzinfo=UTC)
RUN, FAIL, SKIP = RecoverPastTasks.Run, RecoverPastTasks.Fail, RecoverPastTasks.Skip


def at(minutes: float) -> datetime:
    """An instant, in minutes from the begin."""
    return BEGIN + timedelta(minutes=minutes)


def each_minute(**members: Any) -> Recurrence:
    """A recurrence of every minute."""
    return Recurrence(interval_seconds=60, start_at=BEGIN, **members)


@pytest.mark.parametrize("cron", [False, True])
@pytest.mark.parametrize(
    ("overlap", "catch_up", "started", "ended", "following"),
    [
        # In time: the next one, whatever is asked.
        ("skip", "latest", 0.1, 0.5, 1),
        ("queue", "none", 0.1, 0.5, 1),
        ("skip", "all", 0.1, 0.5, 1),
        # Two fell due while it ran, one of them at this very instant.
        ("skip", "latest", 0.1, 2, 3),
        ("skip", "none", 0.1, 2.5, 3),
        ("skip", "all", 0.1, 2.5, 3),
        ("queue", "latest", 0.1, 2.5, 1),
        ("allow", "latest", 0.1, 2.5, 1),
        # Three fell due before it was started, late; one while it ran.
        ("skip", "latest", 3.5, 3.6, 4),
        ("skip", "none", 3.5, 4.6, 5),
        ("allow", "latest", 3.5, 4.6, 4),
        ("skip", "all", 3.5, 4.6, 1),
        ("queue", "latest", 3.5, 4.6, 1),
    ],
)
def test_what_follows_a_run(
    cron: bool, overlap: str, catch_up: str, started: float, ended: float, following: float
) -> None:
    rules: dict[str, Any] = {"overlap": Overlap(overlap), "catch_up": CatchUp(catch_up)}
    recurrence = Recurrence(cron="* * * * *", **rules) if cron else each_minute(**rules)
    assert recurrence.following(at(0), at(started), at(ended), 1) == at(following)


def test_of_very_many_that_wait_the_last_ones_are_run() -> None:
    recurrence = each_minute(overlap=Overlap.Queue)
    assert recurrence.following(at(0), at(0), at(1000.5), 1) == at(1001 - CATCH_UP_MAX)
    assert recurrence.following(at(0), at(0), at(CATCH_UP_MAX + 0.5), 1) == at(1)


def test_recurrence_is_over_after_its_last_run_and_its_last_time() -> None:
    recurrence = each_minute(max_runs=3, end_at=at(2))
    assert recurrence.following(at(0), at(0), at(0.5), 2) == at(1)
    assert recurrence.following(at(0), at(0), at(0.5), 3) is None
    assert recurrence.following(at(1), at(1), at(1.5), 1) == at(2)
    assert recurrence.following(at(2), at(2), at(2.5), 1) is None
    assert list(recurrence.times(at(-5))) == [at(0), at(1), at(2)]
    assert list(recurrence.times(at(0.5))) == [at(1), at(2)]


@pytest.mark.parametrize(
    ("policy", "catch_up", "following"),
    [
        (RUN, "none", 4),
        (RUN, "latest", 3),
        (RUN, "all", 0),
        (FAIL, "latest", 4),
        (FAIL, "all", 4),
        (SKIP, "latest", 4),
    ],
)
def test_what_follows_a_downtime(policy: RecoverPastTasks, catch_up: str, following: float) -> None:
    recurrence = each_minute(catch_up=CatchUp(catch_up))
    assert recurrence.after_downtime(at(0), at(3.5), policy) == at(following)


def test_what_follows_a_long_downtime_and_one_in_which_it_ended() -> None:
    every = each_minute(catch_up=CatchUp.All)
    assert every.after_downtime(at(0), at(1000.5), RUN) == at(1001 - CATCH_UP_MAX)
    over = each_minute(catch_up=CatchUp.Latest, end_at=at(2))
    assert over.after_downtime(at(0), at(3.5), RUN) == at(2)
    assert over.after_downtime(at(0), at(3.5), SKIP) is None
    assert each_minute().after_downtime(at(3), at(3.5), RUN) == at(3)


def test_interval_counts_from_its_start_or_from_now() -> None:
    assert each_minute().first(at(2.5)) == at(3)
    assert each_minute().first(at(-60)) == at(0)
    assert Recurrence(interval_seconds=60).first(at(2.5)) == at(3.5)
    assert Recurrence(interval_seconds=60, end_at=at(3)).first(at(2.5)) is None
    assert Recurrence(cron="0 9 * * *").first(at(0)) == at(9 * 60)
    # Without a start, the last time is what the next one counts from.
    assert Recurrence(interval_seconds=60).following(at(2.5), at(2.5), at(2.6), 1) == at(3.5)


def test_stored_recurrence_is_read_as_it_was_meant() -> None:
    meant = Recurrence(
        cron="@daily",
        timezone="Asia/Tokyo",
        start_at=at(0),
        end_at=at(9999),
        max_runs=3,
        jitter_seconds=5.5,
        overlap=Overlap.Queue,
        catch_up=CatchUp.Nothing,
    )
    assert Recurrence.of(meant.as_document()) == meant
    assert meant.as_document()["start_at"] == "2031-07-01T00:00:00+00:00"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"cron": "x"},
        {"cron": 3},
        {"interval_seconds": "x"},
        {"cron": "@daily", "timezone": "Nowhere"},
        {"cron": "@daily", "overlap": "x"},
        {"cron": "@daily", "start_at": "x"},
        {"cron": "@daily", "start_at": 3},
        {"cron": "@daily", "max_runs": 0},
        {"cron": "@daily", "jitter_seconds": -1},
        {"other": 1},
        [],
        3,
    ],
)
def test_what_nobody_can_read_is_a_value_error(document: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its text is whatever could not be read)
        Recurrence.of(document)


@given(st.uuids(), st.integers(0, 10_000), st.floats(0.001, 10_000))
def test_jitter_is_the_same_for_whoever_asks(task_id: Any, minutes: int, seconds: float) -> None:
    recurrence = each_minute(jitter_seconds=seconds)
    starts_at = recurrence.starts_at(str(task_id), at(minutes))
    assert starts_at is not None
    assert timedelta(0) <= starts_at - at(minutes) <= timedelta(seconds=seconds)
    assert recurrence.starts_at(str(task_id), at(minutes)) == starts_at
    assert each_minute().starts_at(str(task_id), at(minutes)) is None


@given(
    st.integers(1, 50),
    st.floats(0, 100),
    st.floats(0, 100),
    st.sampled_from(Overlap),
    st.sampled_from(CatchUp),
)
def test_times_only_ever_move_on(
    number: int, late: float, long: float, overlap: Overlap, catch_up: CatchUp
) -> None:
    recurrence = each_minute(overlap=overlap, catch_up=catch_up)
    started = at(number + late)
    found = recurrence.following(at(number), started, started + timedelta(minutes=long), 1)
    assert found is not None
    assert found > at(number)
    assert found in set(islice(recurrence.times(at(0)), 400))
