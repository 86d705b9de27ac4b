"""The API's documentation at /docs (Swagger UI) and /redoc, with no internet access.

Every asset comes from this package (fetched by .ci/vendor-assets), and the pages' policy keeps the
browser from loading anything else. The pages' URLs are relative, hence right behind any prefix that
a reverse proxy adds.
"""

from html import escape
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self' 'unsafe-inline'",  # both pages style their elements from script
            "img-src 'self' data:",  # not the remote logo that Redoc asks for
            "font-src 'self' data:",
            "connect-src 'self'",
            "worker-src blob:",  # Redoc's search
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
}

SWAGGER_UI = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="static/swagger-ui/favicon-32x32.png">
<link rel="stylesheet" href="static/swagger-ui/swagger-ui.css">
</head>
<body>
<noscript>This page needs JavaScript. <a href="{openapi_url}">The API's description</a></noscript>
<div id="swagger-ui" data-openapi-url="{openapi_url}"></div>
<script src="static/swagger-ui/swagger-ui-bundle.js"></script>
<script src="static/docs.js"></script>
</body>
</html>
"""

REDOC = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="static/swagger-ui/favicon-32x32.png">
<style>body {{ margin: 0 }}</style>
</head>
<body>
<noscript>This page needs JavaScript. <a href="{openapi_url}">The API's description</a></noscript>
<redoc spec-url="{openapi_url}"></redoc>
<script src="static/redoc/redoc.standalone.js"></script>
</body>
</html>
"""


class RevalidatedFiles(StaticFiles):
    """Files that a browser keeps, and asks about before each use: an upgrade shows at once."""

    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def add_docs(app: FastAPI) -> None:
    """Give `app` the pages /docs and /redoc, and the files under /static that they need.

    The app itself is made with `docs_url=None, redoc_url=None`.
    """

    def page(template: str) -> HTMLResponse:
        openapi_url = app.url_path_for("openapi").lstrip("/")
        html = template.format(title=escape(app.title), openapi_url=escape(openapi_url))
        return HTMLResponse(html, headers=PAGE_HEADERS)

    async def swagger_ui(_: Request) -> HTMLResponse:
        return page(SWAGGER_UI)

    async def redoc(_: Request) -> HTMLResponse:
        return page(REDOC)

    app.mount("/static", RevalidatedFiles(directory=STATIC), name="static")
    app.add_route("/docs", swagger_ui, include_in_schema=False)
    app.add_route("/redoc", redoc, include_in_schema=False)
