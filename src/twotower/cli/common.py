"""What several verbs need: values given with --set, what is said, and how a stop is told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.text import Text

from twotower.cli.show import console
from twotower.config.config import Config
from twotower.config.yaml_file import read_value


def load(config: Path, changes: Sequence[str]) -> Config:
    """The config with the values of `--set key=value`."""
    return Config.load(config, given(changes))


def given(changes: Sequence[str]) -> dict[str, Any]:
    """--set training.epochs=3 as {"training.epochs": 3}.

    Raises:
        ValueError: no equals sign.
    """
    found = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {change}: expected key=value, such as training.epochs=3.")
        try:
            found[key] = read_value(value)
        except ValueError as error:
            raise ValueError(f"--set {key}: {error}") from error
    return found


def written(config: Path, loaded: Config, changes: Sequence[str]) -> str:
    """The config for the run folder: an exact copy, or all keys where --set changed some."""
    return loaded.to_yaml() if changes else config.read_text(encoding="utf-8")


def say(text: str) -> None:
    """A stage begins."""
    console.print(Text.assemble(("· ", "dim"), text))  # names of columns and files may look like markup


@contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Ctrl-C leaves a word on how to go on, and exit code 130."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        console.print(Text(f"stopped; go on with: {command}"), soft_wrap=True)
        raise SystemExit(130) from error
