"""What /docs and /redoc are made of is here, untouched, licensed, and served by the service."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from job_scheduler.web.docs import STATIC, add_docs

MANIFEST: dict[str, dict[str, Any]] = json.loads((STATIC / "manifest.json").read_text())
PAGES = ["/docs", "/redoc"]
CONTENT_TYPES = {
    ".js": ("text/javascript", "application/javascript"),
    ".css": ("text/css",),
    ".png": ("image/png",),
    ".json": ("application/json",),
}


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a small app whose title would break a page that did not escape it."""
    app = FastAPI(title='Jobs <b>&</b> "more" {braces}', docs_url=None, redoc_url=None)
    add_docs(app)
    with TestClient(app) as client:
        yield client


def sha512(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def references(html: str) -> list[str]:
    """Every URL that the page names."""
    return re.findall(r'(?:src|href|[a-z-]*url)="([^"]*)"', html)


@pytest.mark.parametrize("directory", MANIFEST)
def test_vendored_files_are_exactly_those_of_the_manifest(directory: str) -> None:
    found = {
        path.relative_to(STATIC / directory).as_posix(): sha512(path.read_bytes())
        for path in (STATIC / directory).rglob("*")
        if path.is_file()
    }
    assert found == MANIFEST[directory]["files"]


def test_manifest_covers_every_vendored_directory() -> None:
    assert {path.name for path in STATIC.iterdir() if path.is_dir()} == set(MANIFEST)


@pytest.mark.parametrize("directory", MANIFEST)
def test_manifest_pins_a_package_and_names_no_registry(directory: str) -> None:
    entry = MANIFEST[directory]
    assert set(entry) == {"package", "version", "integrity", "files"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
    assert len(base64.b64decode(entry["integrity"].removeprefix("sha512-"))) == 64
    assert "://" not in json.dumps(entry)


@pytest.mark.parametrize("directory", MANIFEST)
def test_vendored_code_comes_with_its_licences(directory: str) -> None:
    files = set(MANIFEST[directory]["files"])
    assert "LICENSE" in files
    for name in files:
        content = (STATIC / directory / name).read_text(errors="replace")
        if named := re.match(r"/\*! For license information please see (\S+) \*/", content):
            assert named[1] in files


@pytest.mark.parametrize("page", PAGES)
def test_page_names_only_urls_of_the_service_and_each_answers(
    client: TestClient, page: str
) -> None:
    urls = references(client.get(page).text)
    assert "openapi.json" in urls
    assert len(urls) >= 4
    for url in urls:
        assert not re.match(r"/|[a-z]+:", url), f"{url} is not relative to the page"
        answer = client.get(f"/{url}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in CONTENT_TYPES[Path(url).suffix]


@pytest.mark.parametrize("page", PAGES)
def test_page_lets_the_browser_load_nothing_from_elsewhere(client: TestClient, page: str) -> None:
    answer = client.get(page)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    directives = dict(
        directive.split(" ", 1)
        for directive in answer.headers["content-security-policy"].split("; ")
    )
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert directives["img-src"] == "'self' data:"
    local = {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    assert {source for sources in directives.values() for source in sources.split()} <= local


@pytest.mark.parametrize("page", PAGES)
def test_title_of_the_app_is_escaped(client: TestClient, page: str) -> None:
    title = "<title>Jobs &lt;b&gt;&amp;&lt;/b&gt; &quot;more&quot; {braces}</title>"
    assert title in client.get(page).text


@pytest.mark.parametrize("page", PAGES)
def test_page_works_below_the_prefix_of_a_proxy(page: str) -> None:
    app = FastAPI(docs_url=None, redoc_url=None)
    add_docs(app)
    outer = FastAPI()
    outer.mount("/jobs", app)
    with TestClient(outer) as client:
        answer = client.get(f"/jobs{page}")
        for url in references(answer.text):
            assert client.get(str(answer.url.join(url))).status_code == 200


def test_pages_stay_out_of_the_api_description(client: TestClient) -> None:
    assert client.get("/openapi.json").json()["paths"] == {}


def test_asset_is_sent_again_only_when_it_has_changed(client: TestClient) -> None:
    url = "/static/swagger-ui/swagger-ui.css"
    first = client.get(url)
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    changed = client.get(url, headers={"If-None-Match": '"an older one"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("path", ["docs.py", "../docs.py", "%2e%2e/docs.py", "redoc", "nothing.js"])
def test_nothing_but_the_static_files_is_served(client: TestClient, path: str) -> None:
    assert client.get(f"/static/{path}").status_code == 404
