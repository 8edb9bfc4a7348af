"""Signatures of webhooks: the vector that all implementations share, and what a receiver refuses."""

import time

import pytest
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from cogflare.domain.signatures import (
    BadSignature,
    format_secret,
    parse_secret,
    sign,
    signed_headers,
    verify,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, STAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OLD, NEW = b"o" * 24, b"\xff" * 24


def test_the_vector() -> None:
    assert sign(parse_secret(SECRET), ID, STAMP, BODY) == SIGNATURE
    assert format_secret(parse_secret(SECRET)) == SECRET
    verify(parse_secret(SECRET), signed_headers([parse_secret(SECRET)], ID, STAMP, BODY), BODY, STAMP)


def test_a_secret_has_one_underscore_whatever_its_bytes() -> None:
    for first in range(256):
        secret = format_secret(bytes([first, 255 - first, 0xFB]) * 8)
        assert secret.count("_") == 1
        assert "-" not in secret
        assert len(parse_secret(secret)) == 24


@pytest.mark.parametrize("text", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_n.base64", "whsec_abc"])
def test_what_is_no_secret(text: str) -> None:
    with pytest.raises(ValueError, match=r"whsec_|padding|base64|characters"):
        parse_secret(text)


def test_while_a_rotation_lasts_both_secrets_verify() -> None:
    headers = signed_headers([NEW, OLD], ID, STAMP, BODY)
    assert headers["webhook-signature"].count("v1,") == 2
    verify(NEW, headers, BODY, STAMP)
    verify(OLD, headers, BODY, STAMP)
    with pytest.raises(BadSignature, match="another secret"):
        verify(b"x" * 24, headers, BODY, STAMP)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"webhook-id": ""}, "not signed"),
        ({"webhook-signature": ""}, "not signed"),
        ({"webhook-id": "msg_other"}, "another"),
        ({"webhook-timestamp": str(STAMP + 1)}, "another"),
        ({"webhook-timestamp": "soon"}, "not a time"),
        ({"webhook-timestamp": "²"}, "not a time"),
        ({"webhook-timestamp": "9" * 16}, "not a time"),
        ({"webhook-timestamp": str(STAMP - 301)}, "too long ago"),
        ({"webhook-timestamp": str(STAMP + 301)}, "clocks differ"),
        ({"webhook-signature": "v1,AAAA"}, "another"),
        ({"webhook-signature": "é v2," + SIGNATURE[3:]}, "another"),
    ],
)
def test_what_a_receiver_refuses(changed: dict[str, str], problem: str) -> None:
    headers = {**signed_headers([OLD], ID, STAMP, BODY), **changed}
    with pytest.raises(BadSignature, match=problem):
        verify(OLD, headers, BODY, STAMP)


def test_another_body_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify(OLD, signed_headers([OLD], ID, STAMP, BODY), BODY + b" ", STAMP)


def test_without_a_tolerance_the_time_does_not_matter() -> None:
    verify(OLD, signed_headers([OLD], ID, STAMP, BODY), BODY, time.time(), None)


def test_the_validator_of_replicates_client_takes_what_we_sign() -> None:
    body = '{"output":"hällo ✓"}'
    headers = signed_headers([NEW, OLD], ID, int(time.time()), body.encode())
    for key in (NEW, OLD):
        Webhooks.validate(headers=headers, body=body, secret=WebhookSigningSecret(key=format_secret(key)), tolerance=60)
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=body + " ", secret=WebhookSigningSecret(key=format_secret(NEW)))
