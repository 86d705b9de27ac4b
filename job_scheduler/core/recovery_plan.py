"""What start-up recovery would do now, found out without doing it."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, text

from job_scheduler.clock import in_iso_8601
from job_scheduler.constants import InstanceState, RecoveryAction
from job_scheduler.core import catch_up, instances, overdue
from job_scheduler.core.catch_up import CatchUpRow
from job_scheduler.core.columns import UtcDateTime, database_time
from job_scheduler.core.overdue import NEW_SQL, OVERDUE_SQL, Overdue
from job_scheduler.core.recovery import Rules, approved_until, decide
from job_scheduler.core.schemas_recovery import (
    AgeCount,
    CatchUpState,
    NameCount,
    OtherNames,
    RecoveryPlan,
)
from job_scheduler.process import is_gone, own_identity
from job_scheduler.terminal import printable

_NAMES = 50
_AGES = {
    "up to 1 minute": timedelta(minutes=1),
    "up to 1 hour": timedelta(hours=1),
    "up to 1 day": timedelta(days=1),
    "up to 1 week": timedelta(weeks=1),
}
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def plan(connection: Connection, rules: Rules, lease: float) -> RecoveryPlan:
    """Return what a start would do by `rules`; whoever was silent for `lease` seconds is dead."""
    now = database_time(connection)
    former = catch_up.current(connection)
    values = {
        "overdue_at": now,
        "covered_until": approved_until(former),
        "names": _NAMES,
        **{f"from_{place}": now - age for place, age in enumerate(_AGES.values())},
    }
    rows = connection.execute(_SURVEY, values).all()
    found = Overdue(rows[0].overdue, rows[0].new) if rows else Overdue(0, 0)
    within = [getattr(rows[0], f"within_{place}") if rows else 0 for place in range(len(_AGES))]
    ages = dict(zip(_AGES, _differences(within), strict=True))
    listed = sum(row.tasks for row in rows)
    pending = _pending(connection, former)
    living = _living(connection, now - timedelta(seconds=lease))
    action = decide(rules, found, former)
    late = found.tasks + (pending.tasks if pending else 0)
    seconds = late / rules.rate if action in (RecoveryAction.Release, RecoveryAction.Hold) else None
    return RecoveryPlan(
        time=now,
        policy=rules.policy,
        rate=rules.rate,
        hold_above=rules.hold_above,
        overdue=found.tasks,
        oldest_due=rows[0].oldest if rows else None,
        newest_due=rows[0].newest if rows else None,
        by_age=[
            *(AgeCount(age=age, tasks=tasks) for age, tasks in ages.items()),
            AgeCount(age="older", tasks=found.tasks - sum(ages.values())),
        ],
        by_name=[NameCount(name=row.name, tasks=row.tasks) for row in rows],
        other_names=OtherNames(
            names=rows[0].names - len(rows) if rows else 0, tasks=found.tasks - listed
        ),
        catch_up=pending,
        living_instances=living,
        action=action,
        seconds=seconds,
        summary=_summary(rules, action, found.tasks, pending, seconds, living),
    )


def as_table(plan: RecoveryPlan) -> str:
    """Return a plan as lines for a person at a terminal."""
    rows = [
        ("Policy", f"{plan.policy.value} (RECOVER_PAST_TASKS)"),
        ("Rate", f"{plan.rate:g} tasks a second (RECOVERY_RATE)"),
        ("Held above", f"{plan.hold_above or 'never'} (RECOVERY_HOLD_ABOVE)"),
        ("Living instances", str(plan.living_instances)),
        ("Overdue tasks", str(plan.overdue)),
    ]
    if plan.oldest_due is not None and plan.newest_due is not None:
        rows += [("Oldest due", _z(plan.oldest_due)), ("Newest due", _z(plan.newest_due))]
        rows += [(f"  {count.age}", str(count.tasks)) for count in plan.by_age]
        rows += [(f"  {printable(count.name)}", str(count.tasks)) for count in plan.by_name]
    if plan.other_names.names:
        rows.append((f"  {plan.other_names.names} other names", str(plan.other_names.tasks)))
    if plan.catch_up is not None:
        state = plan.catch_up
        rows.append((f"Missed, {state.state}", f"{state.tasks} since {_z(state.since)}"))
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join([*(f"{label:<{width}}{value}" for label, value in rows), "", plan.summary])


def _differences(within: list[int]) -> list[int]:
    return [count - less for count, less in zip(within, [0, *within], strict=False)]


def _pending(connection: Connection, former: CatchUpRow | None) -> CatchUpState | None:
    if former is None or former.finished_at is not None:
        return None
    return CatchUpState(
        state="waiting" if former.waits else "releasing",
        since=former.approved_at or former.held_at or former.missed_at,
        tasks=overdue.count_missed(connection, former.missed_at),
        released_until=former.released_until,
    )


def _living(connection: Connection, silent_since: datetime) -> int:
    observer = own_identity()
    return sum(
        other.state is InstanceState.Alive
        and other.heartbeat_at > silent_since
        and not is_gone(other.process, observer)
        for other in instances.not_dead(connection)
    )


def _summary(
    rules: Rules,
    action: RecoveryAction,
    tasks: int,
    pending: CatchUpState | None,
    seconds: float | None,
    living: int,
) -> str:
    pace = f"at {rules.rate:g} a second, the oldest first, which takes about {_duration(seconds)}"
    held = f"{pending.tasks} missed tasks of an earlier start" if pending else ""
    sentences = [
        {
            RecoveryAction.Nothing: "No task is overdue.",
            RecoveryAction.Run: f"{tasks} overdue tasks would be run at once.",
            RecoveryAction.Release: f"{tasks} overdue tasks would be run {pace}.",
            RecoveryAction.Hold: f"{tasks} overdue tasks would be held until "
            f"POST /recovery/approve, and then be run {pace}.",
            RecoveryAction.Fail: f"{tasks} overdue tasks would be marked failed.",
            RecoveryAction.Skip: f"{tasks} overdue tasks would be set aside, and not be run.",
        }[action]
    ]
    if pending:
        sentences.append(
            {
                "run": f"{held} wait for POST /recovery/approve, and would go on waiting."
                if pending.state == "waiting"
                else f"{held} are being run late, and would go on to be.",
                "fail": f"{held}, not run yet, would be marked failed, too.",
                "skip": f"{held}, not run yet, would be set aside for good.",
            }[rules.policy.value]
        )
    if living:
        sentences.append(
            "This is what a start would do if no instance were alive. At present "
            f"{living} {'is, by its heartbeat' if living == 1 else 'are, by their heartbeats'}: "
            "whoever starts now joins in, and recovers nothing."
        )
    return " ".join(sentences)


def _duration(seconds: float | None) -> str:
    left = seconds or 0.0
    for unit, length in _UNITS:
        if left >= 2 * length:
            return f"{left / length:.0f} {unit}s"
    return f"{left:.0f} seconds" if left >= 2 else "a second"


def _z(instant: datetime) -> str:
    return in_iso_8601(instant, "seconds")


_WITHIN_SQL = ", ".join(
    f"CAST(sum(count(CASE WHEN due >= :from_{place} THEN 1 END)) OVER () AS bigint) "
    f"AS within_{place}"
    for place in range(len(_AGES))
)
# One pass over the overdue tasks: the sums over all names stand beside each name.
_SURVEY = (
    text(
        f"""
        SELECT name, count(*) AS tasks, count(*) OVER () AS names,
            CAST(sum(count(*)) OVER () AS bigint) AS overdue,
            CAST(sum(count(CASE WHEN {NEW_SQL} THEN 1 END)) OVER () AS bigint) AS new,
            min(min(due)) OVER () AS oldest, max(max(due)) OVER () AS newest, {_WITHIN_SQL}
        FROM (
            SELECT name, run_at, coalesce(retry_at, run_at) AS due
            FROM scheduled_tasks WHERE {OVERDUE_SQL}
        ) AS late
        GROUP BY name ORDER BY tasks DESC, name LIMIT :names
        """  # noqa: S608 (made of constants)
    )
    .bindparams(
        bindparam("overdue_at", type_=UtcDateTime),
        bindparam("covered_until", type_=UtcDateTime),
        *(bindparam(f"from_{place}", type_=UtcDateTime) for place in range(len(_AGES))),
    )
    .columns(oldest=UtcDateTime, newest=UtcDateTime)
)
