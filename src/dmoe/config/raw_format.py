"""How raw logs are written: labels, numbers, times, delimited text."""

from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
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


class Label(_Strict):
    """The label column. Without `positive` it holds 0 and 1, or true and false, in any spelling; with it, these values
    are clicks and `negative`, by default all others, are none. Values compare by value: 1 is "1" and 1.0.

    `missing`: rows without a label are rejected, or count as `negative`.
    """

    named_by_text: ClassVar[bool] = True
    column: str = Field(min_length=1)
    positive: tuple[str, ...] | None = None
    negative: tuple[str, ...] | None = None
    missing: Literal["reject", "negative"] = "reject"

    @field_validator("positive", "negative", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [str(one).lower() if isinstance(one, bool) else str(one) for one in value]
        return value

    @model_validator(mode="after")
    def _classes_differ(self) -> "Label":
        if self.positive is None and self.negative is not None:
            raise ValueError("'negative' goes with 'positive', the values that are a click")
        if self.positive is not None and not self.positive:
            raise ValueError("'positive' names no value; name those that are a click, as in positive: [yes]")
        both = set(self.positive or ()) & set(self.negative or ())
        if both:
            raise ValueError(f"'{min(both)}' is both positive and negative")
        return self

    @model_serializer(mode="wrap")
    def _short(self, serialise: SerializerFunctionWrapHandler) -> Any:
        """Its name alone where nothing else is said."""
        return self.column if self == Label(column=self.column) else serialise(self)


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
