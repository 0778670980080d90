"""Ground-truth cohorts: one module per study, listed so that a command line can name them without importing any."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


class PhantomError(ValueError):
    """A phantom cohort cannot be made as asked; the message says what, where and what to do."""


@dataclass(frozen=True)
class Phantom:
    """One study's generator, imported only when it runs.

    Args:
        name: What a user types after `fontanel make-cohort`.
        summary: What it makes, in one line.
        module: The module that holds the generator.
        generator: Name of the class in the module; its instances have `write(folder, ...)`.
    """

    name: str
    summary: str
    module: str
    generator: str

    def load(self) -> type:
        """Import the module and return the generator's class."""
        module: ModuleType = import_module(self.module)
        loaded: type = getattr(module, self.generator)
        return loaded


PHANTOMS: dict[str, Phantom] = {
    phantom.name: phantom
    for phantom in (
        Phantom(
            "brain-age",
            "T1-like whole heads from 0 to 97 years at several sites, with a hidden brain-age gap",
            "datamodules.phantoms.brain_age",
            "BrainAgePhantom",
        ),
        Phantom(
            "hie-outcome",
            "ADC of newborns after hypoxia-ischaemia at several sites, with an outcome of known probability",
            "datamodules.phantoms.hie_outcome",
            "HIEOutcomePhantom",
        ),
    )
}
