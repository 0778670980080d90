"""Networks, losses and the modules that train them; one module per task."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["BaseModule"],
        "classification": ["ClassificationModule"],
        "ledger": ["Ledger", "TransferError"],
        "regression": ["RegressionModule"],
        "transfer": ["Transfer"],
    },
)
