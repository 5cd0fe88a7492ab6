"""Documents cut into pieces: nothing lost, no piece too long, cuts at the ends of paragraphs."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import NOTES, TALES, write
from small_packs import small_settings

from flan_tune.errors import SourceError
from flan_tune.packing.prepare import prepare
from flan_tune.packing.store import open_packs
from flan_tune.sources import text
from flan_tune.sources.mirror import open_files
from flan_tune.sources.rows import open_task
from flan_tune.sources.text import PIECE_CHARACTERS, TextPieces, cut_pieces, list_text_splits, open_text
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.shapes import SHAPES
from flan_tune.tasks.task import Source, Task
from flan_tune.tokens.sentencepiece_training import BOS_ID, EOS_ID
from flan_tune.tokens.tokenizer import load_tokenizer

prose = st.lists(st.sampled_from(["a", "bc", " ", "\n", "\n\n", "\r\n", "é", "."]), max_size=60).map("".join)


def pieces_of(document: str, limit: int) -> list[str]:
    ends = cut_pieces(document, limit)
    return [document[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def test_the_examples_of_the_docstrings_are_true() -> None:
    result = doctest.testmod(text)
    assert result.attempted > 0
    assert result.failed == 0


@given(prose, st.integers(2, 12))
def test_nothing_is_lost_and_no_piece_is_too_long(document: str, limit: int) -> None:
    pieces = pieces_of(document, limit)
    assert "".join(pieces) == document
    assert all(0 < len(piece) <= limit for piece in pieces) or pieces == [""]


@given(prose, st.integers(2, 12))
def test_a_piece_ends_at_the_last_of_the_best_places(document: str, limit: int) -> None:
    """Slow oracle: among all ends within the limit the best kind of mark wins, and of these the last."""
    start = 0
    for end in cut_pieces(document, limit)[:-1]:
        window = document[start : start + limit]
        for marks in (("\n\n", "\n\r\n"), ("\n",), (" ",)):
            ends = sorted(i + len(m) for m in marks for i in range(1, len(window)) if window[i:].startswith(m))
            if ends:
                assert end - start == ends[-1]
                break
        else:
            assert end - start == limit
        start = end


@pytest.mark.parametrize(
    ("document", "pieces"),
    [
        ("one\n\ntwo three", ["one\n\n", "two three"]),
        ("one two\nthree four", ["one two\n", "three four"]),
        ("one two three four", ["one two ", "three four"]),
        ("a b\r\n\r\nc d\r\ne f", ["a b\r\n\r\n", "c d\r\ne f"]),
        ("abcdefghijklmno", ["abcdefghij", "klmno"]),
        ("short", ["short"]),
        ("exactly 10", ["exactly 10"]),
        ("", [""]),
    ],
)
def test_a_paragraph_comes_before_a_line_before_a_space_before_the_limit(document: str, pieces: list[str]) -> None:
    assert pieces_of(document, 10) == pieces


def test_a_corpus_is_addressed_by_document_and_place(data_root: Path) -> None:
    pieces = open_text("tales", "train", data_root)
    assert [pieces[number] for number in range(len(pieces))] == [
        {"text": tale["text"], "document": number, "start": 0} for number, tale in enumerate(TALES)
    ]
    assert [one["text"] for one in open_text("notes", "train", data_root)] == [note["text"] for note in NOTES]


def test_pieces_of_documents_join_to_the_documents(tmp_path: Path) -> None:
    long = "A sentence of some length. \n\n" * 3000
    rows = open_files([write(tmp_path / "train.jsonl.gz", [{"text": "tiny"}, {"text": long}, {"text": ""}])])
    pieces = TextPieces(rows)
    found = [pieces[number] for number in range(len(pieces))]
    assert [piece["document"] for piece in found] == [0, 1, 1, 1, 2]
    assert "".join(piece["text"] for piece in found if piece["document"] == 1) == long
    assert max(len(piece["text"]) for piece in found) <= PIECE_CHARACTERS == 32_768
    assert all(piece["text"].endswith("\n\n") for piece in found if piece["document"] == 1)
    assert found[2]["start"] == len(found[1]["text"])


@given(
    documents=st.lists(prose, max_size=8), limit=st.integers(2, 12), start=st.integers(0, 40), stop=st.integers(0, 40)
)
def test_pieces_by_number_and_in_order_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], limit: int, start: int, stop: int
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    for name in ("train.jsonl", "train.parquet"):
        if not documents and name.endswith("parquet"):
            continue
        pieces = TextPieces(
            open_files([write(folder / name, [{"text": text, "other": 1} for text in documents])]), limit
        )
        found = [pieces[number] for number in range(len(pieces))]
        wanted = [(number, piece) for number, text in enumerate(documents) for piece in pieces_of(text, limit)]
        assert [(piece["document"], piece["text"]) for piece in found] == wanted
        assert all(documents[p["document"]].startswith(p["text"], p["start"]) for p in found)
        start, stop = min(start, len(found)), min(stop, len(found))
        assert list(pieces.scan(start, stop)) == found[start:stop]


def test_where_pieces_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAN_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text, "_WORTH_KEEPING", 2)
    files = [write(tmp_path / "train.jsonl", [{"text": "One. \n\nTwo. \n\nThree."}, {"text": "Four."}])]
    before = list(TextPieces(open_files(files), 8).scan(0, 4))
    monkeypatch.setattr(text, "cut_pieces", lambda *_: pytest.fail("cut again"))
    assert list(TextPieces(open_files(files), 8).scan(0, 4)) == before
    assert [piece["document"] for piece in before] == [0, 0, 0, 1]


@pytest.mark.parametrize("adapt", ["{{ body }}", "{{ body }} "])
def test_documents_of_a_card_are_cut_whatever_their_source(tmp_path: Path, adapt: str) -> None:
    """Where the answer is one column as it is; what a card makes of more is one piece."""
    body = "A sentence of some length. \n\n" * 3000
    write(tmp_path / "toy/books/default/train.jsonl", [{"body": body}, {"body": "Short."}])
    source = Source("hub", "toy/books", "mit")
    task = Task("books", "custom", SHAPES["document"], source, "books", adapt={"answer": adapt}, where="x:1")
    rows = open_task(task, "train", tmp_path)
    found = [rows.fields(number)["answer"] for number in range(len(rows))]
    assert len(found) == (4 if adapt == "{{ body }}" else 2)
    assert "".join(found).replace(" ", "") == (body + "Short.").replace(" ", "")


# From files to packs.

LONG = "".join(f"Sentence {n} of a long book." + ("\n\n" if n % 9 == 8 else " ") for n in range(36_000))
STRANGE = [
    "Plain words.\n\nMore of them.",
    "Lines of another system.\r\n\r\nAnd more.\r\n",
    "A NUL \0 in between, \0twice.",
    "",
    " \n\n ",
    "été, 日本, \u2028 and \U0001f600.",
    LONG,
]
BOOKS = """\
# Books, made up.
family: custom
tasks:
  - name: text_books
    shape: document
    category: Text
    languages: [English]
    source: {hub: toy/books, license: mit}
    adapt: {answer: "{{ text }}"}
    splits: {train: train}
"""


def packs_of(folder: Path, root: Path, task: str = "text:books", **changes: Any) -> list[dict[str, Any]]:
    """All segments of the packs in order, without special tokens, each with where it comes from."""
    folder.mkdir()
    (folder / "mixture.yaml").write_text(f"members:\n  - {{tasks: ['{task}']}}\npresentations: {{statement: 1.0}}\n")
    settings = small_settings(folder, data_root=str(root), objective="causal", num_packs=1, max_length=2048, **changes)
    assert prepare(settings) is not None
    reader, found = open_packs(folder / "packs"), []
    for pack in map(reader.pack, range(reader.num_packs)):
        ends = np.cumsum(pack.segment_lengths).tolist()
        for n, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            ids = [int(i) for i in pack.input_ids[start:end] if i not in (BOS_ID, EOS_ID)]
            found.append({"ids": ids, "row": int(pack.row[n]), "epoch": int(pack.epoch[n]), "cut": int(pack.cut[n])})
    return found


def test_the_same_documents_give_the_same_packs_whatever_they_lie_in(tmp_path: Path) -> None:
    rows = [{"text": text[:100_000]} for text in STRANGE]
    made = {}
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        write(tmp_path / kind / "text/books" / f"train-00000.{kind}", rows[:3])
        write(tmp_path / kind / "text/books" / f"train-00001.{kind}", rows[3:])
        made[kind] = packs_of(tmp_path / f"packs of {kind}", tmp_path / kind, window_examples=12)
    write(tmp_path / "hub/toy/books/default/train.parquet", [{"title": "One", **row} for row in rows])
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/books.yaml").write_text(BOOKS)
    cards = (str(tmp_path / "cards"),)
    made["hub"] = packs_of(
        tmp_path / "packs of hub", tmp_path / "hub", "text_books", task_paths=cards, window_examples=12
    )
    assert made["hub"]
    assert len({json.dumps(one) for one in made.values()}) == 1


def test_every_document_is_in_the_packs_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "text/books/train.parquet", [{"text": text} for text in STRANGE])
    found = [one for one in packs_of(tmp_path / "made", tmp_path, window_examples=40) if one["epoch"] == 0]
    tokenizer = load_tokenizer(tmp_path / "made/tokenizer")
    (task,) = load_catalog().select("text:books")
    rows = open_task(task, "train", tmp_path)
    documents = dict.fromkeys(range(len(STRANGE)), "")
    for row in range(len(rows)):
        cuts = sorted((one["cut"], one["ids"]) for one in found if one["row"] == row)
        text = tokenizer.decode([i for _, ids in cuts for i in ids])
        assert text == rows.fields(row)["answer"]
        documents[rows.raw(row)["document"]] += text
    assert rows.drops == {"empty answer": 2}  # of which nothing can be learnt
    assert [*documents.values()] == [text if text.strip() else "" for text in STRANGE]


def test_what_is_not_there_is_said_with_what_is(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        open_text("tales", "test", data_root)
    assert str(caught.value) == (
        f"{data_root / 'text/tales'}: there is no split 'test' of this corpus; its splits are ['train', 'validation']."
    )
    with pytest.raises(
        SourceError, match=r"no split 'train' of this corpus; the corpora there are \['notes', 'tales'\]"
    ):
        open_text("novels", "train", data_root)
    with pytest.raises(SourceError, match=r"the corpora there are \[\]"):
        open_text("novels", "train", tmp_path)
    assert list_text_splits("tales", data_root) == ["train", "validation"]
    assert list_text_splits("novels", data_root) == []


@pytest.mark.parametrize(
    ("row", "found"),
    [({"body": "x"}, r"found the keys \['body'\]"), ({"text": None}, "found None"), ({"text": 5}, "found 5")],
)
def test_a_document_without_text_is_named(tmp_path: Path, row: dict[str, object], found: str) -> None:
    pieces = TextPieces(open_files([write(tmp_path / "train.jsonl", [TALES[0], row])]))
    with pytest.raises(
        SourceError, match=rf"train\.jsonl, row 1: a document is \{{'text': \.\.\.\}} with text in it, {found}"
    ):
        len(pieces)


def test_a_document_without_text_in_parquet_is_named(tmp_path: Path) -> None:
    write(tmp_path / "text/notes/train-00000.parquet", NOTES)
    write(tmp_path / "text/notes/train-00001.parquet", [{"title": "a", "text": "b"}, {"title": "c", "text": None}])
    with pytest.raises(SourceError, match=r"train-00001\.parquet, row 1: a document is .* found None"):
        packs_of(tmp_path / "packs", tmp_path, "text:notes")


def test_the_fingerprint_covers_the_files_and_the_limit(data_root: Path) -> None:
    documents = open_text("tales", "train", data_root)._documents
    assert TextPieces(documents).fingerprint != TextPieces(documents, 100).fingerprint
    assert TextPieces(documents).fingerprint == open_text("tales", "train", data_root).fingerprint


@pytest.mark.mirror
def test_real_documents_lose_nothing(mirror: Path) -> None:
    pieces = open_text("tiny_shakespeare", "validation", mirror)
    whole: dict[int, str] = {}
    for number in range(len(pieces)):
        piece = pieces[number]
        assert len(whole.get(piece["document"], "")) == piece["start"]
        whole[piece["document"]] = whole.get(piece["document"], "") + piece["text"]
    assert [whole[n] for n in sorted(whole)] == [
        row["text"] for row in map(pieces._documents.__getitem__, sorted(whole))
    ]
