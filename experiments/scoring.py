"""What validate and test share: predict the rows of a stage, and keep predictions, metrics and report in the run."""

import argparse
from typing import TYPE_CHECKING, Literal

from experiments.options import configuration_words, open_store

if TYPE_CHECKING:
    from experiments.session import Session
    from tracking.store import Store

Stage = Literal["validate", "test"]
PARTS: dict[Stage, tuple[str, ...]] = {"validate": ("val",), "test": ("test", "external")}


def assess(arguments: argparse.Namespace, stage: Stage) -> int:
    """Run `fontanel validate` or `fontanel test`."""
    from experiments.evaluate import describe
    from experiments.runtime import ConfigurationError

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
    session = score(reference, words, stage, open_store(arguments))
    for split in PARTS[stage]:
        if split in set(session.predictions["split"]):
            print(describe(session.assessment(split)))
    print(f"Report: {session.folder / 'report.html'}")
    return 0


def score(reference: str, words: list[str], stage: Stage, store: "Store") -> "Session":
    """Predict the rows of a stage with the weights of a run or a checkpoint.

    Args:
        reference: Run id, run name, run folder, or checkpoint file.
        words: Further arguments of the configuration, which win over those of the checkpoint.
        stage: `validate` scores the split `val`, `test` the splits `test` and `external`.
        store: Where the run is looked up and its results are kept.
    """
    from experiments.runtime import ConfigurationError, restore, scratch_folder
    from experiments.session import Session
    from tracking.checkpoints import load_checkpoint

    with scratch_folder() as scratch:
        cli, contract, checkpoint = restore(reference, words, store, scratch)
        cli.datamodule.assign_splits()
        if not cli.datamodule.part(*PARTS[stage]):
            raise ConfigurationError(
                f"No row of this cohort is in the split {' or '.join(PARTS[stage])}: everybody was used in training. "
                "Give a cohort with others (--data.table), or train with data.test_fraction above 0."
            )
        trainer = cli.make_trainer(logger=False)
        run_stage = trainer.validate if stage == "validate" else trainer.test
        run_stage(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), weights_only=True, verbose=False)
        session = Session.reopen(contract, store)
        session.keep_predictions(cli.model.take_predictions(), int(load_checkpoint(checkpoint)["global_step"]))
        session.write_report()
    return session
