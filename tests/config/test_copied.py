"""Addresses as people copy them: read where they say one thing, refused in a sentence where not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.copied import cleaned, server_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("fl.example.org:8443", "fl.example.org:8443"),
        ("https://fl.example.org:8443/", "fl.example.org:8443"),
        ("HTTPS://fl.example.org:8443//", "fl.example.org:8443"),
        (" <https://fl.example.org:8443> ", "fl.example.org:8443"),
        ("fl.exam\u00adple.org:8443\u200b", "fl.example.org:8443"),
        ("fl\u2011x.org:08443", "fl-x.org:8443"),
        ("[2001:db8::7]:8443", "[2001:db8::7]:8443"),
        ("https://[::1]:8443/", "[::1]:8443"),
        ("127.0.0.1:1", "127.0.0.1:1"),
    ],
)
def test_what_says_one_thing_is_read(text, address):
    assert server_address(text) == address
    assert server_address(address) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://x:1", "always https"),
        ("grpc://x:1", 'without "grpc://"'),
        ("x", "the port is missing"),
        ("https://x/", "the port is missing"),
        ("[::1]", "the port is missing"),
        ("::1:8443", "in brackets"),
        ("2001:db8::7", "in brackets"),
        ("x:70000", "1 to 65535"),
        ("x:0", "1 to 65535"),
        ("x:1/status", "no path"),
        ("ann@x:1", "no user"),
        ("x y:1", '"host:port"'),
        ("", '"host:port"'),
    ],
)
def test_the_rest_is_refused_by_what_is_wrong(text, says):
    with pytest.raises(ValueError, match=says):
        server_address(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        address = server_address(text)
    except ValueError:
        return
    assert server_address(address) == address
    assert cleaned(address) == address
    assert not set(address) & set(" /@<>\n")
