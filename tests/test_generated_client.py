"""A client that a public generator makes of openapi.json works.

openapi-python-client needs other versions than we do, so that it has an environment of its own:
`OPENAPI_GENERATOR` names its program, else it is looked for on PATH.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.app import Backend, service_process
from tests.support.services import skip_or_fail

_PROGRAM = """
import datetime
import sys

from job_scheduler_service_client import Client
from job_scheduler_service_client.api.tasks import (
    cancel_task, change_task, create_task, create_tasks, delete_tasks, explain_task, forecast,
    list_runs, list_tasks, list_times, pause_task, preview_task, resume_task, show_task,
)
from job_scheduler_service_client.models import (
    ChangeTaskTaskChange, CreateTasksTaskBatch, CreateTasksTaskBatchTaskCreate, Problem, TaskCreate,
    TaskCreatePayloadType0, TaskStatus,
)

future = datetime.datetime(2031, 7, 1, 12, tzinfo=datetime.timezone.utc)
payload = TaskCreatePayloadType0()
payload["hours"] = 48

with Client(base_url=sys.argv[1]) as client:
    wanted = TaskCreate(name="send_report", run_at=future, payload=payload, tags=["a"])
    task = create_task.sync(client=client, body=wanted, idempotency_key="one")
    again = create_task.sync(client=client, body=wanted, idempotency_key="one")
    assert task.task_id == again.task_id
    assert (task.run_at, task.status, task.payload["hours"]) == (future, TaskStatus.SCHEDULED, 48)
    assert show_task.sync(task.task_id, client=client) == task
    assert list_tasks.sync(client=client, tag=["a"], status=[TaskStatus.SCHEDULED]) == [task]
    later = future + datetime.timedelta(days=1)
    change = ChangeTaskTaskChange(run_at=later)
    assert change_task.sync(task.task_id, client=client, body=change).run_at == later
    assert pause_task.sync(task.task_id, client=client).status == TaskStatus.PAUSED
    assert resume_task.sync(task.task_id, client=client).status == TaskStatus.SCHEDULED
    assert explain_task.sync(task.task_id, client=client).status == TaskStatus.SCHEDULED
    back = change_task.sync(task.task_id, client=client, body=ChangeTaskTaskChange(priority=None))
    assert back.priority == 0
    assert cancel_task.sync(task.task_id, client=client).status == TaskStatus.CANCELLED
    assert list_runs.sync(task.task_id, client=client) == []
    refused = pause_task.sync_detailed(task.task_id, client=client)
    assert (refused.status_code, refused.parsed.error_code) == (409, "TASK_PAUSE_409")
    assert isinstance(refused.parsed, Problem)
    each = CreateTasksTaskBatchTaskCreate(name="send_report", cron="0 9 * * MON", timezone="UTC")
    first, _ = create_tasks.sync(client=client, body=CreateTasksTaskBatch(tasks=[each, each]))
    assert len(list_times.sync(first.task_id, client=client, n=3)) == 3
    cron = TaskCreate(name="send_report", cron="0 9 * * MON")
    assert preview_task.sync(client=client, body=cron).next_[0].offset == "+00:00"
    assert forecast.sync(client=client, hours=168).total == 2
    assert delete_tasks.sync(client=client, name=["send_report"]).tasks == 2
"""


@pytest.mark.slow
def test_generated_client_works(store: Backend, tmp_path: Path) -> None:
    found = os.environ.get("OPENAPI_GENERATOR") or shutil.which("openapi-python-client")
    if found is None:
        skip_or_fail("no openapi-python-client on PATH (it needs an environment of its own)")
    with service_process(tmp_path, store.environment()) as service, service.start() as client:
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(client.get("/openapi.json").json()))
        made = tmp_path / "made"
        generating = subprocess.run(
            [found, "generate", "--path", document, "--output-path", made],
            capture_output=True,
            text=True,
            check=True,
        )
        said = " ".join((generating.stdout + generating.stderr).split())
        left_out = re.findall(r"parsing (\w+ \S+) within \w+\. Endpoint will not be gener", said)
        assert left_out == ["POST /tasks/import"]  # Its body is no JSON.
        python = Path(found).resolve().parent / "python"
        using = subprocess.run(
            [python, "-c", _PROGRAM, service.url],
            cwd=made,
            capture_output=True,
            text=True,
            check=False,
        )
        assert using.returncode == 0, using.stderr
