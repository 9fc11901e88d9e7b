"""Certificates for tests, made by the openssl program: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from needs import needs_program


@dataclass(frozen=True)
class Authority:
    """`sign` writes NAME.pem and NAME.key into the folder."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        subject = ("-subj", f"/CN={self.name}")
        self._openssl("req", "-x509", *_NEW_KEY, "-days", "2", *subject, "-keyout", self._key, "-out", self.certificate)

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    @property
    def _key(self) -> Path:
        return self.folder / f"{self.name}.key"

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for a server at localhost, or for a client."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", "2", "-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run([needs_program("openssl"), *arguments], check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
