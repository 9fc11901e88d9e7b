"""Text that others wrote, made safe for a terminal: what would steer it is shown instead of obeyed.

A model's output may hold escape sequences (colours, window titles, links, answers to queries that land in the next
shell line). A sequence begins with a control character: with none of those left, the rest of it is only letters. Each
character is judged alone, so text may come in pieces of any size."""

from __future__ import annotations

import re

# C0 controls have pictures of their own (U+2400 and on); C1 controls, and characters that reorder text or break lines
# unseen, are shown by number. The marks of right-to-left writing (U+061C, U+200E, U+200F) only help it, and stay.
_KEPT = "\n\t"
_REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_BREAKING = (0x2028, 0x2029, *range(0xFFF9, 0xFFFC))
_UNSAFE: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _KEPT},
    0x7F: "\u2421",
    **{code: f"<{code:02X}>" for code in range(0x80, 0xA0)},
    **{code: f"<{code:04X}>" for code in (*_REORDERING, *_BREAKING)},
    # A lone surrogate cannot be written as UTF-8 at all.
    **{code: "\ufffd" for code in range(0xD800, 0xE000)},
}
# What programs write into their own logs to colour them: it says nothing once the colour is gone.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    """`text` with every control character but newline and tab shown as a picture or a number."""
    return text.translate(_UNSAFE)


def log_line(text: str) -> str:
    """The same for a line of a log; colours are taken out, and so is the return at the end of a Windows line."""
    return visible(_COLOUR.sub("", text).removesuffix("\r"))
