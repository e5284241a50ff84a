"""The door for JSON from outside: parsed once, strictly, into typed records; what is wrong is one line."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from scaling.errors import UserError


class Strict(BaseModel):
    """A record whose fields must all be there, of exactly their type, and no other; finite numbers only."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )


MaybeNaN = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]
"""A number that JSON writes as null where it is NaN. For a field that is declared to allow NaN."""

Record = TypeVar("Record", bound=Strict)


def parse_object(content: bytes, place: str, remedy: str) -> dict[str, Any]:
    """A JSON object as plain values.

    Args:
        content: The text.
        place: The file, for the message.
        remedy: What to do where it cannot be used, for the message.

    Raises:
        UserError: It is not JSON, nested too deeply, or not an object.
    """
    try:
        found = pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{place}: cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{place}: expected a JSON object, found {_short(found)}: {remedy}")
    return found


def parse(record: type[Record], fields: dict[str, Any], place: str, remedy: str) -> Record:
    """Plain JSON values as a record.

    Raises:
        UserError: naming the field, what was found and what was expected.
    """
    try:
        # JSON's rules: a list for a tuple, no number for a text.
        return record.model_validate_json(pydantic_core.to_json(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        found = "" if first["type"] == "missing" else f", found {_short(first['input'])}"
        raise UserError(f"{place}: {where}: {first['msg']}{found}: {remedy}") from error


def _short(value: object) -> str:
    text = " ".join(repr(value)[:200].split())
    return text if len(text) <= 60 else text[:57] + "..."
