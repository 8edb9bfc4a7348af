"""Signatures against the examples that Amazon publishes for S3."""

import hashlib

import pytest

from cogflare.blobs.sigv4 import EMPTY_SHA256, Signing, path_of, presign, query_string, sign

EXAMPLE = Signing("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
BUCKET = "https://examplebucket.s3.amazonaws.com"
AT_S = 1369353600.0  # 2013-05-24T00:00:00Z


def signature(headers: dict[str, str]) -> str:
    return headers["authorization"].rpartition("Signature=")[2]


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload", "wanted"),
    [
        pytest.param(
            *("GET", "/test.txt", {}, {"Range": "bytes=0-9"}, b""),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            id="get an object",
        ),
        pytest.param(
            *("PUT", "/" + path_of("test$file.text"), {}),
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            id="put an object",
        ),
        pytest.param(
            *("GET", "/", {"lifecycle": ""}, {}, b""),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            id="a query without a value",
        ),
        pytest.param(
            *("GET", "/", {"max-keys": "2", "prefix": "J"}, {}, b""),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            id="list objects",
        ),
    ],
)
def test_signed_requests(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], payload: bytes, wanted: str
) -> None:
    signed = sign(EXAMPLE, method, BUCKET + path, query, headers, hashlib.sha256(payload).hexdigest(), AT_S)
    assert signature(signed) == wanted
    assert signed["x-amz-date"] == "20130524T000000Z"
    assert "host" not in signed


def test_a_signed_url() -> None:
    url = presign(EXAMPLE, "GET", f"{BUCKET}/test.txt", {}, {}, 86_400, AT_S)
    assert url == (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z"
        "&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


def test_no_url_is_valid_longer_than_s3_allows() -> None:
    assert "X-Amz-Expires=604800&" in presign(EXAMPLE, "GET", f"{BUCKET}/x", {}, {}, 10**9, AT_S)


def test_the_host_is_signed_as_clients_send_it() -> None:
    def signed(url: str) -> str:
        return signature(sign(EXAMPLE, "GET", url, {}, {}, EMPTY_SHA256, AT_S))

    assert signed("https://example.net:443/x") == signed("https://example.net/x")
    assert signed("http://example.net:80/x") == signed("http://example.net/x")
    assert signed("https://example.net:9000/x") != signed("https://example.net/x")
    assert signed("https://EXAMPLE.net/x") == signed("https://example.net/x")


def test_what_is_encoded() -> None:
    assert query_string({"b": "a b/ü&=+~", "a": ""}) == "a=&b=a%20b%2F%C3%BC%26%3D%2B~"
    assert query_string({"a-b": "2", "a": "1"}) == "a=1&a-b=2"
    assert path_of("a b/ü+~") == "a%20b/%C3%BC%2B~"


def test_secrets_are_not_shown() -> None:
    assert EXAMPLE.secret_access_key not in repr(EXAMPLE)
    assert EXAMPLE.access_key_id not in repr(EXAMPLE)
