"""FAQ files become documents: every word of them, in passages that the model can read."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moss_voice.errors import InvalidArgumentError
from moss_voice.faq import MAX_WORDS, SUFFIXES, read_documents
from moss_voice.types import DocumentInfo

SECRET = "Zanzibar"

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def texts(documents: list[DocumentInfo]) -> dict[str, str]:
    return {document.id: document.text for document in documents}


# --- rows ----------------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "id": "r1",
    "question": "How long do refunds take?",
    "answer": "Three to five days.",
    "entity": "Larkline",
}
ROW_DOCUMENT = DocumentInfo(
    id="r1",
    text="How long do refunds take?\nThree to five days.",
    metadata={"entity": "Larkline"},
)


def as_csv(row: dict[str, Any], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(row), delimiter=delimiter)
    writer.writeheader()
    writer.writerow(row)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.json", json.dumps([ROW])),
        ("f.json", json.dumps({"documents": [ROW]})),
        ("f.json", json.dumps({"version": 3, "faqs": [ROW]})),
        ("f.json", json.dumps(ROW)),
        ("f.jsonl", json.dumps(ROW) + "\n\n"),
        ("f.ndjson", "\ufeff" + json.dumps(ROW)),
        ("F.JSONL", json.dumps(ROW)),
        ("f.csv", as_csv(ROW)),
        ("f.csv", "\ufeff" + as_csv(ROW)),
        ("f.csv", as_csv(ROW, ";")),
        ("f.tsv", as_csv(ROW, "\t")),
        ("f.csv", "\n" + as_csv(ROW) + "\n,,,\n"),
    ],
)
def test_every_tabular_format_gives_the_same_document(
    write: Write, name: str, content: str
) -> None:
    """A row is the same document in whichever format it is stored."""
    assert read_documents(write(name, content)) == [ROW_DOCUMENT]


@pytest.mark.parametrize(
    ("row", "text", "metadata"),
    [
        ({"text": "t"}, "t", None),
        ({"text": " t "}, "t", None),
        ({"text": "t", "title": "T", "body": "b"}, "t", {"title": "T", "body": "b"}),
        ({"title": "T", "body": "b"}, "T\nb", None),
        ({"Question": "T", "Answer": "b"}, "T\nb", None),
        ({"q": "T", "a": "b"}, "T\nb", None),
        ({"heading": "T", "content": "b"}, "T\nb", None),
        ({"title": "T", "question": "Q", "answer": "b"}, "T\nQ\nb", None),
        ({"Page Content": "b"}, "b", None),
        ({"body": "b", "title": None, "x": None}, "b", None),
        ({"text": None, "body": "b"}, "b", None),
        ({"text": "", "body": "b"}, "b", None),
        (
            {"text": "t", "n": 1, "r": 0.5, "ok": True, "tags": ["a"], "more": {"k": 1}},
            "t",
            {"n": 1, "r": 0.5, "ok": True},
        ),
        (
            {"text": "t", "n": 1, "metadata": {"n": 2, "m": "x", "none": None}},
            "t",
            {"n": 2, "m": "x"},
        ),
    ],
)
def test_common_field_spellings(
    write: Write, row: dict[str, Any], text: str, metadata: dict[str, Any] | None
) -> None:
    """`text` wins over title and body; what is left and flat becomes metadata."""
    (document,) = read_documents(write("f.json", json.dumps([row])))
    assert (document.text, document.metadata) == (text, metadata)


def test_payload_and_embedding_are_kept(write: Write) -> None:
    """A row may bring any payload and its own vector, and then is never split."""
    row = {"id": 7, "text": "word " * 500, "payload": {"any": [1, None]}, "embedding": [1, 0.5]}
    (document,) = read_documents(write("f.json", json.dumps([row])))
    assert document.id == "7"
    assert document.payload == {"any": [1, None]}
    assert document.embedding == (1.0, 0.5)
    (document,) = read_documents(write("f.csv", 'text,embedding,metadata\nt,"[1, 2]","{""n"": 1}"'))
    assert document.embedding == (1.0, 2.0)
    assert document.metadata == {"n": 1}


def test_mapping_of_questions_to_answers(write: Write) -> None:
    """The plainest FAQ there is: questions with their answers."""
    path = write("faq.json", json.dumps({"Is it free?": "No.", "Why?": "Costs."}))
    assert texts(read_documents(path)) == {
        "faq#is-it-free": "Is it free?\nNo.",
        "faq#why": "Why?\nCosts.",
    }


def test_csv_cells_hold_newlines_and_odd_separators(write: Write) -> None:
    """Only line feeds outside quotes end a row; Windows newlines become plain ones."""
    path = write("f.csv", 'id,text\r\n1,"a ""b""\r\nc, d"\r\n2,e\u2028f\x0bg\r\n3,h\r\n')
    assert texts(read_documents(path)) == {"1": 'a "b"\nc, d', "2": "e\u2028f\x0bg", "3": "h"}


def test_json_lines_hold_line_separators(write: Write) -> None:
    """Characters that Python takes for line ends may stand in a JSON string."""
    path = write("f.jsonl", json.dumps({"id": "1", "text": "a\u2028b\x85c"}, ensure_ascii=False))
    assert texts(read_documents(path)) == {"1": "a\u2028b\x85c"}


def test_a_long_row_is_split_under_its_id(write: Write) -> None:
    """The first part keeps the row's id, each part the title and the metadata."""
    body = " ".join(f"Sentence number {n} has exactly seven words." for n in range(40))
    row = {"id": "x", "title": "The title", "body": body, "entity": "e"}
    documents = read_documents(write("f.json", json.dumps([row])))
    assert [document.id for document in documents] == ["x", "x#2"]
    assert all(document.text.startswith("The title\nSentence") for document in documents)
    assert all(document.metadata == {"entity": "e"} for document in documents)
    last = documents[0].text.split("words.")[-2].strip()
    assert documents[1].text.startswith(f"The title\n{last}")


# --- Markdown ------------------------------------------------------------------------------------

PAGE = """\
---
title: not text
tags: [a, b]
---

Intro before any heading.

# Help #

Bills
-----

First paragraph
over two lines.

* one
  goes on
* two

  - nested

after the list

## Reset

```sh
# not a heading
reset --hard

now
```

| a | b |
| --- | --- |
| 1 | 2 |

***

### Why's that, then?

1986. A year, not a list
1. but this is

## Bills

Again.

## Closed on Sundays
"""


def test_markdown_page(write: Write) -> None:
    """Headings cut and open the passages; lists, code and tables stay as they are."""
    documents = read_documents(write("page.md", PAGE))
    assert texts(documents) == {
        "page#1": "Intro before any heading.",
        "page#bills": "Help > Bills\nFirst paragraph over two lines.\n\n* one\n  goes on\n* two\n"
        "  - nested\n\nafter the list",
        "page#reset": "Help > Reset\n```sh\n# not a heading\nreset --hard\n\nnow\n```\n\n"
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "page#whys-that-then": "Help > Reset > Why's that, then?\n"
        "1986. A year, not a list\n1. but this is",
        "page#bills-2": "Help > Bills\nAgain.",
        "page#closed-on-sundays": "Help\nClosed on Sundays",
    }
    assert documents[1].metadata == {"source": "page.md", "title": "Help > Bills"}
    assert documents[0].metadata == {"source": "page.md"}


@pytest.mark.parametrize(
    ("page", "passages"),
    [
        ("---\n\nA rule, not front matter.\n\n---\n\nb", ["A rule, not front matter.\n\nb"]),
        ("---\nkey: never closed\n\na", ["key: never closed\n\na"]),
        ("+++\nkey = 1\n+++\na", ["a"]),
        ("~~~\n# open to the end\n\n```", ["~~~\n# open to the end\n\n```"]),
        ("````\n```\n# x\n```\n````\na", ["````\n```\n# x\n```\n````\n\na"]),
        ("#hashtag, no heading", ["#hashtag, no heading"]),
        ("####### seven", ["####### seven"]),
        ("#\n\na", ["a"]),
        ("##  A  b ### \na", ["A b\na"]),
        ("## C#\na", ["C#\na"]),
        ("# #\na", ["a"]),
        ("Title\n===\na", ["Title\na"]),
        ("a\n# B\nc", ["a", "B\nc"]),
        ("* * *\na", ["a"]),
        ("- a\n\n  ```\n  # x\n\n  y\n  ```\n- b", ["- a\n  ```\n  # x\n  y\n  ```\n- b"]),
        ("- a\n```\nb\n```", ["- a\n\n```\nb\n```"]),
        ("- a\n# B\nc", ["- a", "B\nc"]),
    ],
)
def test_markdown_edges(write: Write, page: str, passages: list[str]) -> None:
    """Where CommonMark says what a line is, so do we."""
    documents = read_documents(write("f.md", page))
    assert [document.text for document in documents] == passages


def test_a_code_fence_is_kept_whole(write: Write) -> None:
    """A section is split around a fence that fits a passage, not within it."""
    fence = "```\n" + "\n".join(f"line {n}" for n in range(50)) + "\n```"
    prose = " ".join(f"Here is sentence number {n}." for n in range(20))
    documents = read_documents(write("f.md", f"# T\n{prose}\n\n{fence}\n\n{prose}"))
    assert len(documents) > 1
    assert sum(fence in document.text for document in documents) == 1


def test_a_split_section_repeats_one_sentence(write: Write) -> None:
    """A part opens with its heading and with the last sentence of the part before."""
    sentences = [f"This is sentence {n}." for n in range(12)]
    path = write("f.md", "# T\n" + " ".join(sentences))
    parts = [document.text.split("\n", 1)[1] for document in read_documents(path, max_words=20)]
    assert len(parts) == 4
    for before, after in pairwise(parts):
        repeated = after.partition(". ")[0] + "."
        assert before.endswith(repeated)
    joined = parts[0] + "".join(" " + part.partition(". ")[2] for part in parts[1:])
    assert joined == " ".join(sentences)


# --- plain text, directories ---------------------------------------------------------------------


def test_plain_text(write: Write) -> None:
    """A paragraph is a passage; a question or a heading stays with what follows it."""
    path = write(
        "f.txt", "Refunds\n\nHow long?\r\n \r\nFive days.\n\nA paragraph.\nTwo lines.\n\nEnd"
    )
    assert texts(read_documents(path)) == {
        "f#1": "Refunds\n\nHow long?\n\nFive days.",
        "f#2": "A paragraph.\nTwo lines.",
        "f#3": "End",
    }


def test_directory(write: Write, tmp_path: Path) -> None:
    """All FAQ files in path order, ids by path; hidden and other files are left out."""
    write("b.md", "# Refunds\nb")
    write("a/c.md", "# Refunds\nc")
    write("a/d.txt", "d.")
    write("a/d.md", "dd")
    write("logo.png", b"\x89PNG")
    write(".git/x.md", "hidden")
    write("rows.json", json.dumps([{"id": "own", "text": "t"}, {"text": "u"}]))
    assert texts(read_documents(tmp_path)) == {
        "a/c#refunds": "Refunds\nc",
        "a/d.md#1": "dd",
        "a/d.txt#1": "d.",
        "b#refunds": "Refunds\nb",
        "own": "t",
        "rows#1": "u",
    }
    assert read_documents(str(tmp_path)) == read_documents(tmp_path)


def test_numbered_ids_step_over_those_taken(write: Write) -> None:
    """A heading that ends in a number never takes the id of another section's second part."""
    documents = read_documents(write("f.md", "# A 2\na\n# A\nb\n# A\nc\n# A\nd"))
    assert [document.id for document in documents] == ["f#a-2", "f#a", "f#a-3", "f#a-4"]


def test_ids_are_stable_under_additions(write: Write) -> None:
    """A section keeps its id when another one is added before it."""
    before = texts(read_documents(write("f.md", "# A\na\n# B\nb")))
    after = texts(read_documents(write("f.md", "# New\nn\n# A\na\n# B\nb")))
    assert before.items() <= after.items()


# --- errors --------------------------------------------------------------------------------------

S = SECRET


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("f.pdf", S, "f.pdf: expected a file that ends in .md"),
        ("f", S, "f: expected a file that ends in .md"),
        ("f.md", "", "f.md: the file is empty"),
        ("f.csv", " \n\ufeff", "f.csv: malformed|f.csv:2: expected a header"),
        ("f.json", "\ufeff \n", "f.json: the file is empty"),
        ("f.md", "---\n\n***", "f.md: holds no documents"),
        ("f.md", "---\ntitle: x\n---\n", "f.md: holds no documents"),
        ("f.json", "[]", "f.json: holds no documents"),
        ("f.json", "{}", "f.json: holds no documents"),
        ("f.json", '{"documents": []}', "f.json: holds no documents"),
        ("f.csv", "id,text\n", "f.csv: holds no documents"),
        ("f.txt", f"{S}\n{S}\n".encode() + b"\xff", "f.txt:3: expected UTF-8"),
        ("f.csv", f"text\n{S}".encode("utf-16"), "f.csv:1: expected UTF-8"),
        ("f.json", f'[\n{{"text": "{S}"\n]', "f.json:3: malformed JSON at column 1"),
        ("f.json", f'"{S}"', "f.json: expected an array or an object"),
        ("f.json", f'["{S}"]', r"f.json: \[0\]: expected an object, got str"),
        ("f.json", f'{{"{S}": 1}}', "f.json: expected an array of objects, an object with one"),
        ("f.json", f'{{"a1": ["{S}"], "a2": []}}', "f.json: expected an array of objects"),
        ("f.json", f'{{"{S}": "a", "{S}": "b"}}', "f.json:1: an object has the same key twice"),
        (
            "f.json",
            '{"documents": [{"text": "t"}, {}]}',
            r"f.json: documents\[1\]: expected 'text'",
        ),
        ("f.json", "[" * 100_000, "f.json:1: (JSON nested too deeply|malformed JSON)"),
        ("f.jsonl", f'{{"text": "t"}}\n{{"text": "{S}"', "f.jsonl:2: malformed JSON"),
        ("f.jsonl", f'\n["{S}"]', "f.jsonl:2: expected an object, got list"),
        ("f.jsonl", f'{{"title": "{S}"}}', "f.jsonl:1: expected 'text', or 'body'/'answer'"),
        ("f.jsonl", '{"text": "  "}', "f.jsonl:1: expected 'text'"),
        ("f.jsonl", '{"text": 42}', "f.jsonl:1: text: expected a string, got int"),
        ("f.jsonl", f'{{"text": "{S}", "id": [1]}}', "f.jsonl:1: id: expected a string, got list"),
        ("f.jsonl", f'{{"text": "{S}", "id": true}}', "f.jsonl:1: id: expected a string, got bool"),
        ("f.jsonl", f'{{"text": "{S}", "id": " "}}', "f.jsonl:1: id: expected some characters"),
        (
            "f.jsonl",
            f'{{"text": "{S}", "id": 1}}\n\n{{"text": "{S}", "id": "1"}}',
            "f.jsonl:3: the id '1' is already taken",
        ),
        (
            "f.jsonl",
            f'{{"text": "{S}", "metadata": ["{S}"]}}',
            "f.jsonl:1: metadata: expected an object, got list",
        ),
        (
            "f.jsonl",
            f'{{"text": "{S}", "metadata": {{"k": ["{S}"]}}}}',
            "f.jsonl:1: metadata.k: expected a string, number or boolean, got list",
        ),
        ("f.jsonl", f'{{"text": "{S}", "n": NaN}}', "f.jsonl:1: metadata.n: "),
        ("f.jsonl", f'{{"text": "{S}\\ud800"}}', r"f.jsonl:1: malformed JSON: a \\u escape"),
        ("f.jsonl", f'{{"text": "t", "embedding": ["{S}"]}}', "f.jsonl:1: embedding.0: "),
        ("f.csv", f"{S},{S}\n{S},{S}", "f.csv:1: expected a header row with a column 'text'"),
        ("f.csv", "text,a b,text\nt,u,v", "f.csv:1: two columns of the header"),
        ("f.csv", f'id,text\n1,"{S}\n{S}"\n2,{S},{S}', "f.csv:4: the row has 3 cells"),
        ("f.csv", f'id,text\n1,"{S}\n{S}"\n2', "f.csv:4: expected 'text'"),
        ("f.csv", f'id,text\n1,{S}\n2,"{S}', "f.csv:3: malformed CSV"),
        ("f.csv", f'id,text\n1,"{S}"{S}', "f.csv:2: malformed CSV"),
        ("f.csv", f"id,text\n1,{S}\n1,{S}", "f.csv:3: the id '1' is already taken"),
    ],
)
def test_errors_name_the_place_and_quote_nothing(
    write: Write, name: str, content: str | bytes, expected: str
) -> None:
    """What is wrong is found by file and line alone, with no text in the message."""
    with pytest.raises(InvalidArgumentError, match=f"^(?:{expected})") as caught:
        read_documents(write(name, content))
    assert SECRET not in str(caught.value)


def test_duplicates_across_files(write: Write, tmp_path: Path) -> None:
    """An id is unique over all the files of a directory."""
    write("a.json", '[{"id": "x", "text": "t"}]')
    write("b.jsonl", '{"id": "x", "text": "t"}')
    with pytest.raises(InvalidArgumentError, match=r"^b.jsonl:1: the id 'x' is already taken"):
        read_documents(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    """A missing file and a directory without FAQ files are told apart."""
    with pytest.raises(InvalidArgumentError, match=r"no\.md: cannot be read"):
        read_documents(tmp_path / "no.md")
    with pytest.raises(InvalidArgumentError, match="the directory holds no file that ends in"):
        read_documents(tmp_path)
    with pytest.raises(InvalidArgumentError, match="max_words: expected at least 1, got 0"):
        read_documents(tmp_path, max_words=0)


# --- properties ----------------------------------------------------------------------------------

WORD = st.one_of(
    st.text("abcXYZ019£é'.?,", min_size=1, max_size=14),
    st.text("abc019/:.-_=", min_size=20, max_size=120),
    st.sampled_from(["-", "*", "1.", "#", "|", "```", "---", "e.g.", "naïve"]),
)
SPACE = st.sampled_from(
    [" ", " ", " ", "  ", "\n", "\n", "\n\n", "\n    ", "\n# ", "\n### ", "\n- "]
)


@st.composite
def written(draw: st.DrawFn) -> str:
    words = draw(st.lists(st.tuples(WORD, SPACE), min_size=1, max_size=60))
    return "".join(word + space for word, space in words)


def letters(text: str) -> list[str]:
    return re.findall(r"\w", text)


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=written(), max_words=st.integers(1, 40))
def test_no_word_of_a_file_is_lost(write: Write, text: str, max_words: int) -> None:
    """Every letter of a text file comes back in order, and no passage is over the bound."""
    if not letters(text):
        return
    documents = read_documents(write("f.txt", text), max_words=max_words)
    assert is_subsequence(letters(text), letters("".join(document.text for document in documents)))
    assert all(len(document.text.split()) <= max_words for document in documents)
    assert len({document.id for document in documents}) == len(documents)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=written(), max_words=st.integers(1, 40))
def test_no_word_of_a_page_is_lost(write: Write, text: str, max_words: int) -> None:
    """Every word of any Markdown is in some passage, whole where a passage can hold it."""
    if not letters(text) or text.startswith("---"):
        return
    documents = read_documents(write("f.md", text), max_words=max_words)
    found = {word for document in documents for word in document.text.split()}
    everything = "".join("".join(document.text.split()) for document in documents)
    for word in text.split():
        if letters(word) and len(word) <= max_words:
            assert word in found
        elif letters(word):
            assert word[: max_words - max_words // 2] in everything
    assert all(document.text.strip() for document in documents)
    assert all(len(document.text.split()) <= max_words for document in documents)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_give_documents_or_our_error(write: Write, data: bytes, suffix: str) -> None:
    """Whatever a file holds, it is read or refused with an error of ours."""
    path = write(f"any{suffix}", data)
    try:
        documents = read_documents(path)
    except InvalidArgumentError:
        return
    assert all(document.id and document.text for document in documents)


def test_the_bound_counts_what_the_model_cuts(write: Write) -> None:
    """A passage of URLs holds far fewer of them than of plain words."""
    url = "https://larkline.example/help/broadband?router=4&step=2"
    plain = read_documents(write("a.txt", "word " * MAX_WORDS))
    urls = read_documents(write("b.txt", f"{url} " * MAX_WORDS))
    assert len(plain) == 1
    assert len(urls) > 5


def test_text_without_spaces_is_cut_and_kept(write: Write) -> None:
    """Chinese, or a blob of base64, is one long word: cut within the bound, nothing is dropped."""
    for text in ["路由器重启需要五分钟。" * 200, "QUJD+/9/" * 500]:
        documents = read_documents(write("f.txt", text))
        assert len(documents) > 1
        assert max(len(document.text) for document in documents) <= 3 * MAX_WORDS
        assert is_subsequence(letters(text), letters("".join(d.text for d in documents)))
