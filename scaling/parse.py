"""Strict parsing of external input (JSON and declarations), done once; every problem is reported as one line."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic.dataclasses
import pydantic_core
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from scaling.errors import UserError

CONFIG = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


class Strict(BaseModel):
    """A record whose fields are all required and strictly typed; extra fields and non-finite numbers are rejected."""

    model_config = CONFIG


def _not_negative(value: float) -> float:
    if value < 0:  # False for NaN
        raise ValueError("must be 0 or more")
    return value


MaybeNaN = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]
"""A number that JSON writes as null where it is NaN, for fields that allow NaN."""
Amount = Annotated[MaybeNaN, AfterValidator(_not_negative)]
"""The same, 0 or more."""
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**48)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=100)]

Record = TypeVar("Record")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def declared(cls: type[Record]) -> type[Record]:
    """A frozen, keyword-only dataclass with slots, whose fields are validated on construction.

    Types are strict: an integer is accepted for a `float`, but True is not a number and a list is not a tuple; numbers
    must be finite. An invalid value raises a one-line `UserError` with class, field, value, and what is expected.
    """
    made: type[Any] = pydantic.dataclasses.dataclass(kw_only=True, slots=True, config=CONFIG)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def __init__(self: Any, *values: Any, **fields: Any) -> None:  # noqa: N807
        try:
            checked(self, *values, **fields)
        except ValidationError as error:
            raise _mistake(made.__name__, error) from error
        for name, given in fields.items():
            object.__setattr__(self, name, _as_given(given, getattr(self, name)))

    made.__init__ = __init__
    return made


def _as_given(given: Any, checked: Any) -> Any:
    """Keep an integer given for a float: a study's fingerprint hashes the values as its module gives them."""
    if type(given) is tuple:
        return tuple(map(_as_given, given, checked))
    return given if type(given) is int else checked


def _mistake(name: str, error: ValidationError) -> UserError:
    """The error for an invalid declaration; the class's own rules bring their own message."""
    first, *others = error.errors(include_url=False)
    own = first.get("ctx", {}).get("error")
    if isinstance(own, UserError):
        return own
    field, *below = first["loc"] or (None,)
    place = "".join([name, f".{field}" if isinstance(field, str) else "", *(f"[{k}]" for k in below if type(k) is int)])
    if first["type"] == "missing":
        return UserError(f"{place}: must be given")
    # A union gives one error for each of its members.
    of_union = [other for other in others if other["loc"][0] == field] if below and isinstance(below[0], str) else []
    expected = " or ".join([first["msg"], *(other["msg"].removeprefix("Input should be ") for other in of_union)])
    return UserError(f"{place} = {_short(first['input'])}: {expected.replace('Input should', 'must', 1)}")


def parse_object(content: bytes | str, place: str, remedy: str) -> dict[str, Any]:
    """Parse a JSON object into plain values.

    Args:
        content: The text.
        place: The file, for the message.
        remedy: What to do if it cannot be used, for the message.

    Raises:
        UserError: It is not JSON, is nested too deeply, or is not an object.
    """
    try:
        found = pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{place}: cannot be read as JSON ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{place}: expected a JSON object, found {_short(found)}: {remedy}")
    return found


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def parse(record: type[Record], fields: dict[str, Any], place: str, remedy: str) -> Record:
    """Validate plain JSON values as a record: a `Strict`, or a dataclass, which is validated as strictly.

    Raises:
        UserError: Names the field, what was found and what was expected.
    """
    try:
        # JSON rules: a list is accepted for a tuple, a number is not accepted for a string.
        content = pydantic_core.to_json(fields, inf_nan_mode="null")  # 1e999, for example, parses as infinity
        return _adapter(record).validate_json(content, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        found = "" if first["type"] == "missing" else f", found {_short(first['input'])}"
        raise UserError(f"{place}: {where}: {first['msg']}{found}: {remedy}") from error


def _short(value: object) -> str:
    try:
        text = " ".join(repr(value)[:200].split())
    except ValueError:  # repr of an integer with thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
