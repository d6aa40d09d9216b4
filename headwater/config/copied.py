"""What people copy out of mails, chats and browsers: texts with marks in them that nobody sees.

:func:`cleaned` takes them off, :func:`server_address` reads an address as it is often copied. Pure; no torch.
"""

from __future__ import annotations

import re

_UNSEEN = dict.fromkeys([0x00AD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF])
"""Soft hyphen, spaces without width, marks of direction, byte order mark."""
_HYPHENS = {0x2010: "-", 0x2011: "-"}
"""Hyphen and non-breaking hyphen: what programs put in the place of the one on the keyboard."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]?#]+):(\d{1,5})")


def cleaned(text: str) -> str:
    """``text`` without characters that cannot be seen, and with the keyboard's hyphen for its relatives."""
    return text.translate({**_UNSEEN, **_HYPHENS})


def server_address(text: str) -> str:
    """``host:port`` of a text that was copied: ``https://`` before it and slashes behind it are passed over.

    Raises:
        ValueError: what was expected instead.
    """
    address = cleaned(text).strip().strip("<>\"'`").strip()
    found = _SCHEME.fullmatch(address)
    if found:
        if found[1].lower() != "https":
            raise ValueError(f'"host:port" without "{found[1]}://": the connection is always https')
        address = found[2]
    address = address.rstrip("/")
    if "/" in address or "?" in address or "#" in address:
        raise ValueError('"host:port" with no path behind it')
    if "@" in address:
        raise ValueError('"host:port" with no user before it')
    if address.count(":") > 1 and not address.startswith("["):
        raise ValueError('an IPv6 address in brackets before its port, such as "[2001:db8::7]:8443"')
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        if re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]+):?", address):
            raise ValueError('"host:port": the port is missing')
        raise ValueError('"host:port", such as "fl.example.org:8443"')
    if not 0 < int(parts[2]) < 65536:
        raise ValueError("a port from 1 to 65535")
    return f"{parts[1]}:{int(parts[2])}"
