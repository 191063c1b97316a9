"""How much to keep, in sentences and a table: the curve of recall and loss against the share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from artifacts.settings import AUTO
from attribution.keep_curve import FEWEST_ASKED, LEVEL, SHARES, KeepCurve
from reporting.summary import Summary, image_links
from reporting.verdicts import CLEAR
from reporting.words import count, paragraphs, table

CURVE_FIGURE = "results/keep_curve.png"
CURVE_TABLE = "results/keep_curve.csv"
TABLE_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WORTH_SAYING = 0.05  # points of recall; what rounds to nothing is no warning


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is no whole number."""
    return f"{100 * share:.3g}"


def share_kept(summary: Summary) -> float:
    """The share that was kept, asked for or found."""
    return float(summary.thresholds["target_size_ratio"])


def is_found(summary: Summary) -> bool:
    """Whether the run was left to find the share."""
    return bool(summary.run["settings"].get("target_size_ratio") == AUTO)


def best_share(curve: KeepCurve) -> str:
    """The best share in percent, with the interval of where the curve is highest."""
    low, high, faults = curve.best["low"], curve.best["high"], curve.best["fault_share"]
    if not has_say(curve):
        asked = count(curve.best["validation_pairs"], "trusted validation pair")
        surely = "" if faults is None else ", all but what surely looks faulty"
        return f"{percent(curve.share)} % ({asked}: too few for the curve to have a say{surely})"
    highest = f"{100 * low:.0f} to {100 * high:.0f}"
    if faults is None or curve.sorts_difficulty or low <= curve.share <= high:
        return f"{percent(curve.share)} % (the curve is highest at {highest})"
    return (
        f"{percent(curve.share)} % (between where the curve is highest, {highest}, and the"
        f" {100 * (1 - faults[0]):.0f} % that do not look faulty)"
    )


def has_say(curve: KeepCurve) -> bool:
    """Whether enough validation pairs were asked for the curve to have a say in the share."""
    return bool(curve.best["validation_pairs"] >= FEWEST_ASKED)


def auto_share(found: float, kept: float) -> str:
    """What `--target_size_ratio auto` found, and why that is not what is kept where it is not."""
    if abs(found - kept) < 1e-6:
        return f"{percent(kept)} % are kept"
    why = "ask for more" if kept > found else "leave no more"
    return (
        f"{percent(found)} % would be best; {percent(kept)} % are kept, since --overrides and"
        f" --min_group_retention {why}"
    )


def share_sentence(summary: Summary) -> str:
    """The best share, what the share kept gives away, and how much looks faulty; or nothing."""
    curve = summary.curve
    if curve is None:
        return ""
    clauses = [f"Best share to keep: {best_share(curve)}"]
    if has_say(curve):
        clauses.append(given_away_clause(summary, curve))
    if (faults := curve.best["fault_share"]) is None:
        clauses.append("how many of the pairs are faulty cannot be told")
    else:
        share, low, high = (f"{100 * x:.1f}" for x in faults)
        clauses.append(f"{share} % of the pairs look faulty ({low} to {high})")
    return "; ".join(clauses) + "."


def given_away_clause(summary: Summary, curve: KeepCurve) -> str:
    """What the share kept has less than the best, as far as the curve reaches."""
    share = share_kept(summary)
    if is_below(curve, share):
        begins = percent(float(curve.shares[0]))
        return f"what {percent(share)} % gives away is not known below {begins} %"
    points, error = curve.given_away(share)
    by_value = " by value" if curve.sorts_difficulty else ""
    return (
        f"{percent(share)} %{by_value} gives away {points:.1f} ± {error:.1f} points"
        f"{_counted_alike(summary)}"
    )


def _counted_alike(summary: Summary) -> str:
    """Of whom the curve speaks, where pairs of the curated set were made to count less."""
    return " to a trainer that heeds no weights" if summary.n_lowered else ""


def is_below(curve: KeepCurve, share: float) -> bool:
    """Whether the curve does not reach down to a share."""
    return share < float(curve.shares[0]) - 1e-9


def share_warnings(summary: Summary) -> list[str]:
    """That the share asked for gives away more recall than the curve's error explains."""
    curve, share = summary.curve, share_kept(summary)
    if curve is None or is_below(curve, share) or not has_say(curve):
        return []
    if is_found(summary) and abs(curve.share - share) < 1e-6:
        return []
    points, error = curve.given_away(share)
    # The error is none where the curve is compared with itself.
    if not error or points <= max(CLEAR * error, WORTH_SAYING):
        return []
    return [
        f"Keeping {percent(share)} % gives away {points:.1f} ± {error:.1f} points of recall on the"
        f" trusted validation pairs{_counted_alike(summary)}; the best share to keep is"
        f" {best_share(curve)}, "
        + (
            "for which --overrides and --min_group_retention leave no room."
            if is_found(summary)
            else "which --target_size_ratio auto takes."
        )
    ]


def how_much_section(summary: Summary) -> tuple[str, ...]:
    """The section of the results page, its heading first; nothing where nothing was measured."""
    curve = summary.curve
    if curve is None:
        return ()
    told = f"{share_sentence(summary)} {_auto_sentence(summary, curve)}"
    return (
        "## How much to keep",
        told,
        curve_table(summary, curve),
        measured_sentences(curve),
        check_sentences(curve),
        image_links(summary, CURVE_FIGURE),
    )


def _auto_sentence(summary: Summary, curve: KeepCurve) -> str:
    """What `--target_size_ratio auto` chose or would choose."""
    share = f"{percent(curve.share)} %"
    if is_found(summary):
        if abs(curve.share - share_kept(summary)) < 1e-6:
            return f"`--target_size_ratio auto` chose {share}."
        return f"`--target_size_ratio auto`: {auto_share(curve.share, share_kept(summary))}."
    if abs(curve.share - share_kept(summary)) < 1e-6:
        return f"{share} were asked for, and `--target_size_ratio auto` would choose the same."
    return (
        f"{percent(share_kept(summary))} % were asked for; `--target_size_ratio auto` would choose"
        f" {share}."
    )


def curve_table(summary: Summary, curve: KeepCurve) -> str:
    """Recall and loss at shares all along the curve, those kept and best among them."""
    kept, best = share_kept(summary), curve.share
    shown = {round(s, 4) for s in (*TABLE_SHARES, best)}
    shown |= set() if is_below(curve, kept) else {round(kept, 4)}
    header = ["share kept (%)", "recall (%)", "less than the most", "loss", "more than the least"]
    rows = [_row(curve, share, _marks(share, kept, best)) for share in sorted(shown)]
    return table(header, rows)


def _marks(share: float, kept: float, best: float) -> str:
    names = [n for n, s in (("best", best), ("kept", kept)) if abs(s - share) < 1e-4]
    return f" ({', '.join(names)})" if names else ""


def _row(curve: KeepCurve, share: float, marks: str) -> list[str]:
    at = int(np.abs(curve.shares - share).argmin())
    points, error = curve.given_away(share)
    more = curve.loss[at] - curve.loss.min()
    return [
        percent(share) + marks,
        f"{curve.recall[at]:.1f}",
        f"{points:.1f} ± {error:.1f}",
        f"{curve.loss[at]:.3f}",
        f"{more:.3f} ± {curve.loss_stderr[at]:.3f}",
    ]


def measured_sentences(curve: KeepCurve) -> str:
    """What was trained, who was asked, and what ± means."""
    best, shares = curve.best, [percent(s) for s in np.unique(curve.measured_shares)]
    seeds = count(best["n_seeds"], "seed")
    asked = count(best["validation_pairs"], "trusted validation pair")
    return (
        f"Measured by {len(curve.measured_shares)} short trainings of"
        f" {count(best['n_steps'], 'step')} each, {seeds} at {', '.join(shares)} % kept, on what"
        " has the highest value at each share, pairs that look faulty counting like others; asked"
        f" were {asked}. Recall is the mean over both"
        " directions at 1, 5 and 10 among these pairs alone, so it is not to be set beside recall"
        " on test images. ± is the standard error of the difference to the highest point, over"
        " validation pairs and seeds drawn again and with what the cubic misses; the curve is"
        f" highest within the interval in {100 * LEVEL:g} % of such draws. Of shares that cannot"
        " be told apart the one nearest to the share of pairs that do not look faulty is taken,"
        " and the best share to keep is"
        " halfway between the two: short trainings prefer smaller sets than long ones do."
    )


def check_sentences(curve: KeepCurve) -> str:
    """The pairs of highest value against as many at random that do not look faulty."""
    check = curve.best["check"]
    found = (
        f"The check: at {percent(check['share'])} % kept the pairs of highest value reach a recall"
        f" of {check['recall']:.1f}, as many at random {_by_lot(check['share'])}"
        f" {check['random']:.1f} (difference of the mean negative log rank"
        f" {check['difference']:+.3f} ± {check['stderr']:.3f})."
    )
    if not curve.sorts_difficulty:
        return found
    return (
        f"{found} So **values sort easy pairs from hard ones here, not good ones from bad**: they"
        " drop nothing but what looks faulty, near copies and what is far from the held-out pairs,"
        " and the others go by lot. The curve is of keeping by value, as it was before that was"
        " known."
    )


def _by_lot(share: float) -> str:
    """Whom the check draws from: below the lowest share too few may look right."""
    if share > SHARES[0]:
        return "among those that do not look faulty"
    return "with those first that do not look faulty"


def curve_numbers(summary: Summary) -> dict[str, Any]:
    """What programs may want to know of the curve, for `run.json`; empty where there is none."""
    curve, share = summary.curve, share_kept(summary)
    if curve is None:
        return {}
    points, error = (None, None) if is_below(curve, share) else curve.given_away(share)
    return {
        **{"kept": share, "found_by_auto": is_found(summary)},
        **{"given_away": points, "given_away_stderr": error},
        **curve.best,
    }


def curve_csv(curve: KeepCurve) -> str:
    """The whole curve, a row a share."""
    columns: dict[str, Sequence[float] | np.ndarray] = {
        "share": curve.shares,
        "recall": curve.recall,
        "recall_stderr": curve.recall_stderr,
        "loss": curve.loss,
        "loss_stderr": curve.loss_stderr,
    }
    csv: str = pd.DataFrame(columns).round(6).to_csv(index=False, lineterminator="\n")
    return csv


def share_part(summary: Summary) -> str:
    """The sentence and the table, for the page of tables; empty where there is no curve."""
    if summary.curve is None:
        return ""
    return paragraphs(
        (
            "## How much to keep",
            share_sentence(summary),
            curve_table(summary, summary.curve),
            "± is the standard error of the difference to the highest point.",
        )
    )
