"""Credentials: the keys and certificates of a server's folder, made and renewed.

::

    secrets/ca.key ca.pem                  the authority: signs the two below; agents are given ca.pem
    secrets/server.key server.pem          what the daemon shows to agents and organisers
    secrets/organiser.key organiser.pem    opens the control port
    secrets/web.token                      opens the web page
    secrets/receipts.key receipts.json     signs receipts; the authority's word for it

All are 0600 in a folder 0700. Each key is written before its certificate; where a crash leaves a pair that
does not fit, :meth:`Credentials.check` says so and making it again mends it.
"""

from __future__ import annotations

import json
import secrets
import shutil
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headwater.errors import StorageError
from headwater.files import sync_folder
from headwater.security.certificates import Authority, days_left, describe, names_of
from headwater.security.keyfiles import check_folder, read_secret, secret_folder, write_secret
from headwater.security.receipt_keys import ReceiptKey, fingerprint

WARN_DAYS = 30
_FILES = ("ca.pem", "server.key", "server.pem", "organiser.key", "organiser.pem", "web.token")


@dataclass(frozen=True)
class Credentials:
    """The folder ``secrets/``."""

    folder: Path

    def create(self, name: str, names: Sequence[str]) -> None:
        """Make a new authority and everything it signs.

        Args:
            name: of the authority, for people.
            names: DNS names and addresses of the server.

        Raises:
            StorageError: it cannot be written, or there is an authority.
        """
        Authority.create(name).save(self.folder)
        self.renew_server(names)
        self.renew_organiser()
        self.renew_token()

    def renew_server(self, names: Sequence[str]) -> str:
        """A new key and certificate for the daemon, which it takes when it starts; one line about it."""
        certificate, key = self._authority().issue_server(names)
        return self._write("server", certificate, key)

    def renew_organiser(self, name: str = "organiser") -> str:
        """A new key and certificate for the control port; one line about it.

        The old one stays good until it ends: only a new authority takes it back before.
        """
        certificate, key = self._authority().issue_organiser(name)
        return self._write("organiser", certificate, key)

    def renew_token(self) -> None:
        """A new token for the web page, which the daemon takes when it starts."""
        write_secret(self.folder / "web.token", secrets.token_urlsafe(32).encode() + b"\n")

    def renew_authority(self, name: str, names: Sequence[str]) -> None:
        """A new authority in place of a lost or stolen one, and everything it signs.

        The new folder is made beside the old one and takes its place; the old keys are deleted.

        Raises:
            StorageError: it cannot be written; the old one is intact.
        """
        new, old = self.folder.with_name(".secrets.new"), self.folder.with_name(".secrets.old")
        try:
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            secret_folder(new)
            Credentials(new).create(name, names)
            if self.folder.exists():
                self.folder.rename(old)
            new.rename(self.folder)
            sync_folder(self.folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            if not self.folder.exists() and old.exists():
                old.rename(self.folder)
            got = error.strerror or str(error)
            raise StorageError(f"writing {new}", expected="a new authority", got=got) from error

    def ca(self) -> bytes:
        """The authority's certificate, PEM: agents and organisers trust it alone."""
        return self._read("ca.pem")

    def server(self) -> tuple[bytes, bytes]:
        """The daemon's certificate and key, PEM."""
        return self._read("server.pem"), self._read("server.key")

    def organiser(self) -> tuple[bytes, bytes]:
        """The organiser's certificate and key, PEM."""
        return self._read("organiser.pem"), self._read("organiser.key")

    def web_token(self) -> str:
        """The token of the web page."""
        return self._read("web.token").decode("ascii", "replace").strip()

    def receipt_key(self) -> ReceiptKey:
        """What signs the runs' receipts, made when it is first asked for.

        The authority vouches for it where ``ca.key`` is here, and its word is kept for when it is not.

        Raises:
            StorageError: a file is damaged or others may read it.
        """
        key = ReceiptKey.of_file(self.folder / "receipts.key")
        word = self.folder / "receipts.json"
        if word.exists():
            content = json.loads(read_secret(word, hint="Remove it: it is made again."))
            if content["key"] == key.public and content["authority"] == fingerprint(self.ca()):
                return replace(key, authority=content["authority"], attestation=content["attestation"])
        if (self.folder / "ca.key").exists():
            key = key.vouched_for(self._authority())
            said = {"key": key.public, "authority": key.authority, "attestation": key.attestation}
            write_secret(word, json.dumps(said).encode() + b"\n")
        return key

    def check(self, server_folder: Path) -> None:
        """Find everything here, closed to others, in pairs that fit, and not ended.

        ``ca.key`` alone may be absent: some keep it elsewhere until they renew.

        Raises:
            StorageError: says which file, and the command that mends it.
        """
        if not self.folder.exists():
            raise StorageError(
                f"folder {self.folder}",
                expected="the keys and certificates of this server",
                got="no such folder",
                hint="Was it restored from a backup without secrets? Put your copy of secrets/ there, or, if "
                f"there is none, make a new authority: headwater server renew {server_folder} --authority",
            )
        check_folder(self.folder, hint="")
        for name in _FILES:
            self._read(name)
        if (self.folder / "ca.key").exists():
            self._read("ca.key")
        for name, flag in (("server", ""), ("organiser", " --organiser")):
            renew = f"headwater server renew {server_folder}{flag}"
            pem = self._read(f"{name}.pem")
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
            except ssl.SSLError as error:
                raise StorageError(
                    f"{self.folder / name}.pem",
                    expected=f"a certificate that fits {name}.key",
                    got=error.reason or str(error),
                    hint=f"Make both again: {renew}",
                ) from None
            if name == "server" and days_left(pem) <= 0:
                raise StorageError(
                    f"{self.folder / name}.pem",
                    expected="a certificate that has not ended",
                    got=describe(pem),
                    hint=f"Renew it: {renew}",
                )

    def notices(self, server_folder: Path, names: Sequence[str]) -> tuple[str, ...]:
        """What ends within :data:`WARN_DAYS` days, and names that the certificate lacks."""
        lines = []
        renewals = {"ca": " --authority", "server": "", "organiser": " --organiser"}
        for name, flag in renewals.items():
            pem = self._read(f"{name}.pem")
            left = days_left(pem)
            if left < WARN_DAYS:
                when = f"ends in {int(left)} days" if left > 0 else "has ended"
                lines.append(f"{name}.pem {when}. Renew it: headwater server renew {server_folder}{flag}")
        missing = sorted(set(names) - set(names_of(self._read("server.pem"))))
        if missing:
            lines.append(
                f"server.toml names {', '.join(missing)}, which server.pem does not. "
                f"Renew it: headwater server renew {server_folder}"
            )
        return tuple(lines)

    def _authority(self) -> Authority:
        key = self.folder / "ca.key"
        if self.folder.exists() and not key.exists():
            raise StorageError(
                str(key),
                expected="the authority's key, which signs certificates",
                got="no such file",
                hint="Put your copy back. If there is none: headwater server renew DIR --authority; every "
                "agent needs the new ca.pem.",
            )
        return Authority.load(self.folder)

    def _read(self, name: str) -> bytes:
        return read_secret(
            self.folder / name, hint="Restore it from a backup, or see headwater server renew."
        )

    def _write(self, name: str, certificate: bytes, key: bytes) -> str:
        write_secret(self.folder / f"{name}.key", key)
        write_secret(self.folder / f"{name}.pem", certificate)
        return describe(certificate)
