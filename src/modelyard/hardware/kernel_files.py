"""Small files of /proc and /sys."""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str:
    """Empty where it is not there, or not ours to read: an old kernel, another system, a container."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
