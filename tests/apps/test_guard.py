"""Which hosts and origins may ask, and the headers of every answer."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from fewstep.apps.guard import allowed_host, same_origin


def test_http_answers_carry_the_security_headers_and_no_page_names_another_host(shared_server: Any):
    page = httpx.get(shared_server.url)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    web = Path(str(sys.modules["fewstep.apps"].__path__[0])) / "web"
    files = [path for path in web.rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert files
    for path in files:
        text = path.read_text()
        assert "http://" not in text
        assert "https://" not in text
    assert httpx.get(shared_server.url + "docs").status_code == 404


def test_a_foreign_host_header_is_refused(shared_server: Any):
    assert httpx.get(shared_server.url, headers={"Host": "rebind.example"}).status_code == 400


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8765", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8765", True),
        ("192.0.2.7:8765", True),
        ("[2001:db8::1]:8765", True),
        ("192.0.2.7.example.org", False),
        ("192.0.2.7@example.org", False),
        ("", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
        ("localhost@example.org", False),
        ("[", False),
    ],
)
def test_only_loopback_names_and_addresses_are_hosts(host: str, allowed: bool):
    assert allowed_host(host) is allowed


def test_the_origin_must_be_our_own_page():
    assert same_origin(None, "localhost:1")
    assert same_origin("http://localhost:1", "localhost:1")
    assert not same_origin("http://localhost:2", "localhost:1")
    assert not same_origin("null", "localhost:1")
