"""Hold the code and the prose to the limits in `structure.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import structure

SOURCES = structure.sources()
README = structure.ROOT / "README.md"


def test_classes_are_short() -> None:
    assert structure.long_classes(SOURCES) == []


def test_functions_are_short() -> None:
    assert structure.long_functions(SOURCES) == []


def test_few_functions_have_many_arguments() -> None:
    found = structure.wide_functions(SOURCES)
    assert len(found) <= structure.MANY_ARGUMENTS, found


@pytest.mark.parametrize("package", structure.PACKAGES)
def test_code_is_not_dense(package: str) -> None:
    files = structure.sources(structure.ROOT / package)
    assert structure.nodes_per_line(files) <= structure.NODES_PER_LINE


def test_imports_have_no_cycles() -> None:
    assert structure.cycles(structure.imports(SOURCES)) == []


def test_imports_follow_the_direction() -> None:
    assert structure.wrong_directions(structure.imports(SOURCES)) == []


def test_docstring_sentences_are_short() -> None:
    assert structure.long_sentences(SOURCES) == []


def test_docstrings_open_with_a_verb() -> None:
    assert structure.bad_openings(SOURCES) == []


def test_code_uses_the_vocabulary() -> None:
    tests = structure.sources(structure.ROOT / "tests")
    own = {Path(structure.__file__).resolve(), Path(__file__).resolve()}
    files = [file for file in (*SOURCES, *tests) if file not in own]
    assert structure.private_words(files) == []


def test_prose_uses_the_vocabulary() -> None:
    assert structure.private_words(structure.pages()) == []


def test_prose_sentences_are_short() -> None:
    assert structure.long_prose(structure.pages()) == []


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= structure.README_LINES
    assert len(text.split()) <= structure.README_WORDS
    assert structure.mean_words(README) <= structure.README_MEAN_WORDS


def test_cycle_search_finds_a_cycle() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert structure.cycles(graph) == ["b -> c -> b", "c -> b -> c"]


def test_sentences_end_at_lists_and_tables() -> None:
    text = "One fact. Another one:\n\n- an item\n- a second\n\n| a | b |\n\nThe end."
    found = list(structure.sentences(text))
    assert found == ["One fact.", "Another one:", "an item", "a second", "The end."]


def test_words_of_a_code_span_count_as_one() -> None:
    assert structure.words("Set `a b c` and [a link](x y).") == 4
