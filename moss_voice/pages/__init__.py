"""Pages for people: templates that escape every value, one look, one strict content security policy.

The law: whatever somebody said on the phone may stand in a page, so nothing is markup but what a template
says, nothing runs but a script of ours, and nothing is asked of any host.

Synchronous; knows no network. A template lies beside the room that shows it; `common/` holds the look.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import resources

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["HEADERS", "asset", "environment", "policy", "script_data", "source_hash"]

# Of every page, beside its policy.
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@cache
def environment(package: str, folder: str = "templates") -> Environment:
    """Return the templates of a package; what all share is `common/...`.

    Every value is escaped, and one that is missing raises where it is written.

    Args:
        package: Such as `moss_voice.server`.
        folder: In the package.
    """
    made = Environment(
        loader=ChoiceLoader(
            [
                PrefixLoader({"common": PackageLoader("moss_voice.pages", "common")}),
                PackageLoader(package, folder),
            ]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"bytes": told_bytes, "clock": told_clock, "when": told_when, "ms": told_ms}
    return made


@cache
def asset(package: str, name: str) -> str:
    """Return a text file of a package, such as a style or a script."""
    return resources.files(package).joinpath(name).read_text("utf-8")


def source_hash(source: str) -> str:
    """Return how a policy names an inline style or script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def policy(
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    connects: bool = False,
    forms: bool = False,
    files: bool = False,
) -> str:
    """Return a content security policy under which a page may do what is named here, and nothing else.

    Args:
        styles: The inline styles, whole.
        scripts: The inline scripts, whole.
        connects: Whether scripts may ask the page's own host.
        forms: Whether forms may be sent to it.
        files: Whether styles, scripts and images may come from it as files of their own.
    """
    own = ["'self'"] if files else []
    allowed = {
        "style-src": " ".join([*own, *map(source_hash, styles)]),
        "script-src": " ".join([*own, *map(source_hash, scripts)]),
        "img-src": " ".join(own),
        "connect-src": "'self'" if connects else "",
        "form-action": "'self'" if forms else "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    told = [f"{name} {what}" for name, what in allowed.items() if what]
    return "; ".join(["default-src 'none'", *told])


def script_data(value: object) -> Markup:
    """Return JSON for a `<script type="application/json">`, which no value in it can close."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - escaped just above


# --- numbers for people ----------------------------------------------------------------------------


def told_bytes(size: float) -> str:
    """Return a size as `4.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000.0:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100.0 else f"{size:.1f} {unit}"
        size /= 1000.0
    return f"{size:.1f} TB"


def told_clock(at_s: float) -> str:
    """Return seconds into a call as `03:21`, from an hour on as `1:03:21`."""
    minutes, seconds = divmod(max(0, int(at_s)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def told_ms(took_ms: float) -> str:
    """Return milliseconds as `0.42 ms`, `4.2 ms` or `120 ms`."""
    digits = 2 if took_ms < 1.0 else 1 if took_ms < 100.0 else 0
    return f"{took_ms:.{digits}f} ms"


def told_when(at: datetime) -> str:
    """Return a time as `2026-11-27 01:12:09 UTC`."""
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")
