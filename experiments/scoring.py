"""What validate and test share: predict the rows of a stage, and keep predictions, metrics and report in the run."""

import argparse
from typing import TYPE_CHECKING, Literal

from evaluation.parts import HELD_OUT
from experiments.options import STEP_TIMEOUT, configuration_words, open_store

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from pytorch_lightning import Trainer

    from experiments.runtime import FontanelCLI, Restored
    from experiments.session import Session
    from experiments.training import Training
    from tracking.store import Store

Stage = Literal["validate", "test"]
PARTS: dict[Stage, tuple[str, ...]] = {"validate": ("val",), "test": HELD_OUT}


def assess(arguments: argparse.Namespace, stage: Stage) -> int:
    """Run `fontanel validate` or `fontanel test`."""
    from experiments.evaluate import describe
    from experiments.ranks import spread
    from experiments.runtime import ConfigurationError, restore, scratch_folder
    from tracking.packs import is_pack

    words = configuration_words(arguments)
    reference = arguments.reference
    if reference is None and "--ckpt_path" in words:
        position = words.index("--ckpt_path")
        reference = words[position + 1]
        del words[position : position + 2]
    if reference is None and words != ["--help"]:
        raise ConfigurationError(
            f"Nothing to {stage}. Name a run, a run's folder or a checkpoint: fontanel {stage} RUN. "
            "A configuration alone holds no trained weights; with --config, add --ckpt_path FILE."
        )
    if is_pack(reference or ""):
        raise ConfigurationError(
            f"{reference} is a pack, and has no run here to keep results in. Predict with it (fontanel predict "
            f"{reference} --data.table TABLE), then evaluate the predictions: fontanel evaluate."
        )
    store = open_store(arguments)
    with scratch_folder() as scratch:
        restored = restore(reference, words, store, scratch)
        require_rows(restored, stage)
        if (code := spread(stage, arguments.words, restored.cli, store, STEP_TIMEOUT)) is not None:
            return code
        session = score(restored, stage, store)
    if session is None:
        return 0
    for split in PARTS[stage]:
        if split in set(session.predictions["split"]):
            print(describe(session.assessment(split)))
    print(f"Report: {session.folder / 'report.html'}")
    return 0


def require_rows(restored: "Restored", stage: Stage) -> None:
    """Refuse a cohort that leaves nothing to score."""
    from experiments.runtime import ConfigurationError

    data = restored.cli.datamodule
    data.assign_splits()
    if not data.part(*PARTS[stage]):
        raise ConfigurationError(
            f"No row of this cohort is in the split {' or '.join(PARTS[stage])}: everybody was used in training. "
            "Give a cohort with others (--data.table), or train with data.test_fraction above 0."
        )


def score(restored: "Restored", stage: Stage, store: "Store") -> "Session | None":
    """Predict the rows of a stage and keep predictions, metrics and report in the run.

    Args:
        restored: Model and datamodule; splits are assigned.
        stage: `validate` scores the split `val`, `test` the splits `test` and `external`.
        store: Where the results are kept.

    Returns:
        The run, None on every process but the first.
    """
    from experiments.lock import site_tags
    from experiments.session import Session
    from tracking.checkpoints import load_checkpoint

    cli, contract, checkpoint = restored
    trainer = cli.make_trainer(logger=False)
    rows = predict_rows(cli, trainer, stage, checkpoint)
    if not trainer.is_global_zero:
        return None
    session = Session.reopen(contract, store)
    session.keep_predictions(rows, int(load_checkpoint(checkpoint)["global_step"]))
    session.write_report()
    for name, value in site_tags(session.predictions).items():
        store.set_tag(session.run_id, name, value)
    return session


def score_all(training: "Training") -> "tuple[pd.DataFrame, int]":
    """Predict the validation and the test participants of a run that has just been trained, by its best weights.

    Returns:
        The rows, none of them on every process but the first, and the optimiser step of the weights.
    """
    import pandas as pd

    from experiments.runtime import BEST_CHECKPOINT
    from tracking.checkpoints import load_checkpoint

    cli, checkpoint = training.cli, training.shared_folder() / BEST_CHECKPOINT
    trainer = cli.make_trainer(logger=False)
    rows = [
        predict_rows(cli, trainer, stage, checkpoint) for stage, parts in PARTS.items() if cli.datamodule.part(*parts)
    ]
    return pd.concat(rows, ignore_index=True), int(load_checkpoint(checkpoint)["global_step"])


def predict_rows(cli: "FontanelCLI", trainer: "Trainer", stage: Stage, checkpoint: "Path") -> "pd.DataFrame":
    """Return the rows that weights predict of a stage's participants, none of them on every process but the first."""
    run_stage = trainer.validate if stage == "validate" else trainer.test
    run_stage(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
    rows: pd.DataFrame = cli.model.take_predictions()
    return rows
