"""Which URLs are ours, however they are spelled, and which texts may hold one."""

from urllib.parse import SplitResult, urlsplit

import pytest

from cogflare.domain import filefields
from cogflare.domain.filefields import OwnFile, file_schema, has_marks, own_file

ID = "01m81yq9sxr412tnh19ws7m0nb0123456789abcd"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (f"https://host/v1/files/{ID}", OwnFile("upload", ID)),
        (f"HTTP://[::1]:8000/v1/v1/files/{ID}?x=1#y", OwnFile("upload", ID)),
        (f"https://host/prefix/files/{ID}", OwnFile("upload", ID)),
        (f"https://host/v1/files/{ID}/download?owner=x", OwnFile("signed", ID)),
        (f"https://host/v1/files/{ID}/download/a%20cat.png?owner=x", OwnFile("signed", ID)),
        (f"https://host/f/{ID}/cat.png", OwnFile("open", ID)),
        (f"https://host/f/{ID}/", None),
        (f"https://host/f/{ID}", None),
        (f"https://host/v1/files/{ID}/other", None),
        (f"https://host/v1/files/{ID}x", None),
        (f"https://host/v1/files/{ID.upper()}", None),
        (f"https://host/?/v1/files/{ID}", None),
        (f"https://host/{'x' * 5_000}/v1/files/{ID}", None),
        (f"ftp://host/v1/files/{ID}", None),
        (f"/v1/files/{ID}", None),
        (f"https://[host/v1/files/{ID}", None),
        ("", None),
    ],
)
def test_urls_of_ours(url: str, found: OwnFile | None) -> None:
    assert own_file(url) == found


def test_texts_that_may_name_a_file() -> None:
    for text in (f'{{"a":"https://host/v1/files/{ID}"}}', f'["http://host/f/{ID}/x"]', '["cogflare-file:/f/x/y"]'):
        assert has_marks(text.encode())
    for text in ('{"a":"https://host/files/list"}', '["profiles/of/mine"]', '["a cogflare-file:/f/x"]', "{}"):
        assert not has_marks(text.encode())


def test_the_parser_of_urls_is_not_fed_with_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # It remembers the last URLs, however long they are, and clients may send megabytes.
    parsed: list[str] = []

    def split(url: str) -> SplitResult:
        parsed.append(url)
        return urlsplit(url)

    monkeypatch.setattr(filefields, "urlsplit", split)
    assert own_file(f"https://host/f/{ID}/{'x' * 100_000}") is None
    assert parsed == []
    assert own_file(f"https://host/f/{ID}/x") == OwnFile("open", ID)
    assert len(parsed) == 1


def test_a_schema_without_files_is_none() -> None:
    def document(properties: object) -> dict[str, object]:
        return {"components": {"schemas": {"Input": {"type": "object", "properties": properties}}}}

    assert file_schema(document({"prompt": {"type": "string"}})) is None
    assert file_schema(document({"image": {"type": "string", "format": "uri"}})) is not None
    assert file_schema(document({"a": {"$ref": "nowhere"}})) is None
    assert file_schema({}) is None
