"""How numbers are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoe.report import numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.score(0.7923691), "0.79237"),
        (numbers.score(None), "–"),
        (numbers.change(0.0004612), "+0.00046"),
        (numbers.change(-0.0004612), "−0.00046"),
        (numbers.change(-0.0000001), "0.00000"),
        (numbers.correlation(0.0952), "0.0952"),
        (numbers.correlation(0.0004), "0.00040"),
        (numbers.loss(0.3718612), "0.37186"),
        (numbers.loss(0.000012345), "1.234e-05"),
        (numbers.loss(1234.5), "1234"),
        (numbers.percent(0.16984), "16.98%"),
        (numbers.whole(32343172), "32,343,172"),
        (numbers.times(1.49), "1.5"),
        (numbers.times(1060.4), "1,060"),
        (numbers.duration(3.21), "3.2 s"),
        (numbers.duration(59.96), "1 min 0 s"),
        (numbers.duration(3599.6), "1 h 0 min"),
        (numbers.size(512), "512 B"),
        (numbers.size(1536), "1.5 KiB"),
        (numbers.size(5 << 30), "5.00 GiB"),
        (numbers.plain(1e-3), "0.001"),
        (numbers.plain(100.0), "100"),
    ],
)
def test_number_is_written_as_expected(written: str, expected: str) -> None:
    assert written == expected


@given(st.floats(min_value=-1, max_value=1))
def test_change_reads_back_within_half_a_unit(value: float) -> None:
    read = float(numbers.change(value).replace("−", "-"))
    assert abs(read - value) <= 0.5e-5 + 1e-12


@given(st.text())
def test_clean_text_can_be_encoded_and_keeps_its_length(text: str) -> None:
    cleaned = numbers.clean(text)
    cleaned.encode("utf-8")
    assert len(cleaned) == len(text)
    assert numbers.clean(cleaned) == cleaned
