from pathlib import Path

import numpy as np
import pytest

from ffstream.data.text import (
    ALPHABET,
    CORPUS,
    MAX_CHARACTERS,
    SYMBOLS,
    corpus,
    decode,
    encode,
    load_text,
    text_dataset,
)
from ffstream.errors import DataError

TEXT = "Abc, def.\nNext   line: 12+3!\n\n\n  Second paragraph, ünd more."
REDUCED = "abc, def. next line- --second paragraph, -nd more."


def shown(images: np.ndarray) -> list[str]:
    """The characters of each window."""
    assert set(np.unique(images)) == {0, 255}
    assert (images.astype(np.int64).sum(2) == 255).all(), "one symbol in each row"
    return [decode(window.argmax(1).astype(np.uint8)) for window in images]


def test_a_text_has_thirty_symbols() -> None:
    assert decode(encode(TEXT)) == REDUCED
    assert SYMBOLS == 30
    assert encode(ALPHABET.upper()).tolist()[:26] == list(range(26))
    assert encode("").tolist() == encode(" \n\n\n ").tolist() == []


def test_a_sample_is_a_window_and_the_character_that_follows() -> None:
    dataset = text_dataset("a text", TEXT, 4)
    cut = len(REDUCED) * 9 // 10
    train, test = dataset.train, dataset.test
    assert train.images.shape == (cut - 4, 4, 30)
    assert shown(train.images) == [REDUCED[t - 4 : t] for t in range(4, cut)]
    assert decode(train.labels) == REDUCED[4:cut]
    assert shown(test.images) == [REDUCED[t - 4 : t] for t in range(cut, len(REDUCED))]
    assert decode(test.labels) == REDUCED[cut:]


def test_the_training_split_ends_with_the_validation_split() -> None:
    dataset = text_dataset("a text", TEXT * 10, 4)
    held_out = dataset.split("validation")
    assert held_out.labels.tolist() == dataset.train.labels[-len(held_out) :].tolist()


def test_a_file_is_read_as_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert load_text(str(file), 4).train.labels.tolist() == text_dataset("", TEXT, 4).train.labels.tolist()
    assert load_text(str(file), 4).name == "book.txt"


def test_files_that_are_no_text_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short").write_text("abc", encoding="utf-8")
    for name, said in {
        "bytes": "it is not UTF-8 text",
        "missing": "No such file or directory",
        "short": "3 characters are too few for a window of 10",
        "": "Is a directory",
    }.items():
        with pytest.raises(DataError, match=said):
            load_text(str(tmp_path / name), 10)
    with pytest.raises(DataError, match="a text has at most 5,000,000"):
        text_dataset("long", "a" * (MAX_CHARACTERS + 1), 10)


def test_windows_that_need_too_much_memory_are_rejected() -> None:
    text = "a" * 100_000
    assert text_dataset("long", text, 700).name == "long"
    with pytest.raises(DataError, match=r"a window of 1000, 100,000 characters make 3.0 GB of images"):
        text_dataset("long", text, 1000)
    assert text_dataset("longest", "a" * MAX_CHARACTERS, 10).name == "longest"


def test_the_corpus_is_the_documentation_of_the_language_without_repetitions() -> None:
    text = decode(encode(corpus()))
    assert len(text) > 200_000
    paragraphs = corpus().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert load_text(CORPUS, 10).name == CORPUS
