"""The documentation pages in a real browser that can reach nothing but the service."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.app import service_process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Route, ViewportSize

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CLOSED_NETWORK = (
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PAGE_MILLISECONDS = 30_000
VIEWPORT: "ViewportSize" = {"width": 1280, "height": 1400}
REDOC_LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service as a newcomer starts it: a process of its own, on the embedded database."""
    with service_process(tmp_path_factory.mktemp("service"), {}) as service:
        service.start().close()
        yield service.url


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium whose names resolve to nothing."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="browser tests need the package playwright"
    )
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"browser tests need one of {', '.join(BROWSERS)} on PATH")
    with playwright_api.sync_playwright() as playwright:
        # Playwright adds --no-sandbox by itself: as root there is no sandbox.
        browser = playwright.chromium.launch(executable_path=executable, args=CLOSED_NETWORK)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", service_url: str) -> Iterator["Page"]:
    """A page of the service; nothing may fail on it, or even ask for more than the service."""
    foreign: list[str] = []
    failures: list[str] = []

    def keep_inside(route: "Route") -> None:
        url = route.request.url
        if url.startswith(f"{service_url}/"):
            route.continue_()
        else:
            foreign.append(url)
            route.abort()

    def note(request: "Request") -> None:
        # What the page's policy blocks ("csp") never becomes a request.
        if (request.url, request.failure) != (REDOC_LOGO, "csp"):
            failures.append(f"{request.url} {request.failure}")

    with browser.new_context(base_url=service_url, viewport=VIEWPORT) as context:
        context.set_default_timeout(PAGE_MILLISECONDS)
        context.route("**/*", keep_inside)
        page = context.new_page()
        page.on("requestfailed", note)
        page.on("pageerror", lambda error: failures.append(str(error)))
        yield page
        assert foreign == []
        assert failures == []


def test_example_of_post_tasks_executes_as_it_stands(page: "Page") -> None:
    page.goto("/docs")
    operation = page.locator(".opblock-post").filter(
        has=page.locator('.opblock-summary-path[data-path="/tasks"]')
    )
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    status = operation.locator(".live-responses-table tbody .response-col_status")
    status.wait_for()
    assert status.inner_text().split() == ["201"]


def test_redoc_shows_the_operations(page: "Page") -> None:
    page.goto("/redoc")
    operations = page.get_by_role("menuitem").filter(has=page.locator(".operation-type"))
    operations.filter(has_text="post").first.wait_for()
    assert operations.count() > 1
    assert page.get_by_text("/tasks", exact=True).count() > 1


def test_search_of_redoc_finds_an_operation(page: "Page") -> None:
    page.goto("/redoc")
    page.get_by_role("search").get_by_role("textbox").fill("task")
    page.locator("[data-role='search:results'] .operation-type").first.wait_for()
