"""The package as a whole: its front door, and what it never does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import moss_voice

PACKAGE = Path(moss_voice.__file__).parent


@pytest.mark.parametrize("name", moss_voice.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each name that `__all__` promises can be had, and `dir` lists it."""
    assert getattr(moss_voice, name) is not None
    assert name in dir(moss_voice)


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there fails as it does in any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        moss_voice.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import moss_voice` is free: what costs is imported with the first name."""
    code = "import sys, moss_voice; print(sorted({'numpy', 'pydantic', 'obstore'} & sys.modules.keys()))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert shown.stdout.strip() == "[]"


def test_no_pickle_anywhere() -> None:
    """No module of the package unpickles, or lets numpy do so."""
    for path in PACKAGE.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert "import pickle" not in code, path
        assert "allow_pickle=True" not in code, path
        assert "import marshal" not in code, path
