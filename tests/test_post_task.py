"""POST /tasks: a task is created, or nothing of it is left behind."""

from job_scheduler.core.handlers.registry import HandlerRegistry
from tests.support.app import Backend, finished, later, post, running


def test_created_task_is_stored_scheduled_and_runs(
    backend: Backend, registry: HandlerRegistry
) -> None:
    registry.task("greet")(lambda name: f"Hello {name}")
    with running(backend, registry) as client:
        task = post(client, name="greet", run_at=later(0.3), payload={"name": "Ada"})
        assert task["status"] == "scheduled"
        assert client.get(f"/tasks/{task['task_id']}").json()["name"] == "greet"
        ended = finished(client, task["task_id"])
    assert (ended["status"], ended["result"]) == ("done", "Hello Ada")
    assert ended["started_at"] >= ended["run_at"]
