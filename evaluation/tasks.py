"""The kinds of outcome that can be evaluated; light, so that a command line can list them."""

TASKS: dict[str, str] = {
    "regression": "evaluation.assessment:assess_regression",
}
"""Task -> `module:function`. The function takes the rows of `scored_rows`, the number of replicates, the seed and the
unit of the target, and returns estimates by name. A new task is one such function and one line here."""
