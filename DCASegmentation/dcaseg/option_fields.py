"""Fields of dataclasses that are options or come from JSON: one definition of default, limits, help and earlier names.

The command line makes its options from these fields (``cli.field_options``), and ``json_io.load`` checks JSON against
them. The type of an option is that of its field; ``Literal`` lists its choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from functools import cache
from typing import Any, get_type_hints

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What a field states in addition to its type and default.

    - ``help``: the text on the help page. ``off``: the text of the flag that turns an option off which is on.
    - ``flags``: names on the command line; without them, the name of the field.
    - ``minimum``, ``maximum`` (inclusive), ``above``, ``below`` (exclusive): limits of the number, or of each number of
      a list.
    - ``choices``: the values offered on the command line, where these are fewer than the type allows.
    - ``key``: the key in JSON, if it differs from the field's name. ``earlier``: keys that earlier versions wrote.
    """

    help: str = ""
    off: str = ""
    flags: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    key: str = ""
    earlier: tuple[str, ...] = ()

    def allows(self, number: float) -> bool:
        """Whether ``number`` is within the limits."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    @property
    def limits(self) -> str:
        """The limits in words, such as "from 0 to below 1" or "of at least 1"; empty without limits."""
        low, high = self.minimum, self.maximum
        if low is not None and high is not None:
            return f"from {low:g} to {high:g}"
        if low is not None:
            return f"from {low:g} to below {self.below:g}" if self.below is not None else f"of at least {low:g}"
        if self.above is not None:
            return f"above {self.above:g}" + (f" and up to {high:g}" if high is not None else "")
        return "" if high is None else f"of at most {high:g}"


def option(default: Any, help: str = "", **more: Any) -> Any:
    """A field of a dataclass with this default and the attributes of ``Option``."""
    return field(default=default, metadata=make_option_metadata(help, **more))


def make_option_metadata(help: str = "", **more: Any) -> Mapping[str, Option]:
    """The attributes of ``Option`` as the metadata of a field: ``field(metadata=stated(key="rank"))``."""
    return {_KEY: Option(help, **more)}


def get_option(item: Field[Any]) -> Option:
    """What the field ``item`` states about its option."""
    found: Option = item.metadata.get(_KEY, Option())
    return found


@cache
def resolve_type_hints(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass, with names resolved."""
    return get_type_hints(kind)
