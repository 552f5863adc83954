"""FAQ files -> documents.

The law: no word of a file is lost, and no passage is longer than what the embedding model reads.
Files hold what a company tells its callers, not what callers said; still, no error quotes them: a
message names the file, the line and the field.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from moss_voice.errors import InvalidArgumentError
from moss_voice.text import sentences
from moss_voice.types import DocumentInfo, Metadata

__all__ = ["MAX_WORDS", "SUFFIXES", "read_documents"]

# all-MiniLM-L6-v2 reads 256 WordPiece tokens and ignores the rest. Support text takes 1.2 to 1.5 of
# them per word as counted below (the longest passage of ABCD's guidelines 185 tokens), so 150 words
# leave a margin for names, times and prices, which are cut finely.
MAX_WORDS = 150

# A URL, a path or a serial number is one word to the eye and dozens of tokens to the model, which
# cuts at every punctuation mark and within long runs: each further two pieces count as a word.
# Scripts without spaces are cut at every character.
_RUN = re.compile(r"[^\W\u3000-\u9fff\uac00-\ud7af]+|\S")
_LONG_RUN = 12

# The share of a passage that may be spent on repeating the last sentence of the passage before it.
_MAX_OVERLAP = 0.25

_ID_FIELDS = ("id", "_id", "doc_id", "document_id")
_TEXT_FIELDS = ("text",)
_TITLE_FIELDS = ("title", "heading", "question", "q")
_BODY_FIELDS = ("body", "answer", "a", "content", "passage", "page_content")
_MISSING_TEXT = "expected 'text', or 'body'/'answer' (with 'title'/'question'), holding some text"

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t](.*))?$")
_UNDERLINE = re.compile(r" {0,3}(=+|--+)[ \t]*$")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
# Of numbers only 1 opens a list in the midst of a paragraph: "opened in\n1986. Since then" is prose.
_INTERRUPTING_ITEM = re.compile(r" {0,3}(?:[-*+]|1[.)])[ \t]+\S")
_FRONT_MATTER_KEY = re.compile(r"[\w.\-]+[ \t]*[:=]")


class _Block(NamedTuple):
    """A paragraph, list or verbatim run (code fence, table) of a file; headings have a level."""

    kind: Literal["heading", "prose", "list", "verbatim"]
    text: str
    level: int = 0


class _Unit(NamedTuple):
    """The least that is moved whole from one passage to the next, and how it joins the one before."""

    text: str
    glue: str
    is_sentence: bool = False


@dataclass(frozen=True)
class _Section:
    """What the reader of a format hands on: still of any length, and maybe without an id."""

    where: str
    blocks: Sequence[_Block]
    title: str = ""
    slug: str = ""
    id: str | None = None
    metadata: Metadata | None = None
    payload: Any = None
    embedding: Any = None


@dataclass
class _Ids:
    """The ids used so far over all files that are read together."""

    used: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    def claim(self, doc_id: str, where: str) -> str:
        if doc_id in self.used:
            raise InvalidArgumentError(
                f"{where}: the id {doc_id!r} is already taken by an earlier document; "
                "ids must be unique"
            )
        self.used.add(doc_id)
        return doc_id

    def make(self, stem: str, slug: str) -> str:
        """Name a document by its file and heading; a number tells those of one name apart."""
        base = f"{stem}#{slug}-" if slug else f"{stem}#"
        number = self.numbers.get(base, 0) + 1
        doc_id = base[:-1] if slug and number == 1 else f"{base}{number}"
        while doc_id in self.used:
            number += 1
            doc_id = f"{base}{number}"
        self.numbers[base] = number
        self.used.add(doc_id)
        return doc_id


def read_documents(
    path: str | os.PathLike[str], *, max_words: int = MAX_WORDS
) -> list[DocumentInfo]:
    """Read an FAQ file, or every FAQ file of a directory, as documents ready to index.

    - Markdown (`.md`, `.markdown`) is cut at its headings; the path of headings opens each passage.
    - Plain text (`.txt`) is cut at blank lines; a question stays with the paragraph after it.
    - JSON (`.json`: an array of objects, an object that holds one such array, or a mapping of
      questions to answers), JSON lines (`.jsonl`, `.ndjson`) and CSV (`.csv`, `.tsv`, first row
      the header) give a document per row: `id`; `text`, or `title`/`question` and
      `body`/`answer`/`content`; `metadata`, `payload`, `embedding`; every other string, number or
      boolean becomes metadata.

    What is longer than `max_words` is split between sentences, list items or lines; each part opens
    with the title again and with the last sentence of the part before. A row that is split keeps its
    id for the first part; the others are `id#2`, `id#3`. A row that brings its embedding stays whole.

    Without an id a document is named by its file and heading (`faq#refund-times`), by number where
    it has no heading, so that reading the same file again updates the same documents.

    Args:
        path: A file, or a directory that is searched with its subdirectories; there, files of other
            kinds and hidden ones are left out, and the ids hold the path inside the directory.
        max_words: The most words of a passage, its title included; a word of many pieces, such as a
            URL, counts as several.

    Returns:
        The documents in file order; files sorted by path. Never empty.

    Raises:
        InvalidArgumentError: If something cannot be read: no such file, an unknown suffix, not
            UTF-8, malformed, no text, an id that occurs twice. Names the file and line, or the place
            in a JSON file.
    """
    if max_words < 1:
        raise InvalidArgumentError(f"max_words: expected at least 1, got {max_words}")
    root = Path(path)
    ids = _Ids()
    documents: list[DocumentInfo] = []
    for file, name, stem in _files(root):
        before = len(documents)
        text = _text(file, name)
        for section in _READERS[file.suffix.lower()](text, name, max_words):
            documents += _documents(section, stem, ids, max_words)
        if len(documents) == before:
            raise InvalidArgumentError(f"{name}: holds no documents")
    return documents


# --- files ---------------------------------------------------------------------------------------


def _files(root: Path) -> list[tuple[Path, str, str]]:
    """List the files to read, each with its name for errors and its stem for ids."""
    known = ", ".join(SUFFIXES)
    if not root.is_dir():
        if root.suffix.lower() not in SUFFIXES:
            raise InvalidArgumentError(
                f"{root.name}: expected a file that ends in {known}, or a directory of such files"
            )
        return [(root, root.name, root.stem)]
    found = [
        (file, file.relative_to(root))
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    found = [
        (file, inner)
        for file, inner in found
        if not any(part.startswith(".") for part in inner.parts)
    ]
    if not found:
        raise InvalidArgumentError(f"{root.name}: the directory holds no file that ends in {known}")
    stems = [inner.with_suffix("").as_posix() for _, inner in found]
    return [
        # Files that differ in their suffix alone keep it, so that neither renumbers the other.
        (file, inner.as_posix(), stem if stems.count(stem) == 1 else inner.as_posix())
        for (file, inner), stem in zip(found, stems, strict=True)
    ]


def _text(file: Path, name: str) -> str:
    """Read a UTF-8 file, with or without a byte order mark, with the newlines of Unix."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"{name}: cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidArgumentError(
            f"{name}:{line}: expected UTF-8, got a byte that is not; save the file as UTF-8"
        ) from None
    if not text.strip():
        raise InvalidArgumentError(f"{name}: the file is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- rows: JSON, JSON lines, CSV -----------------------------------------------------------------


def _json_sections(text: str, name: str, _max_words: int) -> Iterator[_Section]:
    data = _parse(text, name, first_line=1)
    if isinstance(data, dict) and _pick(data, (*_TEXT_FIELDS, *_BODY_FIELDS)) is None:
        arrays = [(key, value) for key, value in data.items() if isinstance(value, list)]
        if len(arrays) == 1:
            key, rows = arrays[0]
            yield from (_row(row, f"{name}: {key}[{number}]") for number, row in enumerate(rows))
            return
        if not all(isinstance(value, str) for value in data.values()):
            raise InvalidArgumentError(
                f"{name}: expected an array of objects, an object with one such array, or a "
                "mapping of questions to answers that are strings"
            )
        for number, (question, answer) in enumerate(data.items(), start=1):
            yield _row({"question": question, "answer": answer}, f"{name}: entry {number}")
        return
    if isinstance(data, dict):
        data = [data]
    if not isinstance(data, list):
        raise InvalidArgumentError(f"{name}: expected an array or an object, got neither")
    yield from (_row(row, f"{name}: [{number}]") for number, row in enumerate(data))


def _json_lines_sections(text: str, name: str, _max_words: int) -> Iterator[_Section]:
    # Not `splitlines`, which also cuts at characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(_parse(line, name, first_line=number), f"{name}:{number}")


def _csv_sections(text: str, name: str, _max_words: int) -> Iterator[_Section]:
    first_line = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            where, line = f"{name}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _csv_header(cells, where)
                continue
            if len(cells) > len(header):
                raise InvalidArgumentError(
                    f"{where}: the row has {len(cells)} cells, the header has {len(header)}; "
                    "quote the cells that hold the delimiter"
                )
            # A short row lacks its last cells; `_row` says so where it lacks its text.
            row = {key: cell for key, cell in zip(header, cells, strict=False) if cell.strip()}
            yield _row(row, where)
    except csv.Error as error:
        raise InvalidArgumentError(f"{name}:{line}: malformed CSV: {error}") from None


def _csv_header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if _pick(dict.fromkeys(header, ""), (*_TEXT_FIELDS, *_BODY_FIELDS)) is None:
        raise InvalidArgumentError(
            f"{where}: expected a header row with a column 'text', 'body', 'answer' or 'content'"
        )
    if len(set(header)) < len(header):
        raise InvalidArgumentError(f"{where}: two columns of the header have the same name")
    return header


def _parse(text: str, name: str, *, first_line: int) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > len({key for key, _ in pairs}):
            raise InvalidArgumentError(
                f"{name}:{first_line}: an object has the same key twice; one would be lost"
            )
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=unique)
        if "\\ud" in text.lower():  # half of an escaped pair: a character that no file could hold
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(
            f"{name}:{first_line + error.lineno - 1}: malformed JSON at column {error.colno}: "
            f"{error.msg}"
        ) from None
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{name}:{first_line}: malformed JSON: a \\u escape that is no character"
        ) from None
    except RecursionError:
        raise InvalidArgumentError(f"{name}:{first_line}: JSON nested too deeply") from None
    return data


def _pick(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Find the row's own spelling of the first of the fields that it has."""
    spelling = {key.strip().casefold().replace(" ", "_"): key for key in row}
    return next((spelling[name] for name in names if name in spelling), None)


def _row(row: Any, where: str) -> _Section:
    """Read one row of any tabular format."""
    if not isinstance(row, dict):
        raise InvalidArgumentError(f"{where}: expected an object, got {type(row).__name__}")
    rest = {key: value for key, value in row.items() if value is not None}

    def take(*names: str) -> Any:
        key = _pick(rest, names)
        return None if key is None else rest.pop(key)

    def take_text(*names: str) -> str:
        value = take(*names)
        if not isinstance(value, str | None):
            raise InvalidArgumentError(
                f"{where}: {names[0]}: expected a string, got {type(value).__name__}"
            )
        return (value or "").strip()

    doc_id = take(*_ID_FIELDS)
    if isinstance(doc_id, bool) or not isinstance(doc_id, str | int | None):
        raise InvalidArgumentError(f"{where}: id: expected a string, got {type(doc_id).__name__}")
    if doc_id is not None and not (doc_id := str(doc_id).strip()):
        raise InvalidArgumentError(f"{where}: id: expected some characters, got none")
    title = ""
    body = take_text(*_TEXT_FIELDS)
    if not body:
        title = "\n".join(filter(None, (take_text(name) for name in _TITLE_FIELDS)))
        body = take_text(*_BODY_FIELDS)
    if not body:
        raise InvalidArgumentError(f"{where}: {_MISSING_TEXT}")
    payload, embedding, given = take("payload"), take("embedding"), take("metadata")
    if isinstance(embedding, str):  # a CSV cell
        embedding = _parse(embedding, where, first_line=1)
    return _Section(
        where=where,
        blocks=[_Block("prose", body)],
        title=title,
        slug=_slug(title),
        id=doc_id,
        metadata=_metadata(rest, given, where) or None,
        payload=payload,
        embedding=embedding,
    )


def _metadata(rest: Mapping[str, Any], given: Any, where: str) -> Metadata:
    """Gather metadata: the fields that are left over, then what the row itself calls metadata."""
    if isinstance(given, str):  # a CSV cell
        given = _parse(given, where, first_line=1)
    if not isinstance(given, dict | None):
        raise InvalidArgumentError(
            f"{where}: metadata: expected an object, got {type(given).__name__}"
        )
    scalar = str | int | float | bool
    metadata = {key: value for key, value in rest.items() if isinstance(value, scalar)}
    for key, value in (given or {}).items():
        if value is not None and not isinstance(value, scalar):
            raise InvalidArgumentError(
                f"{where}: metadata.{key}: expected a string, number or boolean, "
                f"got {type(value).__name__}"
            )
        if value is not None:
            metadata[key] = value
    return metadata


# --- prose: Markdown, plain text -----------------------------------------------------------------


def _markdown_sections(text: str, name: str, max_words: int) -> Iterator[_Section]:
    """Cut Markdown at its headings.

    A heading's words open every passage below it. One that opens none (nothing follows it, or it is
    too long to be repeated) becomes a passage of its own when its section ends.
    """
    path: list[_Heading] = []
    blocks: list[_Block] = []

    def section(body: Sequence[_Block], headings: Sequence[_Heading], slug: str) -> _Section:
        headings = [heading for heading in headings if heading.text]
        while headings and _size(_title(headings)) > max_words // 2:
            headings = headings[1:]
        for heading in headings:
            heading.is_said = True
        title = _title(headings)
        metadata: Metadata = {"source": name, **({"title": title} if title else {})}
        return _Section(where=name, blocks=body, title=title, slug=_slug(slug), metadata=metadata)

    def leave(level: int) -> Iterator[_Section]:
        if blocks:
            yield section(blocks[:], path, path[-1].text if path else "")
            blocks.clear()
        while path and path[-1].level >= level:
            last = path.pop()
            if last.text and not last.is_said:
                yield section([_Block("prose", last.text)], path, last.text)

    for block in _markdown_blocks(text.split("\n")):
        if block.kind == "heading":
            yield from leave(block.level)
            path.append(_Heading(block.text, block.level))
        else:
            blocks.append(block)
    yield from leave(0)


@dataclass
class _Heading:
    text: str
    level: int
    is_said: bool = False


def _title(headings: Sequence[_Heading]) -> str:
    return " > ".join(heading.text for heading in headings)


def _markdown_blocks(lines: Sequence[str]) -> Iterator[_Block]:
    """Tell headings, lists, verbatim runs and paragraphs apart, line by line (after CommonMark)."""
    at = _after_front_matter(lines)
    while at < len(lines):
        line = lines[at]
        if not line.strip() or _RULE.match(line):
            at += 1
        elif _FENCE.match(line):
            end = _fence_end(lines, at)
            yield _Block("verbatim", "\n".join(lines[at:end]))
            at = end
        elif heading := _HEADING.match(line):
            named = (heading[2] or "").split()
            if named and not named[-1].strip("#"):  # the closing sequence of "## Title ##"
                named.pop()
            yield _Block("heading", " ".join(named), len(heading[1]))
            at += 1
        elif line.startswith("|"):
            end = at
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            yield _Block("verbatim", "\n".join(lines[at:end]))
            at = end
        elif _ITEM.match(line):
            end = _list_end(lines, at)
            yield _Block("list", "\n".join(row.rstrip() for row in lines[at:end] if row.strip()))
            at = end
        else:
            end = at + 1
            while end < len(lines) and not _ends_paragraph(lines[end]):
                end += 1
            prose = " ".join(" ".join(lines[at:end]).split())
            at = end
            if end < len(lines) and (underline := _UNDERLINE.match(lines[end])):
                yield _Block("heading", prose, 1 if underline[1].startswith("=") else 2)
                at += 1
            else:
                yield _Block("prose", prose)


def _after_front_matter(lines: Sequence[str]) -> int:
    """Skip the settings that site generators keep at the top of a page; they are not the text."""
    fence = lines[0].rstrip()
    if fence not in {"---", "+++"} or len(lines) < 2 or not _FRONT_MATTER_KEY.match(lines[1]):
        return 0
    closers = {fence, "..."} if fence == "---" else {fence}
    ends = (at for at, line in enumerate(lines[1:], start=2) if line.rstrip() in closers)
    return next(ends, 0)


def _fence_end(lines: Sequence[str], at: int) -> int:
    """Find the line after the code fence that opens at `at`; an open one runs to the end."""
    mark = lines[at].strip()
    mark = mark[: len(mark) - len(mark.lstrip(mark[0]))]
    for end in range(at + 1, len(lines)):
        line = lines[end].strip()
        if line.startswith(mark) and not line.strip(mark[0]):
            return end + 1
    return len(lines)


def _list_end(lines: Sequence[str], at: int) -> int:
    """Find the line after a list: it goes on over blank lines while items or indented lines follow."""
    end = at
    while end < len(lines):
        line = lines[end]
        if not line.strip():
            after = next((row for row in lines[end:] if row.strip()), "")
            if not (_ITEM.match(after) or after.startswith(("  ", "\t"))):
                return end
            end += 1
        elif _HEADING.match(line) or _RULE.match(line):
            return end
        elif line.lstrip().startswith(("```", "~~~")):
            if line == line.lstrip():
                return end
            end = _fence_end(lines, end)
        else:
            end += 1
    return end


def _ends_paragraph(line: str) -> bool:
    return not line.strip() or any(
        pattern.match(line) for pattern in (_UNDERLINE, _RULE, _FENCE, _HEADING, _INTERRUPTING_ITEM)
    )


def _text_sections(text: str, name: str, _max_words: int) -> Iterator[_Section]:
    """Cut plain text at blank lines; a heading or question stays with the paragraph after it."""
    waiting: list[_Block] = []
    for paragraph in _paragraphs(text):
        waiting.append(_Block("prose", paragraph))
        is_opening = paragraph.endswith(("?", ":")) or (
            len(paragraph.split()) <= 8 and paragraph[-1].isalnum()
        )
        if not is_opening:
            yield _Section(where=name, blocks=waiting, metadata={"source": name})
            waiting = []
    if waiting:
        yield _Section(where=name, blocks=waiting, metadata={"source": name})


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", text) if part.strip()]


# --- sections -> documents -----------------------------------------------------------------------


def _documents(section: _Section, stem: str, ids: _Ids, max_words: int) -> Iterator[DocumentInfo]:
    title, blocks = section.title, section.blocks
    if _size(title) > max_words // 2:
        title, blocks = "", [_Block("prose", title), *blocks]
    room = max_words - _size(title)
    bodies = ["\n\n".join(block.text for block in blocks)]
    if section.embedding is None and _size(bodies[0]) > room:
        bodies = _pack(blocks, room)
    first_id = section.id
    for number, body in enumerate(bodies):
        if first_id is None:
            doc_id = ids.make(stem, section.slug)
        elif number == 0:
            doc_id = ids.claim(first_id, section.where)
        else:
            doc_id = ids.claim(f"{first_id}#{number + 1}", section.where)
        try:
            yield DocumentInfo(
                id=doc_id,
                text=f"{title}\n{body}" if title else body,
                metadata=None if section.metadata is None else dict(section.metadata),
                embedding=section.embedding,
                payload=section.payload,
            )
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
            raise InvalidArgumentError(
                f"{section.where}: {'.'.join(map(str, fault['loc'][:2]))}: {fault['msg']}"
            ) from None


def _size(text: str) -> int:
    return sum(
        1 + (sum(1 + 2 * ((len(run) - 1) // _LONG_RUN) for run in _RUN.findall(word)) - 1) // 2
        for word in text.split()
    )


def _pack(blocks: Sequence[_Block], room: int) -> list[str]:
    """Fill passages of at most `room` words with whole sentences, items and lines, in order."""
    passages: list[str] = []
    passage, last = "", None
    for block in blocks:
        for unit in _units(block, room):
            longer = passage + unit.glue + unit.text if passage else unit.text
            if _size(longer) > room:
                passages.append(passage)
                overlap = "" if last is None else _overlap(last, room - _size(unit.text), room)
                longer = overlap + unit.glue + unit.text if overlap else unit.text
            passage, last = longer, unit
    return [*passages, passage]


def _overlap(last: _Unit, left: int, room: int) -> str:
    """Repeat the last sentence, so that "it" and "this" in the next one still have a referent."""
    fits = last.is_sentence and _size(last.text) <= min(left, _MAX_OVERLAP * room)
    return last.text if fits else ""


def _units(block: _Block, room: int) -> Iterator[_Unit]:
    """Cut a block into the pieces that a passage is filled with, none over `room` words."""
    glue = "\n\n"
    if block.kind == "prose":
        for paragraph in _paragraphs(block.text):
            for sentence in sentences(" ".join(paragraph.split())):
                yield from _cut(_Unit(sentence, glue, is_sentence=True), room)
                glue = " "
            glue = "\n\n"
        return
    if block.kind == "verbatim" and _size(block.text) <= room:
        yield _Unit(block.text, glue)
        return
    lines: list[str] = []
    for line in block.text.split("\n"):
        if lines and block.kind == "list" and not _ITEM.match(line):
            lines[-1] += "\n" + line
        else:
            lines.append(line)
    for line in lines:
        if line.strip():
            yield from _cut(_Unit(line, glue), room)
            glue = "\n"


def _cut(unit: _Unit, room: int) -> Iterator[_Unit]:
    """Cut what no passage could hold: between words, and a word that is itself too long within."""
    if _size(unit.text) <= room:
        yield unit
        return
    glue, run, used = unit.glue, "", 0
    for word in unit.text.split():
        # `room` characters never count as more than `room` words.
        length = len(word) if _size(word) <= room else room
        for start in range(0, len(word), length):
            piece, between = word[start : start + length], " " if start == 0 else ""
            # Sizes add up across spaces; within a word they depend on what stands before.
            size = used + _size(piece) if between else _size(run + piece)
            if run and size > room:
                yield _Unit(run, glue)
                glue, run, size = between, "", _size(piece)
            run, used = run + between + piece if run else piece, size
    yield _Unit(run, glue)


def _slug(text: str) -> str:
    """Make a heading's name for ids: lower-case words joined by hyphens, at most 60 characters."""
    words = re.findall(r"\w+", re.sub(r"['’]", "", text).casefold())  # noqa: RUF001
    slug = ""
    for word in words:
        if len(slug) + len(word) + 1 > 60:
            break
        slug = f"{slug}-{word}" if slug else word
    return slug or "-".join(words)[:60]


_READERS: Mapping[str, Callable[[str, str, int], Iterator[_Section]]] = {
    ".md": _markdown_sections,
    ".markdown": _markdown_sections,
    ".txt": _text_sections,
    ".json": _json_sections,
    ".jsonl": _json_lines_sections,
    ".ndjson": _json_lines_sections,
    ".csv": _csv_sections,
    ".tsv": _csv_sections,
}

# The files that can be read, by their lower-case suffix.
SUFFIXES = tuple(_READERS)
