"""The results page on what differs between two runs."""

from __future__ import annotations

from reporting.report.changes import MUCH, Changes, PairChanges, RecallChange
from reporting.verdicts import CLEAR
from reporting.words import (
    COMPARISON_SHORT,
    count,
    escape,
    mean_and_spread,
    method_name,
    paragraphs,
    quantity,
    table,
)

N_LISTED = 8  # rows of a table


def changes_markdown(changes: Changes) -> str:
    """The section of the results page."""
    return paragraphs(
        (
            f"## Changes against {escape(changes.theirs.folder)}",
            _test_warning(changes),
            _settings_table(changes),
            _recall_table(changes),
            _pairs_text(changes),
        )
    )


def not_comparable(changes: Changes) -> str:
    """Why recalls of the two runs are not to be compared; "" where they are."""
    if changes.same_test is None:
        return (
            "Whether both runs rank the same test pairs is not known: this run has no ledger, for"
            " stage 3 was left out."
        )
    if changes.same_test:
        return ""
    return (
        f"RECALL IS NOT COMPARABLE: the test pairs are not the same ({changes.theirs.n_test:,}"
        f" there, {changes.ours.n_test:,} here, {changes.n_shared_test:,} in both)."
    )


def _test_warning(changes: Changes) -> str:
    text = not_comparable(changes)
    return f"> [!WARNING]\n> **{text}**" if text else ""


def _settings_table(changes: Changes) -> str:
    rows = [
        [name, escape(there), escape(here)]
        for name, there, here in (
            ("data set", changes.theirs.dataset, changes.ours.dataset),
            ("encoder", changes.theirs.encoder, changes.ours.encoder),
        )
        if there != here
    ]
    rows += [[f"`--{escape(s.flag)}`", escape(s.theirs), escape(s.ours)] for s in changes.settings]
    if not rows:
        return "No setting that can change a result differs."
    return table(["what differs", "there", "here"], rows, 3)


def _recall_table(changes: Changes) -> str:
    """One row a method, the comparisons beside each other."""
    if not changes.recall:
        return ""
    comparisons = list(dict.fromkeys(r.comparison for r in changes.recall))
    cells = {(r.comparison, r.method): r for r in changes.recall}
    columns = ["there", "here"] if changes.same_test is False else ["there", "here", "difference"]
    header = ["mean recall"]
    for comparison in comparisons:
        short = COMPARISON_SHORT.get(comparison, escape(comparison))
        header += [f"{short}: {what}" for what in columns]
    rows = []
    for method in dict.fromkeys(r.method for r in changes.recall):
        row = [method_name(method)]
        for comparison in comparisons:
            row += _recall_cells(cells.get((comparison, method)))[: len(columns)]
        rows.append(row)
    found = table(header, rows)
    if changes.same_test is False:
        return found
    return (
        f"{found}\n\nDifference: here less there, in brackets its size in standard errors over"
        f" training seeds; bold from {CLEAR:g} on, below which the two are not told apart."
    )


def _recall_cells(change: RecallChange | None) -> list[str]:
    """Theirs, ours and the difference."""
    if change is None:
        return ["–"] * 3
    cells = [
        "–" if mean is None else mean_and_spread({"mean": mean, "std": std}, 2)
        for mean, std in (
            (change.theirs_mean, change.theirs_std),
            (change.ours_mean, change.ours_std),
        )
    ]
    if change.difference is None:
        return [*cells, "–"]
    text = f"{change.difference:+.2f}"
    if change.standard_error:
        text += f" ({abs(change.difference) / change.standard_error:.1f})"
    return [*cells, f"**{text}**" if change.outcome in ("higher", "lower") else text]


def _pairs_text(changes: Changes) -> str:
    """What moved, in sums; the page shows which pairs."""
    pairs = changes.pairs
    if pairs is None:
        return ""
    sides = ("kept", "dropped", "no training pair")
    rows = [
        [f"{side} there", *(f"{n:,}" for n in row)]
        for side, row in zip(sides, pairs.counts, strict=True)
    ]
    rows[2][3] = "–"
    moved = (
        f"{count(pairs.n_shared, 'training pair')} in both runs: {len(pairs.moved_in):,} moved in"
        f" (dropped there, kept here), {len(pairs.moved_out):,} moved out."
    )
    if not pairs.n_shared:
        moved = (
            "No training pair is in both runs: the data are others, or one run read images and the"
            " other embeddings."
        )
    cuts = [quantity(side.cut) for side in (changes.theirs, changes.ours)]
    if pairs.n_shared and "–" not in cuts:
        moved += f" The highest value of a dropped pair is {cuts[0]} there and {cuts[1]} here."
    if pairs.reweighted:
        moved += (
            f" The weight of {count(len(pairs.reweighted), 'pair')} that both keep was multiplied"
            f" or divided by {MUCH:g} or more."
        )
    return paragraphs(
        (
            moved,
            table(["training pairs", *(f"{side} here" for side in sides)], rows),
            _elsewhere(pairs),
            _reasons_table(pairs),
            _clusters_table(pairs),
        )
    )


def _elsewhere(pairs: PairChanges) -> str:
    """What the pairs of one run alone are in the other."""
    sentences = []
    for where, other, found in (
        ("there", "here", pairs.only_there),
        ("here", "there", pairs.only_here),
    ):
        if found:
            parts = ", ".join(f"{n:,} {escape(what)}" for what, n in found)
            sentences.append(f"Training pairs {where} alone are {other}: {parts}.")
    return " ".join(sentences)


def _reasons_table(pairs: PairChanges) -> str:
    rows = [
        [r.moved, escape(r.theirs_reason), escape(r.ours_reason), f"{r.pairs:,}"]
        for r in pairs.reasons[:N_LISTED]
    ]
    return table(["moved", "reason there", "reason here", "pairs"], rows, 3) if rows else ""


def _clusters_table(pairs: PairChanges) -> str:
    rows = [
        [
            f"{c.cluster}: {escape(', '.join(c.terms) or '–', 60)}",
            f"{c.pairs:,}",
            f"{c.moved_in:,}",
            f"{c.moved_out:,}",
        ]
        for c in pairs.clusters[:N_LISTED]
    ]
    header = ["cluster (the most moved)", "pairs in both", "moved in", "moved out"]
    return table(header, rows) if rows else ""
