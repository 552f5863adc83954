"""What stands for a project where its name is not to be seen."""

from __future__ import annotations

import hashlib

__all__ = ["project_hash"]


def project_hash(project: str) -> str:
    """Return what logs call a project; `moss-voice project list` shows it beside the name."""
    return hashlib.sha256(project.encode("utf-8", "surrogatepass")).hexdigest()[:12]
