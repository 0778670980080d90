"""The front door of the command line: find the verb, and import nothing heavy before it runs."""

import argparse
import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol, cast

from experiments.memory import keep_freed_memory

VERBS = {
    "quickstart": "Tell the whole story in small, on phantoms: pretrain, compare with scratch across sites, report.",
    "table": "Write the cohort table of a folder: BIDS, nnU-Net, MONAI, BONBID, or a pattern of file names.",
    "make-cohort": "Write a phantom cohort with known ground truth.",
    "verify": "Check every file of a cohort table and write its manifest; or check a pack.",
    "preview": "Show every image of a cohort on one page, what stands out first.",
    "fit": "Train a model from a configuration file.",
    "plan": "Say what a comparison can show with so many participants, and what it costs.",
    "crossval": "Compare arms on identical, frozen test participants, across sites and seeds.",
    "sweep": "Search for the best arguments of a training or a cross-validation, on one machine or many.",
    "best": "Print the best configuration that a sweep has found.",
    "promote": "Register the model of a run under a name and an alias.",
    "pack": "Write a model into one file that another hospital can use without your table, store or names.",
    "compare": "Test what one run or table gains over another, on the participants they share.",
    "audit": "Look for leakage: shared participants, duplicates, site and label confounded.",
    "validate": "Evaluate a run or a configuration on the validation part.",
    "test": "Evaluate a run or a configuration on held-out participants and sites.",
    "predict": "Predict new images, with or without labels, from a run, a checkpoint or a pack.",
    "evaluate": "Compute metrics with intervals from a predictions table of any software.",
    "saliency": "Show which parts of the images a run's predictions rest on.",
    "report": "Write report.html for a run, a cross-validation, or a predictions table.",
    "job": "Run one job of a cross-validation; launchers do.",
    "sync": "Deliver to the store what runs have left on this machine while it was away.",
    "cache": "Show, check, limit or clear the cache of preprocessed volumes.",
    "ui": "Open the MLflow UI on the store.",
    "serve": "Serve MLflow to a team, with a password.",
    "doctor": "Check store, cache, memory, devices and numerics; settle runs that a crash left behind.",
}
PACKAGES = ("datamodules", "evaluation", "experiments", "lightning_modules", "tracking")
DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class Verb(Protocol):
    """What a module in `experiments` offers to the front door."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `fontanel`; those of the process by default.

    Returns:
        0 done, 1 the input or the result is bad, 2 wrong usage, 130 interrupted.
    """
    warnings.formatwarning = format_warning
    if argv is None:
        # The processes that this one starts do not look for modules where it was typed: `experiments` may be there.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in {"-h", "--help"}:
        print(overview())
        return DONE if words else WRONG_USAGE
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("fontanel"))
        return DONE
    name = words[0]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return complain(f"there is no verb '{name}'.{hint} 'fontanel --help' lists them.", WRONG_USAGE)
    return run_verb(name, words[1:], debug=debug)


def overview() -> str:
    """Return the text of `fontanel --help`."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: fontanel VERB [arguments] [--debug]",
            "",
            "Transfer learning for clinical neuroimaging, tracked, and proven across sites.",
            "",
            *lines,
            "",
            "'fontanel VERB --help' explains a verb; --debug shows tracebacks; --version prints the version.",
            "Start with: fontanel quickstart",
        ]
    )


def run_verb(name: str, words: Sequence[str], *, debug: bool) -> int:
    """Import a verb's module, parse its words and run it; errors become one paragraph unless `debug`."""
    verb = cast(Verb, importlib.import_module(f"experiments.{name.replace('-', '_')}"))
    parser = argparse.ArgumentParser(
        prog=f"fontanel {name}",
        description=VERBS[name],
        epilog=verb.__doc__ and verb.__doc__.partition("\n")[2].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    passes_on = getattr(verb, "PASSES_ON", False)
    try:
        if passes_on:
            own, rest = separate(parser, words)
            arguments = parser.parse_args(own, argparse.Namespace(rest=rest, words=list(words)))
        else:
            arguments = parser.parse_args(words)
        keep_freed_memory()
        return verb.run(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else (DONE if stop.code is None else complain(stop.code, FAILED))
    except KeyboardInterrupt:
        return complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away; there is nobody to tell
        return FAILED
    except Exception as error:
        if debug:
            raise
        return complain(describe(error), getattr(error, "exit_code", FAILED))


def separate(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into those of the verb's parser and those of the configuration, such as `--data.table x`."""
    own: list[str] = []
    rest: list[str] = []
    known = parser._option_string_actions
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word.partition("=")[0] in known:
            own.append(word)
            continue
        rest.append(word)
        if "=" not in word and waiting and not waiting[0].startswith("--"):
            rest.append(waiting.pop(0))
    return own, rest


def describe(error: Exception) -> str:
    """Say what went wrong; an error that is not one of ours is called what it is."""
    own: BaseException | None = error
    while own is not None:  # the parser of configurations wraps what a class of ours has raised
        if type(own).__module__.split(".")[0] in PACKAGES:
            return str(own)
        own = own.__cause__
    if isinstance(error, OSError):
        return str(error)
    return f"{type(error).__name__}: {error}\nThis was not expected. Repeat with --debug to see where it happened."


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return one of our own warnings as one paragraph, and any other with the place it is from."""
    if category.__module__.split(".")[0] in PACKAGES:
        return f"fontanel: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def complain(message: str, code: int) -> int:
    """Print an error to standard error and return the exit code."""
    rank = os.environ.get("RANK", "0")  # of several processes of one training, each speaks for itself
    sys.stderr.write(f"fontanel{'' if rank == '0' else f' (process {rank})'}: error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
