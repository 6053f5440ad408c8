"""How raw logs are written: numbers, times, delimited text."""

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    field_validator,
    model_validator,
)

from dmoe.config.time_patterns import checked_format

_THOUSANDS = (".", ",", "'", "\u2019", "_", " ", "\u00a0", "\u202f")
DELIMITERS = (",", "\t", ";", "|")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def check_no_repeats(what: str, names: tuple[str, ...] | list[str]) -> None:
    """Raises: ValueError naming what comes twice."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what}: these names appear twice: {', '.join(repeated)}")


class NumberFormat(_Strict):
    """How texts write numbers. `decimal`: the character before the fraction. `thousands`: what stands between groups
    of three digits, empty for nothing. `strip`: signs that are taken off either end, as € and %."""

    decimal: Literal[".", ","] = "."
    thousands: str = ""
    strip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _signs_differ(self) -> "NumberFormat":
        if self.thousands and self.thousands not in _THOUSANDS:
            raise ValueError(f"'thousands' must be one of {', '.join(map(repr, _THOUSANDS))}, got {self.thousands!r}")
        if self.thousands == self.decimal:
            raise ValueError(f"'thousands' and 'decimal' are both {self.decimal!r}")
        for sign in self.strip:
            if not sign.strip() or any(one in "0123456789+-.,eE" for one in sign):
                raise ValueError(f"'strip': {sign!r} may be part of a number")
        return self


class LogFormat(NumberFormat):
    """How the bytes of an input file become named columns, and how their texts write numbers.

    `columns` names the columns of a file without a header. `missing` lists the texts that stand for "no
    value"; numbers among them compare by value. A quoted value may hold delimiters and doubled quotes; with
    `escape: backslash` also `\\"` for a quote, and with `line_breaks` line breaks.
    """

    kind: Literal["auto", "csv", "parquet"] = "auto"
    header: bool = True
    columns: tuple[str, ...] | None = None
    delimiter: str = "auto"
    quote: Literal['"', "'"] | None = '"'
    escape: Literal["backslash"] | None = None
    line_breaks: bool = False
    missing: tuple[str, ...] = ("",)

    @property
    def numbers(self) -> NumberFormat:
        """How texts write numbers."""
        return NumberFormat(decimal=self.decimal, thousands=self.thousands, strip=self.strip)

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str) -> str:
        if value != "auto" and (len(value) != 1 or not value.isascii() or value in "\r\n\"'\0"):
            hint = """; a tab is "\\t" in double quotes""" if value == "\\t" else ""
            raise ValueError(f"must be 'auto' or one ASCII character that is no quote and no line break{hint}")
        return value

    @model_validator(mode="after")
    def _header_or_columns(self) -> "LogFormat":
        if self.quote is None and (self.escape or self.line_breaks):
            raise ValueError("'escape' and 'line_breaks' are about quoted values, but 'quote' is null")
        if self.header and self.columns is not None:
            raise ValueError("'columns' names the columns of a file without a header; set 'header: false' too")
        if not self.header and not self.columns:
            raise ValueError("a file without a header needs 'columns', the names of all its columns in order")
        check_no_repeats("columns", self.columns or ())
        return self


class Derivation(_Strict):
    """A column taken out of the time that another column holds, as it is written (no change of zone).

    `hour` 0-23, `weekday` 0-6 from Sunday, `weekend` 1 on Saturday and Sunday, else 0.
    `yymmddhh` as in 14102123; `iso` as in 2014-10-21 23:00:00; `unix`, `unix-ms`, `unix-us`, `unix-ns` since 1970 in
    UTC; or a pattern of strptime as %d.%m.%Y %H:%M. Typed times need no format, and are read by value.
    """

    column: str
    take: Literal["hour", "weekday", "weekend"]
    format: str = "iso"

    @model_validator(mode="after")
    def _format_holds_it(self) -> "Derivation":
        checked_format(self.format, self.take)
        return self
