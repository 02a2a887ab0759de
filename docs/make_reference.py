"""Write docs/reference.md from the docstrings of the public names. Run it after changing one."""

import inspect
import re
from pathlib import Path

import twotower as tt

PAGE = Path(__file__).parent / "reference.md"
HEAD = "# Reference\n\nEvery public name, from its docstring. Written by `python docs/make_reference.py`.\n"


def reference() -> str:
    """The page as text."""
    return HEAD + "".join(_entry(name, getattr(tt, name)) for name in sorted(tt.__all__, key=str.lower))


def _entry(name: str, thing: object) -> str:
    if name == "TwoTowerModel":
        return "\n## TwoTowerModel\n\nThe same as TwoTowerModelV2.\n"
    text = f"\n## {name}\n\n{_signature(name, thing)}{_doc(thing)}"
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            function = value.__func__ if isinstance(value, classmethod) else value
            if member[0] != "_" and inspect.isfunction(function) and function.__doc__:
                text += f"\n### {name}.{member}\n\n{_signature(f'{name}.{member}', function)}{_doc(function)}"
    return text


def _signature(name: str, thing: object) -> str:
    try:
        parameters = inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    shown = [str(p.replace(annotation=p.empty)) for p in parameters if p.name != "self"]
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", f"`{name}({', '.join(shown)})`\n\n")


def _doc(thing: object) -> str:
    return f"```text\n{inspect.getdoc(thing)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference())
