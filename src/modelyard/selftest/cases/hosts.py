"""Hosts that are none, and some that are: their like has made servers take one path, or one caller, for another
(BadHost, CVE-2026-48710)."""

from __future__ import annotations

_STEMS = ("gateway", "127.0.0.1", "localhost:8000", "[::1]", "x.example")
_TAILS = (
    *("/", "/health", "/health?", "/v1/models", "?x", "?/health", "#", "#/health", "\\", "\\/health", "//health", ";x"),
    *("@evil", "/../health", "/%2e%2e/health", "%2fhealth", "%00", "%0d%0a", ",evil", ", gateway", " evil", "\tevil"),
    *(":", ":80a", ":80:80", ":-1", ":999999", ":+80", ":0x50", ": 80", "::1", "]", "[", "'", '"', "<", ">", "{", "}"),
    *("|", "^", "`", "~", "!", "$", "&", "*", "(", ")", "+", "="),
)
_HEADS = (
    *("/", "//", "\\", "?", "#", "@", "user@", "user:pass@", "http://", "https://", "javascript:", "file:///", "%2f"),
    *(",", ", ", "'", '"', "<", "[", "{", "*.", "%00", "\u00e9", "\u3002", "\u2044", "xn--\u00e9"),
)
BAD_HOSTS: tuple[bytes, ...] = tuple(
    dict.fromkeys(
        text.encode()
        for text in (
            *(stem + tail for stem in _STEMS for tail in _TAILS),
            *(head + stem for stem in _STEMS for head in _HEADS),
            *(
                "",
                "/",
                "/health",
                ":",
                ":8000",
                "[]",
                "[:",
                "[::1",
                "::1]",
                "[::1]x",
                "[gateway]",
                "a" * 300,
                "[::1%eth0]",
            ),
        )
    )
)
GOOD_HOSTS: tuple[bytes, ...] = (
    *(b"gateway", b"GATEWAY", b"gateway.example:8000", b"my_service:8000", b"10.0.0.1", b"[::1]", b"[::1]:8000"),
    *(b"evil.example", b"health", b"metadata.google.internal", b"169.254.169.254", b"localhost."),
)
