"""Annotations of a parameter's type, as in ``Annotated[float, WithinRange(0, 1), Default(0.5)]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Default:
    value: Any


@dataclass
class Decimals:
    value: int


@dataclass
class SingleStep:
    value: float


@dataclass
class WithinRange:
    minimum: float
    maximum: float

    def check(self, value: float) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")

    def nearest(self) -> float:
        return min(max(0, self.minimum), self.maximum)


@dataclass
class Minimum:
    minimum: float

    def check(self, value: float) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


@dataclass
class Maximum:
    maximum: float

    def check(self, value: float) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


@dataclass
class Choice:
    choices: list[Any]

    def check(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"Value must be one of {self.choices}, is {value}")

    def nearest(self) -> Any:
        return self.choices[0]


@dataclass
class Exclude:
    excluded: list[Any]

    def check(self, value: Any) -> None:
        if value in self.excluded:
            raise ValueError(f"Value must not be {value}")
