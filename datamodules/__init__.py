"""From a cohort table to batches: verify, split, preprocess once, cache, batch, augment on the device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "augmentation": ["Augmentation"],
        "base": ["BaseDataModule"],
        "brain_age": ["BrainAgeDataModule"],
        "hie_outcome": ["HIEOutcomeDataModule"],
        "preprocessing": ["Preprocessing"],
    },
)
