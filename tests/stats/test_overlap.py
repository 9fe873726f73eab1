"""Similarity measures on cases with a known answer."""

from __future__ import annotations

from rune.corpus import overlap

ADD = "def add(a, b):\n    return a + b\n"


def test_shape_sees_through_names_comments_docstrings_and_annotations() -> None:
    other = 'import math\n\ndef plus(x: int, y: int) -> int:\n    """Adds."""\n    # yes\n    return x + y\n'
    assert overlap.shape(ADD) == overlap.shape(other)


def test_shape_tells_which_name_is_used_where() -> None:
    assert overlap.shape(ADD) != overlap.shape("def add(a, b):\n    return a + a\n")
    assert overlap.shape("def f(x):\n    return sum(x)\n") != overlap.shape("def f(x):\n    return max(x)\n")


def test_shape_of_something_that_does_not_parse_is_none() -> None:
    assert overlap.shape("def f(:\n") is None


def test_shingles_ignore_layout_and_case() -> None:
    assert overlap.shingles("Return  the\nSUM of x", 3) == overlap.shingles("return the sum of x", 3)
    assert len(overlap.shingles("a b c d", 3)) == 2
    assert overlap.shingles("a b", 3) == {("a", "b")}
    assert overlap.shingles("", 3) == frozenset()


def test_containment_and_the_index_agree() -> None:
    texts = ["a b c d e", "c d e f g", "x y z"]
    sets = [overlap.shingles(t, 2) for t in texts]
    query = overlap.shingles("b c d e", 2)
    found = overlap.Index(sets).containments(query)
    assert found == {0: 1.0, 1: 2 / 3}
    assert found[1] == overlap.containment(query, sets[1])
    assert overlap.best(found) == (0, 1.0)
    assert overlap.best({}) == (-1, 0.0)


def test_functions_are_found_even_in_broken_code() -> None:
    assert overlap.functions(ADD) == {"add"}
    assert overlap.functions("def broken(x):\n    return (\n") == {"broken"}


def test_boilerplate_is_what_many_texts_share() -> None:
    sets = [overlap.shingles(f"frame of words item{i}", 2) for i in range(50)]
    frame = overlap.boilerplate(sets, share=0.5)
    assert ("frame", "of") in frame
    assert ("words", "item3") not in frame


def test_boilerplate_is_in_more_than_its_share_of_the_texts_and_in_more_than_two() -> None:
    def frames(holding: int, texts: int, share: float = 0.5) -> bool:
        sets = [frozenset({("frame",) if i < holding else (f"own {i}",), ("other",)}) for i in range(texts)]
        found = overlap.boilerplate(sets, share=share)
        assert found <= {("frame",), ("other",)}
        return ("frame",) in found

    assert [frames(n, 8) for n in (3, 4, 5, 8)] == [False, False, True, True]
    assert [frames(n, 3) for n in (1, 2, 3)] == [False, False, True]
    assert [frames(n, 10, 0.8) for n in (8, 9)] == [False, True]
    assert overlap.boilerplate([], share=0.5) == frozenset()


def test_the_best_of_equal_scores_is_the_first_item() -> None:
    assert overlap.best({4: 0.5, 2: 0.75, 3: 0.75, 1: 0.25}) == (2, 0.75)
    assert overlap.best({}) == (-1, 0.0)


def test_containment_is_a_share_of_what_is_asked_for() -> None:
    index = overlap.Index([frozenset("ab"), frozenset("bcd"), frozenset("x")])  # type: ignore[arg-type]
    assert index.containments(frozenset("abce")) == {0: 0.5, 1: 0.5}  # type: ignore[arg-type]
    assert index.containments(frozenset("q")) == {}  # type: ignore[arg-type]
