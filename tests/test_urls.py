"""Passwords never reach a message."""

import pytest

from umscale.urls import redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("mysql+pymysql://me:s%40c:r@t@host:3306/db?a=1", "mysql+pymysql://me:***@host:3306/db?a=1"),
        ("s3://KEY:SECRET@bucket/x", "s3://KEY:***@bucket/x"),
        ("s3://bucket/x?secret_key=abc&region=eu", "s3://bucket/x?secret_key=***&region=eu"),
        ("redis://:secret@host", "redis://:***@host"),
        (
            "could not connect to postgresql://me:secret@host: refused",
            "could not connect to postgresql://me:***@host: refused",
        ),
        ("sqlite:///search.db", "sqlite:///search.db"),
        ("https://host:8080/path@x", "https://host:8080/path@x"),
        ("/home/me/journal.log", "/home/me/journal.log"),
        ("two://a:b@c two://d:e@f", "two://a:***@c two://d:***@f"),
    ],
)
def test_redact(url, shown):
    assert redact(url) == shown
    assert redact(shown) == shown
