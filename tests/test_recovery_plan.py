"""The plan: what start-up recovery would do now, over HTTP and on the command line."""

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from job_scheduler.constants import InstanceState
from job_scheduler.core import instances, recovery_plan
from job_scheduler.core.instances import Member
from job_scheduler.core.recovery import Rules
from job_scheduler.identifiers import new_token
from job_scheduler.process import ProcessIdentity, own_identity
from tests.support.app import Backend, later, parse_time, post, running, statements
from tests.test_catch_up import FAIL, RUN, SKIP, approve, insert_staggered, start, step
from tests.test_cli import MODULE, run

AGES = ["up to 1 minute", "up to 1 hour", "up to 1 day", "up to 1 week", "older"]
HOUR, DAY = 3_600, 86_400
GONE = ProcessIdentity(own_identity().host, own_identity().pid, "before this one")
ELSEWHERE = ProcessIdentity("another-host", 1, "long ago")


def command(
    store: Backend, directory: Path, *arguments: str, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run `recovery-plan` to its end."""
    return run(directory, *MODULE, "recovery-plan", *arguments, **(store.environment() | settings))


def plan(store: Backend, **options: Any) -> dict[str, Any]:
    """The plan by some settings, as JSON."""
    settings = store.settings(**options)
    with store.database() as database, database.reading() as connection:
        found = recovery_plan.plan(connection, Rules.of(settings), settings.lease_seconds)
    return found.model_dump(mode="json")


def snapshot(store: Backend) -> list[Any]:
    """All that recovery could change."""
    return [
        store.sql(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608 (constants)
        for table in ("scheduled_tasks", "task_runs", "catch_up", "instances")
    ]


def test_empty_database_has_nothing_to_recover(store: Backend, tmp_path: Path) -> None:
    found = plan(store)
    assert (found["overdue"], found["action"], found["policy"]) == (0, "nothing", "run")
    assert (found["oldest_due"], found["newest_due"], found["seconds"]) == (None, None, None)
    assert found["by_age"] == [{"age": age, "tasks": 0} for age in AGES]
    assert (found["by_name"], found["other_names"]) == ([], {"names": 0, "tasks": 0})
    assert (found["catch_up"], found["living_instances"]) == (None, 0)
    assert found["summary"] == "No task is overdue."
    printed = command(store, tmp_path)
    assert printed.returncode == 0
    assert re.search(r"^Overdue tasks +0$", printed.stdout, re.M)
    assert "Oldest" not in printed.stdout
    assert printed.stdout.endswith("\n\nNo task is overdue.\n")


def test_overdue_tasks_are_counted_by_name_and_age_and_nothing_is_done(
    store: Backend, tmp_path: Path
) -> None:
    for seconds in (10, 600, 1_200, 5 * HOUR, 3 * DAY, 4 * DAY, 30 * DAY):
        store.insert_task("mail", run_at=later(-seconds))
    retried = store.insert_task("re\x1bport", run_at=later(-2 * DAY), retry_at=later(-20))
    store.insert_task("mail", run_at=later(60))
    store.insert_task("mail", run_at=later(-60), retry_at=later(60))
    store.insert_task("mail", run_at=later(-60), missed_at=later(-50))
    store.insert_task("mail", run_at=later(-60), status="done")
    before = snapshot(store)
    done = command(store, tmp_path, "--json", RECOVERY_RATE="2")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert snapshot(store) == before
    assert {**plan(store, recovery_rate=2), "time": found["time"]} == found
    assert found["overdue"] == 8
    assert [count["tasks"] for count in found["by_age"]] == [2, 2, 1, 2, 1]
    assert found["by_name"] == [{"name": "mail", "tasks": 7}, {"name": "re\x1bport", "tasks": 1}]
    oldest, newest = parse_time(found["oldest_due"]), parse_time(found["newest_due"])
    assert timedelta(days=30) <= parse_time(found["time"]) - oldest < timedelta(days=30, hours=1)
    assert newest > store.row(retried)["retry_at"]
    assert (found["action"], found["rate"], found["seconds"]) == ("release", 2.0, 4.0)
    printed = command(store, tmp_path, RECOVERY_RATE="2").stdout
    assert re.search(r"^  up to 1 hour +2$", printed, re.M)
    assert re.search(r"^  mail +7$", printed, re.M)
    assert re.search(r"^  re\\x1bport +1$", printed, re.M)
    assert re.search(r"^Oldest due +\S+Z$", printed, re.M)
    assert "\x1b" not in printed
    assert snapshot(store) == before


def test_rare_names_are_summed_up(store: Backend, tmp_path: Path) -> None:
    for number in range(52):
        store.insert_task(f"name {number:02}", run_at=later(-60))
    store.insert_tasks(3, "frequent", run_at=later(-60))
    found = plan(store)
    assert found["by_name"][0] == {"name": "frequent", "tasks": 3}
    assert len(found["by_name"]) == 50
    assert found["other_names"] == {"names": 3, "tasks": 3}
    assert re.search(r"^  3 other names +3$", command(store, tmp_path).stdout, re.M)


@pytest.mark.parametrize(
    ("settings", "action", "summary"),
    [
        ({}, "run", "3 overdue tasks would be run at once."),
        (
            {"recovery_rate": "1"},
            "release",
            "3 overdue tasks would be run at 1 a second, the oldest first, which takes about "
            "3 seconds.",
        ),
        (
            {"recovery_hold_above": "2"},
            "hold",
            "3 overdue tasks would be held until POST /recovery/approve, and then be run at 1000 "
            "a second, the oldest first, which takes about a second.",
        ),
        ({"recovery_hold_above": "3"}, "run", "3 overdue tasks would be run at once."),
        ({"recover_past_tasks": "fail"}, "fail", "3 overdue tasks would be marked failed."),
        (
            {"recover_past_tasks": "skip"},
            "skip",
            "3 overdue tasks would be set aside, and not be run.",
        ),
    ],
    ids=["run", "release", "hold", "not held", "fail", "skip"],
)
def test_plan_says_what_the_next_start_does(
    store: Backend, settings: dict[str, str], action: str, summary: str
) -> None:
    insert_staggered(store, 3)
    found = plan(store, **settings)
    assert (found["action"], found["summary"]) == (action, summary)
    rate = float(settings.get("recovery_rate", 1_000))
    hold_above = int(settings.get("recovery_hold_above", 0))
    policy = {"fail": FAIL, "skip": SKIP}.get(settings.get("recover_past_tasks", ""), RUN)
    start(store, Rules(policy, rate, hold_above))
    set_aside = store.count("missed_at IS NOT NULL") == 3
    assert set_aside is (action in ("release", "hold", "skip"))
    assert (store.count("status = 'failed'") == 3) is (action == "fail")
    after = plan(store, **settings)
    assert (after["overdue"], after["catch_up"] is not None) == (
        3 if action == "run" else 0,
        action in ("release", "hold"),
    )


def test_long_releases_are_told_in_long_units(store: Backend) -> None:
    for number, words in ((150, "2 minutes"), (7_200, "2 hours"), (172_800, "2 days")):
        store.sql("DELETE FROM scheduled_tasks")
        store.insert_tasks(number, run_at=later(-60))
        assert f"which takes about {words}." in plan(store, recovery_rate="1")["summary"]


def test_open_hold_is_shown_and_what_each_policy_makes_of_it(
    store: Backend, tmp_path: Path
) -> None:
    insert_staggered(store, 4)
    start(store, Rules(RUN, rate=1, hold_above=1))
    store.insert_task(run_at=later(-0.1))
    sentences = {
        "run": "1 overdue tasks would be held until POST /recovery/approve, and then be run at "
        "1000 a second, the oldest first, which takes about a second. 4 missed tasks of an earlier "
        "start wait for POST /recovery/approve, and would go on waiting.",
        "fail": "1 overdue tasks would be marked failed. 4 missed tasks of an earlier start, not "
        "run yet, would be marked failed, too.",
        "skip": "1 overdue tasks would be set aside, and not be run. 4 missed tasks of an earlier "
        "start, not run yet, would be set aside for good.",
    }
    for policy, sentence in sentences.items():
        found = plan(store, recover_past_tasks=policy)
        assert found["summary"] == sentence
        assert (found["catch_up"]["state"], found["catch_up"]["tasks"]) == ("waiting", 4)
    assert re.search(r"^Missed, waiting +4 since \S+Z$", command(store, tmp_path).stdout, re.M)
    approve(store, 1)
    found = plan(store)
    assert found["catch_up"]["state"] == "releasing"
    assert "4 missed tasks of an earlier start are being run late" in found["summary"]
    step(store, 1_000)
    assert plan(store)["catch_up"] is None


def test_plan_over_http_says_that_living_instances_recover_nothing(store: Backend) -> None:
    insert_staggered(store, 5)
    with running(store, recovery_hold_above=2, recovery_rate=5) as client:
        post(client, run_at=later(3_600))
        answer = client.get("/recovery/plan")
        assert answer.status_code == 200
        found = answer.json()
        assert (found["living_instances"], found["action"]) == (1, "nothing")
        assert (found["rate"], found["hold_above"], found["overdue"]) == (5.0, 2, 0)
        assert found["catch_up"]["tasks"] == 5
        assert found["summary"].endswith(
            "This is what a start would do if no instance were alive. At present 1 is, by its "
            "heartbeat: whoever starts now joins in, and recovers nothing."
        )
        assert plan(store)["living_instances"] == 1
        with running(store) as second:
            assert "At present 2 are, by their heartbeats" in second.get("/recovery/plan").text
    assert plan(store)["living_instances"] == 0


def test_instances_that_only_seem_to_live_do_not_count(store: Backend) -> None:
    with store.database() as database, database.writing() as connection:
        for process, state in (
            (GONE, InstanceState.Alive),
            (ELSEWHERE, InstanceState.Dead),
            (ELSEWHERE, InstanceState.Starting),
            (ELSEWHERE, InstanceState.Alive),
        ):
            instances.register(connection, Member(new_token(), process), state)
    assert plan(store, lease_seconds="600")["living_instances"] == 1
    store.sql("UPDATE instances SET heartbeat_at = :ago", ago=later(-60)[:26])
    assert plan(store)["living_instances"] == 0


def test_plan_of_many_tasks_takes_few_statements(store: Backend) -> None:
    store.insert_tasks(5_000, run_at=later(-60))
    with (
        store.database() as database,
        statements(database.engine) as executed,
        database.reading() as connection,
    ):
        found = recovery_plan.plan(connection, Rules(RUN), 2)
    assert (found.overdue, found.seconds) == (5_000, 5.0)
    assert len([one for one in executed if "scheduled_tasks" in one]) == 1
    assert len(executed) < 10


def test_command_that_cannot_says_why_in_one_line(tmp_path: Path) -> None:
    missing = Backend(f"sqlite:///{tmp_path}/nowhere.db")
    for store, settings, reason in (
        (missing, {}, r"There is no database \S+nowhere\.db\. Check DB_URL\."),
        (missing, {"RECOVERY_RATE": "0"}, r".*RECOVERY_RATE.*"),
        (
            Backend("postgresql+psycopg2://postgres@127.0.0.1:1/none"),
            {},
            r"The database cannot be reached \(.*\)\. Check DB_URL\.",
        ),
    ):
        done = command(store, tmp_path, **settings)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(reason + r"\n", done.stderr), done.stderr
    assert not (tmp_path / "nowhere.db").exists()


def test_command_insists_on_the_schema(store: Backend, tmp_path: Path) -> None:
    store.sql("UPDATE alembic_version SET version_num = '0815'")
    try:
        done = command(store, tmp_path)
    finally:
        store.sql("UPDATE alembic_version SET version_num = '0001'")
    assert done.returncode == 2
    assert re.fullmatch(r"The database.*\n", done.stderr), done.stderr
