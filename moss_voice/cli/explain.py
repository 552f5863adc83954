"""What a hit was ranked by, for people: its rank score as the sum that it is."""

from __future__ import annotations

from dataclasses import asdict

from moss_voice.types import HitParts

__all__ = ["explained"]


def explained(parts: HitParts, *, width: int) -> list[str]:
    """Return a rank score and what it is the sum of, without what rounds to nothing.

    Args:
        parts: Of one hit.
        width: Of a line; a sum that is longer goes on below its first part.

    Returns:
        Lines such as `rank 0.71 = semantic 0.52 + keyword 0.21 - neighbour 0.02`.
    """
    line = f"rank {parts.total:.2f}"
    indent = " " * len(line)
    lines: list[str] = []
    for name, value in asdict(parts).items():
        size = f"{abs(value):.2f}"
        if float(size) == 0.0:
            continue
        sign = "-" if value < 0.0 else "+"
        if "=" in line or lines:
            term = f" {sign} {name} {size}"
        else:
            term = f" = {name} {size if value > 0.0 else f'-{size}'}"
        if len(line + term) > width:
            lines.append(line)
            line = indent
        line += term
    return [*lines, line]
