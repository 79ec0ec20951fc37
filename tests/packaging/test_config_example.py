"""`etc/blockd.toml` loads as it is, and shows every option with its default."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from blockd.config import Config, ThickClassSection, ThinClassSection, read_config

EXAMPLE = Path(__file__).resolve().parents[2] / "etc" / "blockd.toml"

#: Options that are tables of their own, optional ones included, and what is in them.
TABLES: dict[str, type[BaseModel]] = {
    name: model
    for name, field in Config.model_fields.items()
    for model in (field.annotation, *get_args(field.annotation))
    if isinstance(model, type) and issubclass(model, BaseModel) and name != "classes"
} | {"classes.sbs": ThinClassSection, "classes.bssd": ThickClassSection}


def uncommented() -> dict[str, Any]:
    """The file as if every option in a comment (`#name = value`, no space) were in force."""
    option_or_table = r"^#(?=[a-z_]+ = |\[[a-z_.]+\]$)"
    text = re.sub(option_or_table, "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    # The block of a further project cannot stand beside the empty list that is the default.
    return tomllib.loads(re.sub(r'^(id|name) = "(3333|cont).*\n', "", text, flags=re.MULTILINE))


def table(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: Any = document
    for part in name.split(".") if name else []:
        found = found.get(part, {})
    assert isinstance(found, dict)
    return found


def options() -> list[tuple[str, str]]:
    """(table, option) for every option of the models."""
    top = [("", name) for name in Config.model_fields if name not in {*TABLES, "classes"}]
    return top + [(name, option) for name, model in TABLES.items() for option in model.model_fields]


def test_example_loads_as_it_is() -> None:
    config = read_config(EXAMPLE)
    assert config.first_class == "sbs"
    assert get_args(ThinClassSection.model_fields["kind"].annotation) == ("thin",)
    assert get_args(ThickClassSection.model_fields["kind"].annotation) == ("thick",)


@pytest.mark.parametrize(("section", "option"), options())
def test_example_shows_every_option_with_its_default(section: str, option: str) -> None:
    shown = table(uncommented(), section)
    assert option in shown, f"[{section}] {option} is not in {EXAMPLE.name}"
    model = TABLES.get(section, Config)
    field = model.model_fields[option]
    if field.default is PydanticUndefined or field.default is None:
        return  # required, or worked out from the rest
    whole = {key: value for key, value in shown.items() if key in model.model_fields}
    assert getattr(model.model_validate(whole), option) == field.default


def test_example_shows_nothing_that_is_no_option() -> None:
    document = uncommented()
    assert set(document) <= set(Config.model_fields)
    for name, model in TABLES.items():
        assert set(table(document, name)) <= set(model.model_fields), name


def test_example_says_of_each_option_why() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    for before, line in pairwise(lines):
        if re.match(r"#?[a-z_]+ = ", line) and not line.startswith(("#id", "#name")):
            assert before.startswith("# "), f"no comment above: {line}"
