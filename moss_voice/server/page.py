"""`/docs`: the API's description as a page, whole in one answer: no script, no font, no host but this one."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

__all__ = ["add_to", "render"]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; background: var(--soft); padding: .75rem; border-radius: .4rem; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-top: 1px solid var(--line); }
h2 { margin-top: 2rem; } .method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
.told { display: block; padding-left: 5.4rem; font-size: .9em; }
@media (max-width: 40rem) { .told { padding-left: 1.1rem; } }
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


def add_to(app: FastAPI) -> None:
    """Serve the page of an application's description."""
    made: list[str] = []

    async def docs(request: Request) -> Response:  # noqa: ARG001
        if not made:
            made.append(render(app.openapi()))
        return HTMLResponse(made[0], headers={"Content-Security-Policy": _POLICY})

    app.add_api_route("/docs", docs, include_in_schema=False)


def render(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as a page."""
    info = document["info"]
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[-1]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    parts = [f"<h2>{_text(tag)}</h2>\n" + "\n".join(made) for tag, made in by_tag.items()]
    schemas = "\n".join(
        f'<details id="{_text(name)}"><summary><code>{_text(name)}</code></summary>{_schema(schema)}</details>'
        for name, schema in sorted(document.get("components", {}).get("schemas", {}).items())
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(info['title'])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(info['title'])}, version {_text(info['version'])}</h1>\n"
        f"<p>{_text(info.get('description', ''))}</p>\n"
        "<p>Everything below <code>/v1</code> needs <code>Authorization: Bearer KEY_OR_TOKEN</code>."
        ' The same as <a href="/openapi.json">OpenAPI</a>.</p>\n'
        f"{''.join(parts)}\n<h2>Shapes</h2>\n{schemas}\n</body>\n</html>\n"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{_text(operation.get('description') or operation.get('summary', ''))}</p>"]
    rows = [
        f"<tr><td><code>{_text(p['name'])}</code></td><td>{_text(p['in'])}</td>"
        f"<td>{_text(p.get('description', ''))}</td></tr>"
        for p in operation.get("parameters", ())
    ]
    if rows:
        parts.append(
            f"<table><tr><th>parameter</th><th>in</th><th></th></tr>{''.join(rows)}</table>"
        )
    body = operation.get("requestBody")
    if body:
        parts.append(f"<p>Body: {_contents(body)}</p>")
    answers = [
        f"<tr><td>{_text(status)}</td><td>{_text(answer.get('description', ''))}</td>"
        f"<td>{_contents(answer)}</td></tr>"
        for status, answer in operation["responses"].items()
    ]
    parts.append(f"<table><tr><th>answer</th><th></th><th></th></tr>{''.join(answers)}</table>")
    told = str(operation.get("description") or operation.get("summary", "")).partition("\n")[0]
    return (
        f'<details><summary><span class="method">{_text(method.upper())}</span>'
        f'<code>{_text(path)}</code><span class="told">{_text(told)}</span></summary>'
        f"{''.join(parts)}</details>"
    )


def _contents(holder: dict[str, Any]) -> str:
    told = []
    for kind, content in holder.get("content", {}).items():
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        shape = f' <a href="#{_text(name)}">{_text(name)}</a>' if name else ""
        told.append(f"<code>{_text(kind)}</code>{shape}")
    return ", ".join(told)


def _schema(schema: dict[str, Any]) -> str:
    return f"<pre>{_text(json.dumps(schema, indent=2))}</pre>"


def _text(value: object) -> str:
    return html.escape(str(value))
