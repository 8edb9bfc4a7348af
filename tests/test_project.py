"""Promises about the whole tree: sizes, leftovers, links, and documents that say what is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cogflare.cli.main import cogflare
from cogflare.settings import Settings
from support import cli_reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
MODULES = sorted((ROOT / "src").rglob("*.py"))
TEXTS = [
    *MODULES,
    *PAGES,
    *(file for folder in ("tests", "bench", "examples") for file in sorted((ROOT / folder).rglob("*.py"))),
    *sorted((ROOT / "src").rglob("*.sql")),
    ROOT / "Makefile",
    ROOT / "pyproject.toml",
]
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 40
_LEFTOVER = re.compile("|".join(["TO" "DO", "FIX" "ME", "XX" "X"]) + r"\b")  # fmt: skip
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: Function) -> int:
    """Count the lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_is_short_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_functions_are_short_and_import_nothing(path: Path) -> None:
    for function in functions(path):
        assert code_lines(function) <= MAX_FUNCTION_LINES, f"{named(path)}:{function.lineno} {function.name} is long"
        inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not inner, f"{named(path)}:{function.lineno} {function.name} imports something"


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_nothing_is_left_to_do(path: Path) -> None:
    found = [number for number, line in enumerate(path.read_text().splitlines(), 1) if _LEFTOVER.search(line)]
    assert not found, f"{named(path)}: lines {found}"


# --- documents --------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as links to them are written."""
    headings = _HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{named(page)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{named(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_documents_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = "\n".join(re.findall(r"^ {4}.*$|`[^`\n]+`", text, re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])make ([a-z]+)", shown)) <= targets
    called = set(re.findall(r"(?<![\w/.-])cogflare ([a-z]+)(?: ([a-z]+))?", shown))
    for name, child in called:
        command = cogflare.commands.get(name)
        assert command is not None, f"cogflare {name}"
        if hasattr(command, "commands") and child and not hasattr(command, "default"):
            assert child in command.commands, f"cogflare {name} {child}"


def test_the_command_line_is_documented_as_it_is() -> None:
    assert (DOCS / "reference" / "cli.md").read_text() == cli_reference.render(), "run `make docs`"


def test_every_setting_is_documented_with_its_default() -> None:
    page = (DOCS / "reference" / "settings.md").read_text()
    rows = {
        name: default
        for names, default in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    fields = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    assert rows.keys() == fields.keys()
    for name, value in fields.items():
        if isinstance(value, int | float) or (value and isinstance(value, str)):
            shown = f"{value:.15g}" if isinstance(value, float) else str(value)
            assert f"`{shown.lower() if isinstance(value, bool) else shown}`" in rows[name], name


def test_all_pages_are_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    missing = [
        named(page)
        for page in sorted(DOCS.rglob("*.md"))
        if page.parent.name != "decisions" and page.name != "index.md" and str(page.relative_to(DOCS)) not in index
    ]
    assert not missing
