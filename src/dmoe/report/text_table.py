"""A table of texts that is written as HTML (by a template), Markdown or LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Emphasis = Literal["", "bold", "italic"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "α": r"$\alpha$",
    "ρ": r"$\rho$",
    "’": "'",
    "²": r"$^2$",
    "×": r"$\times$",
}


@dataclass(frozen=True, slots=True)
class Text:
    """One cell; `below` is a second, smaller line."""

    text: str
    below: str = ""
    emphasis: Emphasis = ""


@dataclass(frozen=True, slots=True)
class TextTable:
    """A caption, a head, and rows whose first cell names them; `words` are the columns of text rather than figures."""

    key: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Text]]
    words: frozenset[int] = field(default_factory=frozenset)

    def markdown(self) -> str:
        lines = [
            f"**{_pipes(self.caption)}**",
            "",
            _line(self.head),
            _line(["---" if column == 0 or column in self.words else "---:" for column in range(len(self.head))]),
            *(_line([_markdown(cell) for cell in row]) for row in self.rows),
        ]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        columns = "".join("l" if column == 0 or column in self.words else "r" for column in range(len(self.head)))
        lines = [
            r"\begin{table}",
            rf"\caption{{{_latex_text(self.caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            " & ".join(_latex_text(one) for one in self.head) + r" \\",
            r"\hline",
            *(" & ".join(_latex(cell) for cell in row) + r" \\" for row in self.rows),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pipes(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _markdown(cell: Text) -> str:
    text = _pipes(cell.text)
    mark = {"": "", "bold": "**", "italic": "*"}[cell.emphasis]
    return f"{mark}{text}{mark}" + (f" ({_pipes(cell.below)})" if cell.below else "")


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex(cell: Text) -> str:
    text = _latex_text(cell.text)
    if cell.emphasis:
        text = rf"\{'textbf' if cell.emphasis == 'bold' else 'textit'}{{{text}}}"
    return text + (f" ({_latex_text(cell.below)})" if cell.below else "")
