"""What a command prints: tables and sentences, or the API's JSON, or ids alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockd.domain.units import format_size

from .client import Resource
from .tables import Column, print_table
from .text import clean


@dataclass(frozen=True, slots=True)
class Output:
    """The choice of `--json`, `--quiet` and `--bytes`; JSON wins over quiet."""

    json: bool = False
    quiet: bool = False
    exact: bool = False

    @property
    def for_people(self) -> bool:
        """Neither JSON nor ids alone."""
        return not (self.json or self.quiet)

    def size(self, size_bytes: int) -> str:
        """A size as the person wants it."""
        return str(size_bytes) if self.exact else format_size(size_bytes)

    def value(self, value: Any, quiet: str) -> bool:
        """Print `value` as JSON, or `quiet`, if that was asked for; else return False."""
        if self.json:
            # ASCII: nothing in it can steer a terminal.
            print(json.dumps(value, indent=2))
        elif self.quiet:
            print(clean(quiet))
        return not self.for_people

    def resource(self, resource: Resource, sentence: str) -> None:
        """Print the outcome of a change."""
        if not self.value(resource, str(resource["id"])):
            print(sentence)

    def listing(self, items: Sequence[Resource], columns: Sequence[Column], key: str) -> None:
        """Print a list; `key` is the field that `--quiet` prints."""
        if self.json:
            print(json.dumps(items, indent=2))
        elif self.quiet:
            for item in items:
                print(clean(str(item[key])))
        else:
            print_table(columns, items)
