"""What is wrong with the words of a configuration, in one sentence instead of the parser's pages."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

_NOT_ACCEPTED = re.compile(r"Option '([\w.]+)' is not accepted")
_CLASS = re.compile(r"class_path '([\w.]+)'")
_UNKNOWN = re.compile(r"unrecognized arguments: (\S+)")
_ABSENT = re.compile(r"class_path '([\w.]+)':\s*No module named '([\w.]+)'")
_KEY = re.compile(r'Parser key "([\w.]+)":\s*(.*)', re.DOTALL)
_NOISE = re.compile(
    r"\s*Given value type:.*|Does not validate against any of the Union subtypes\s*Subtypes: .*?\n\s*Errors:"
    r"|- Expected a <class 'NoneType'>",
    re.DOTALL,
)


def explain(message: str, sections: Iterable[str]) -> str:
    r"""Return what the parser's message says, and what was probably meant.

    Args:
        message: The message.
        sections: Names at the top of a configuration.

    Examples:
        >>> explain("unrecognized arguments: --modle.width 3", ["model", "data"])
        "A configuration has no argument '--modle.width'. Did you mean '--model.width'?"
        >>> explain('Parser key "seed":\n  Expected an int. Got value: x', [])
        'seed: Expected an int. Got value: x.'
        >>> explain("Problem with given class_path 'mylab.nets.Foo': No module named 'mylab'", []).partition(".")[0]
        "There is no module 'mylab', which the class mylab"
    """
    if found := _UNKNOWN.search(message):
        return f"A configuration has no argument '{found[1]}'.{_meant(found[1], sections)}"
    if found := _ABSENT.search(message):
        return (
            f"There is no module '{found[2]}', which the class {found[1]} should come from. Classes of your own are "
            "looked for in the folder where the command is typed, and among what is installed."
        )
    if found := _NOT_ACCEPTED.search(message):
        owner = (_CLASS.findall(message[: found.start()]) or [""])[-1]
        return f"{owner or 'The configuration'} has no argument '{found[1]}'.{_closest(found[1], _arguments(owner))}"
    if found := _KEY.search(message):
        return f"{found[1]}: {_one_line(found[2])}."
    return _one_line(message)


def _meant(word: str, sections: Iterable[str]) -> str:
    """Return the word with its first name, or all of it, as it was probably meant."""
    first, dot, rest = word.removeprefix("--").partition(".")
    close = difflib.get_close_matches(first, list(sections), n=1)
    return f" Did you mean '--{close[0]}{dot}{rest}'?" if close and close[0] != first else ""


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _arguments(path: str) -> list[str]:
    """Return the names of the arguments of a class and of those it passes others on to."""
    module, _, name = path.rpartition(".")
    if not module:
        return []
    owner = getattr(importlib.import_module(module), name)
    bases = inspect.getmro(owner) if inspect.isclass(owner) else [owner]
    return list(dict.fromkeys(name for base in bases for name in inspect.signature(base).parameters if name != "self"))


def _one_line(text: str) -> str:
    return " ".join(_NOISE.sub("", text).split()).removeprefix("- ").rstrip(".")
