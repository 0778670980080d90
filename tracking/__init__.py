"""Everything between a run and MLflow: the store, the logger, checkpoints and what they may say."""
