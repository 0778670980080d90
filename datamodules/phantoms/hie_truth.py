"""How well the outcome of a cohort of newborns can be predicted at all: what `<table>.truth.json` holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.phantoms.hie_newborns import MODELS, NUM_DRAWS, Factor, simulate


def truth_path(table: Path) -> Path:
    """Return where the truths of a table are: `cohort.tsv.truth.json` beside `cohort.tsv`."""
    return table.with_name(table.name + ".truth.json")


def write_truth(table: Path, shared_factor: Factor, num_sites: int, newborns: Sequence[tuple[str, int, float]]) -> None:
    """Write the law of the outcome, and what a perfect prediction reaches by Monte Carlo and in this cohort.

    Args:
        table: The cohort table.
        shared_factor: Whether the outcome depends on the latent factor.
        num_sites: Number of sites.
        newborns: Site, outcome and its true probability of every participant.
    """
    groups = {"overall": list(newborns)}
    for newborn in newborns:
        groups.setdefault(newborn[0], []).append(newborn)
    truth = predictability(shared_factor, num_sites)
    truth["cohort"] = {name: _discrimination(group) for name, group in groups.items()}
    truth_path(table).write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")


def describe_truth(table: Path) -> list[str]:
    """Return the lines that `fontanel make-cohort` prints about a table."""
    truth = json.loads(truth_path(table).read_text(encoding="utf-8"))
    lines = [
        f"Outcome, shared factor {truth['shared_factor']}: the best AUC that any model can reach, "
        f"from {truth['num_draws']:,} simulated newborns"
    ]
    for name, best in truth["monte_carlo"].items():
        lines.append(
            f"  {name}: {best['bayes_auroc']:.3f} knowing everything, {best['image_auroc']:.3f} from injury and "
            f"factor, {best['injury_auroc']:.3f} from injury alone; prevalence {best['prevalence']:.2f}"
        )
    for name, here in truth["cohort"].items():
        interval = "" if here["low"] is None else f" [{here['low']:.3f}, {here['high']:.3f}]"
        auc = "undefined" if here["bayes_auroc"] is None else f"{here['bayes_auroc']:.3f}{interval}"
        lines.append(f"  {name}, this cohort: {auc}; {here['num_adverse']} of {here['num_participants']} adverse")
    return lines


def predictability(shared_factor: Factor, num_sites: int) -> dict[str, Any]:
    """Estimate by Monte Carlo how well the outcome can be predicted at all, for the file of truths.

    Returns:
        The coefficients, the number of draws, and for `overall` and each site the prevalence and the areas under the
        ROC curve of the true log odds (`bayes`: nothing can do better), of `image` and of `injury`.
    """
    from evaluation.discrimination import auroc

    model = MODELS[shared_factor]
    drawn = simulate(model, num_sites)
    parts = {"overall": np.ones_like(drawn["site"], bool)}
    parts |= {f"site-{chr(ord('a') + site)}": drawn["site"] == site for site in range(num_sites)}
    scores = {"bayes": "log_odds", "image": "image", "injury": "injury"}
    return {
        "shared_factor": shared_factor,
        "coefficients": asdict(model),
        "num_draws": NUM_DRAWS,
        "monte_carlo": {
            name: {
                "prevalence": round(float(drawn["outcome"][rows].mean()), 4),
                **{
                    f"{score}_auroc": round(auroc(drawn["outcome"][rows], drawn[key][rows]), 4)
                    for score, key in scores.items()
                },
            }
            for name, rows in parts.items()
        },
    }


def _discrimination(newborns: Sequence[tuple[str, int, float]]) -> dict[str, Any]:
    """Return the area under the ROC curve of the true probability, with DeLong's 95 % interval; None if undefined."""
    from evaluation.discrimination import delong

    outcomes = [outcome for _, outcome, _ in newborns]
    found: dict[str, Any] = {"num_participants": len(outcomes), "num_adverse": sum(outcomes)}
    if not 0 < sum(outcomes) < len(outcomes):
        return {**found, "bayes_auroc": None, "low": None, "high": None}
    result = delong(outcomes, [probability for *_, probability in newborns])
    ends = {"low": result.low, "high": result.high}
    return {
        **found,
        "bayes_auroc": round(result.auc, 4),
        **{name: None if end is None else round(end, 4) for name, end in ends.items()},
    }
