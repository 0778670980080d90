"""The space that a sweep searches: dotted arguments of a fit file, each with its range or its choices.

space:
model.optimizer.lr: {low: 1e-5, high: 1e-2, log: true}
model.network.width: {low: 8, high: 32, step: 8}           # whole numbers, where all are
model.transfer.strategy: {choices: [full, discriminative]}
model.transfer.encoder_rate: {low: 0.03, high: 1.0, log: true, when: {model.transfer.strategy: discriminative}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from experiments.runtime import ConfigurationError, FontanelCLI
from experiments.study import as_word, as_words, closest
from experiments.usage import explain
from tracking.params import flatten_params

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

KEYS = ("low", "high", "step", "log", "choices", "when")


@dataclass(frozen=True)
class Parameter:
    """One argument that a sweep chooses.

    Args:
        name: Its dotted name; `.init_args` may be left out.
        low: Smallest value of a range.
        high: Largest value of a range.
        step: Distance between two values of a range; any value by default, 1 of whole numbers.
        log: Whether the logarithm is uniform.
        choices: The values to choose from, in the place of a range.
        when: It is chosen only where these arguments, which stand before it, have one of these values.

    Examples:
        >>> Parameter.read("model.optimizer.lr", {"low": "1e-5", "high": "1e-2", "log": True}).low
        1e-05
        >>> Parameter.read("model.network.width", {"low": 8, "high": 32, "step": 8}).is_integer
        True
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, content: Any) -> "Parameter":  # noqa: ANN401 - YAML
        """Make a parameter of its entry in a sweep file.

        Raises:
            ConfigurationError: The entry is no range and no list of choices; says what is wrong.
        """
        if not isinstance(content, Mapping):
            raise _wrong(name, "is neither {low: A, high: B} nor {choices: [A, B]}")
        for key in content:
            if key not in KEYS:
                raise _wrong(name, f"has the key '{key}'.{closest(str(key), KEYS)}")
        when = {str(other): _listed(values) for other, values in (content.get("when") or {}).items()}
        if "choices" in content:
            choices = _listed(content["choices"])
            if len(choices) < 2 or any(key in content for key in ("low", "high", "step", "log")):
                raise _wrong(name, "has choices: give two or more, and neither range, step nor log")
            return cls(name, choices=choices, when=when)
        low, high = (_number(name, key, content.get(key)) for key in ("low", "high"))
        step = None if content.get("step") is None else _number(name, "step", content["step"])
        log = bool(content.get("log", False))
        if not low < high:
            raise _wrong(name, f"has the range {low} to {high}, which does not rise")
        if log and (low <= 0 or step is not None):
            raise _wrong(name, "has log: true: give a range above 0, and no step")
        if step is not None and step <= 0:
            raise _wrong(name, f"has the step {step}, which is not above 0")
        return cls(name, low, high, step, log, when=when)

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers."""
        return not self.choices and all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Say whether it is to be chosen, from what was chosen before it."""
        return all(other in chosen and chosen[other] in values for other, values in self.when.items())

    def suggest(self, trial: "BaseTrial") -> Any:  # noqa: ANN401 - a value of YAML
        """Return the value that a trial takes."""
        if self.choices:
            words = [as_word(choice) for choice in self.choices]  # a storage takes no lists
            return self.choices[words.index(trial.suggest_categorical(self.name, words))]
        if self.is_integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that a configuration must take: every choice, or both ends of a range."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """What a sweep chooses, in order.

    Args:
        parameters: One for each argument; a condition names one that stands before.
    """

    parameters: tuple[Parameter, ...]

    @classmethod
    def read(cls, content: Any) -> "Space":  # noqa: ANN401 - YAML
        """Make the space of the entry `space` of a sweep file.

        Raises:
            ConfigurationError: An entry is wrong, or a condition names no argument that stands before it.
        """
        if not isinstance(content, Mapping) or not content:
            raise ConfigurationError(
                "`space` names no argument. List some, such as model.optimizer.lr: {low: 1e-4, high: 1e-2}."
            )
        parameters = tuple(Parameter.read(str(name), entry) for name, entry in content.items())
        known: dict[str, Parameter] = {}
        for one in parameters:
            for other, values in one.when.items():
                if other not in known:
                    raise _wrong(
                        one.name, f"depends on '{other}', which does not stand before it.{closest(other, known)}"
                    )
                if known[other].choices and not set(map(as_word, values)) <= set(map(as_word, known[other].choices)):
                    raise _wrong(
                        one.name, f"depends on a value that {other} never has: {', '.join(map(as_word, values))}"
                    )
            known[one.name] = one
        return cls(parameters)

    def suggest(self, trial: "BaseTrial") -> dict[str, Any]:
        """Return the value of every argument that a trial has, by dotted name."""
        chosen: dict[str, Any] = {}
        for one in self.parameters:
            if one.applies(chosen):
                chosen[one.name] = one.suggest(trial)
        return chosen

    def require_arguments(self, words: Sequence[str]) -> None:
        """Refuse what a configuration would not take, before anything is trained.

        Args:
            words: Words of the configuration that the sweep starts from.

        Raises:
            ConfigurationError: An argument does not exist, or one of its values is refused.
        """
        known = flatten_params(yaml.safe_load(FontanelCLI(words).resolved()))
        unconditional = [one.name for one in self.parameters if not one.when]
        for name in unconditional:
            short = name.replace(".init_args", "")
            if short not in known and not any(other.startswith(f"{short}.") for other in known):
                raise ConfigurationError(f"The configuration has no argument '{name}'.{_hint(short, known)}")
        for chosen in self._corners():
            try:
                FontanelCLI([*words, *as_words(chosen)])
            except (SystemExit, ValueError) as error:
                shown = ", ".join(f"{name} = {as_word(value)}" for name, value in chosen.items())
                raise ConfigurationError(
                    f"The configuration does not take {shown}: {explain(str(error), ())}"
                ) from error

    def _corners(self) -> list[dict[str, Any]]:
        """Return a few choices that together hold every example of every argument."""
        corners = [self._corner(number, {}) for number in range(max(len(one.examples) for one in self.parameters))]
        for one in self.parameters:
            if not any(one.name in corner for corner in corners):
                wanted = {other: values[0] for other, values in one.when.items()}
                corners += [self._corner(number, wanted) for number in range(len(one.examples))]
        return corners

    def _corner(self, number: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for one in self.parameters:
            if one.applies(chosen):
                chosen[one.name] = wanted.get(one.name, one.examples[number % len(one.examples)])
        return chosen


def _listed(values: Any) -> tuple[Any, ...]:  # noqa: ANN401 - YAML
    return tuple(values) if isinstance(values, list) else (values,)


def _number(name: str, key: str, value: Any) -> float:  # noqa: ANN401 - YAML
    """Return a number of YAML, whose 1.1 takes 1e-5 for a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _wrong(name, f"has no number {key}")
    try:
        return value if isinstance(value, int) else float(value)
    except ValueError:
        raise _wrong(name, f"has no number {key}: '{value}'") from None


def _hint(name: str, known: Mapping[str, object]) -> str:
    return closest(name, known).split(" There are")[0]


def _wrong(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"The argument {name} of `space` {what}.")
