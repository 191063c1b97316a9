"""How numbers, names and Markdown are written: on the page, in figures and on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from baselines import INFLUENCESPACE, METHODS
from reporting.lettering import drawable, list_from_left
from reporting.widths import shorten

ENCODER = "encoder"
METHOD_LABELS = {name: method.label for name, method in METHODS.items()} | {
    ENCODER: "Encoder's own joint space"
}
COMPARISON_LABELS = {
    "same_epochs": "Same number of epochs",
    "same_steps": "Same number of steps",
}
SPLIT_LABELS = {"train": "Training", "validation": "Validation", "test": "Test"}
CATEGORIES = ("harmful", "neutral", "beneficial")
CHECK_LABELS = {  # of the influence estimate, against retraining
    "loco": "One cluster left out",
    "small_weight": "One cluster at 0.9 of its weight",
    "lds": "A random half of the clusters left out",
}
LABEL_WIDTH = 44  # columns
RANDOM = "random"
COMPARISON_SHORT = {"same_epochs": "same epochs", "same_steps": "same steps"}
FAULT_LABELS = {
    "wrong_caption": "wrong captions",
    "boilerplate": "boilerplate captions",
    "near_copy": "near copies",
    "rare group": "the rare group",
    "good": "good pairs",
}
FREE_PREDICTIONS = {  # of influence, beside the estimate
    "size": "cluster size",
    "clip_score": "mean CLIP score",
    "gradient_similarity": "gradient similarity",
}


# --- Text -------------------------------------------------------------------------------------


def method_label(method: str) -> str:
    """The method's name for people."""
    return METHOD_LABELS.get(method, method.replace("_", " ").capitalize())


def plain(text: str, width: int = 1000) -> str:
    """One line of at most `width` columns that matplotlib draws as it stands."""
    return drawable(shorten(text, width))


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def cluster_label(cluster: int, terms: Sequence[str]) -> str:
    """A cluster's number and what it is about, for a figure."""
    label = list_from_left(f"{cluster}: ", terms) if terms else f"cluster {cluster}"
    return plain(label, LABEL_WIDTH)


def mean_and_spread(cell: Mapping[str, Any], digits: int = 1) -> str:
    """A mean with its standard deviation, or alone where one value has no spread."""
    mean = f"{cell['mean']:,.{digits}f}"
    return mean if cell["std"] is None else f"{mean} ± {cell['std']:,.{digits}f}"


def seconds_text(seconds: float, digits: int | None = None) -> str:
    """Seconds with a decimal, below one second with two; what rounds to nothing as `<0.1`."""
    digits = (1 if seconds >= 1 else 2) if digits is None else digits
    if 0 < seconds < 0.5 * 10**-digits:
        return f"<{10**-digits:.{digits}f}"
    return f"{seconds:,.{digits}f}" if seconds else "0"


def seconds_and_spread(cell: Mapping[str, Any]) -> str:
    """Mean seconds with their standard deviation, or alone where one run has no spread."""
    mean = seconds_text(cell["mean"])
    if cell["std"] is None:
        return mean
    return f"{mean} ± {seconds_text(cell['std'], 1 if cell['mean'] >= 1 else 2)}"


def setting_text(value: Any) -> str:
    """A setting's value as on the command line, or that it was not set."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if value is not None and text else "not set"


def signed(value: float) -> str:
    """A number with its sign, with a decimal where it is small."""
    return f"{value:+,.{0 if abs(value) >= 10 else 1}f}"


# --- Markdown ---------------------------------------------------------------------------------


def escape(text: Any, width: int = 160) -> str:
    """Text from outside as one line of Markdown that shows it as it is, in a table too."""
    special = r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is none
    return re.sub(special, r"\\\g<0>", shorten(str(text), width))


def paragraphs(parts: Iterable[str]) -> str:
    """The parts that are not empty, apart by blank lines."""
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int = 1) -> str:
    """A Markdown table; the first `n_left` columns to the left, the others to the right."""
    rule = [":--" if i < n_left else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def bullets(items: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {item}" for item in items)


# --- Numbers and names ------------------------------------------------------------------------


def share(part: float, whole: float) -> str:
    """A share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def quantity(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def enumerate_words(words: Sequence[str]) -> str:
    """Words joined as in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def method_name(method: str) -> str:
    """The method in a table, InfluenceSpace in bold."""
    label = escape(method_label(method))
    return f"**{label}**" if method == INFLUENCESPACE else label


def names(methods: Sequence[str]) -> str:
    """Methods joined as in a sentence."""
    return enumerate_words([escape(method_label(m)) for m in methods])


def fault_label(fault: str) -> str:
    """A kind of fault for people."""
    return FAULT_LABELS.get(fault, escape(fault.replace("_", " ")))
