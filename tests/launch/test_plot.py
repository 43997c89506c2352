"""Curves as characters."""

import numpy as np
import pytest

from normact.launch.plot import HEIGHT, WIDTH, plot

X = np.linspace(-1.0, 3.0, 101)


def cells(text):
    """The cells of a plot, a string a row, without labels and padding."""
    rows = text.split("\n")[:HEIGHT]
    return [row.split("|" if "|" in row else "│")[1].ljust(WIDTH) for row in rows]


def test_stars_follow_the_curve():
    rows = cells(plot(X, X, ascii=True))
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    heights = [column.index("*") for column in columns]
    assert heights == sorted(heights, reverse=True)
    assert (heights[0], heights[-1]) == (HEIGHT - 1, 0)
    assert all(column.count("*") == 1 for column in columns)


def test_a_jump_is_drawn_through():
    rows = cells(plot(X, np.where(X > 1, 5.0, -2.0), ascii=True))
    assert all("*" in row for row in rows)
    assert rows[0].count("*") + rows[-1].count("*") >= WIDTH - 1  # the column of the jump has it in between


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_a_constant_is_a_line_in_the_middle(value):
    rows = cells(plot(X, np.full_like(X, value), ascii=True))
    assert [row.strip() for row in rows] == [""] * (HEIGHT // 2) + ["*" * WIDTH] + [""] * (HEIGHT // 2)


def test_labels_are_the_ends_and_the_extremes():
    text = plot(X, X**2 - 4, "u", ascii=True)
    lines = text.split("\n")
    assert lines[0].startswith(" 5 |")
    assert lines[HEIGHT - 1].startswith("-4 |")
    assert lines[-1].split() == ["-1", "u", "3"]
    assert text.isascii()


def test_dots_are_eight_to_a_cell_and_the_same_curve():
    text = plot(X, np.sin(3 * X))
    rows = cells(text)
    assert len({len(row) for row in rows}) == 1
    braille = {ord(c) for row in rows for c in row} - {ord(" ")}
    assert all(0x2800 < code <= 0x28FF for code in braille)
    stars = cells(plot(X, np.sin(3 * X), ascii=True))
    agree = sum(
        (a != " ") == (b != " ")
        for left, right in zip(rows, stars, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    assert agree > 0.85 * HEIGHT * WIDTH


def test_one_dot_is_one_bit():
    """The lowest left dot of a rising line: dot 7 of the last row's first cell, which also has the next column's."""
    rows = cells(plot(X, X))
    assert ord(rows[-1][0]) & 0x40
    assert not ord(rows[-1][0]) & (0x01 | 0x08)
