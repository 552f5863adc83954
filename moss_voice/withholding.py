"""What of the words said may be kept: a redactor that never raises and never lets a word pass by a fault.

A redactor that fails costs the words, not the privacy: the text is withheld, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

__all__ = ["WITHHELD", "Withholding"]

logger = logging.getLogger(__name__)

WITHHELD = "[withheld]"
_REMEMBERED = 512


class Withholding:
    """A redactor, made safe for a call. Called from any thread."""

    def __init__(self, redact: Callable[[str], str] | None) -> None:
        """Take a redactor; None lets everything pass."""
        self._redact = redact
        # What the LLM sees is asked about again for every reply.
        self._cleaned = lru_cache(maxsize=_REMEMBERED)(self._clean)

    def __repr__(self) -> str:
        return f"<Withholding {'on' if self._redact is not None else 'off'}>"

    def __bool__(self) -> bool:
        return self._redact is not None

    def clean(self, text: str) -> str:
        """Return what may be kept of a text."""
        return text if self._redact is None or not text.strip() else self._cleaned(text)

    def _clean(self, text: str) -> str:
        assert self._redact is not None  # noqa: S101 - clean() looked
        try:
            cleaned = self._redact(text)
        except Exception as error:  # noqa: BLE001 - a user's function; the words stay with us
            logger.error("a redactor failed (%s): the text is withheld", type(error).__name__)
            return WITHHELD
        if not isinstance(cleaned, str):
            logger.error(
                "a redactor returned %s, not str: the text is withheld", type(cleaned).__name__
            )
            return WITHHELD
        return cleaned

    def clean_part(self, before: Sequence[str], text: str) -> str:
        """Return what may be kept of a part of a turn that goes on.

        A number that is said in several breaths is one only to who hears them together: where the parts
        joined lose more than each alone does, this part is withheld until its turn is whole.

        Args:
            before: The parts of the turn that came before, as they were said.
            text: The part.
        """
        if self._redact is None:
            return text
        alone = [self.clean(part) for part in (*before, text)]
        together = self.clean(" ".join((*before, text)))
        same = " ".join(" ".join(alone).split()) == " ".join(together.split())
        return alone[-1] if same else WITHHELD
