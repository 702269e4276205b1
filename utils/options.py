"""Options of a configuration, checked against the annotations of the parameters and fields that they are for.

The annotation of a parameter, ``batch_size: Annotated[int, Field(ge=1)]``, is the only definition of the allowed
values of its option. ``options_of`` reads the annotations of a function or class, ``check_section`` checks values with
pydantic, and ``requirement`` describes the allowed values for messages and help.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from utils.errors import InputError
from utils.old_keys import present_name

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
MISSING = "???"  # OmegaConf's mark of a mandatory value

Name = Annotated[str, Field(pattern="^[^\0]+$", description="a name or path")]
PathName = Annotated[str, Field(pattern="^[^\0]+$", description="a name or path", json_schema_extra={"format": "path"})]
Count = Annotated[int, Field(ge=1, le=10**9)]
NumImages = Annotated[int, Field(ge=1, le=10**6)]
ImageSize = Annotated[int, Field(ge=1, le=2**14)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


@dataclass(frozen=True)
class Option:
    """An option of a configuration.

    Attributes:
        annotation: type and bounds of its value.
        required: whether a configuration must have it.
        default: default value of the parameter in Python; ``inspect.Parameter.empty`` if there is none.
    """

    annotation: Any
    required: bool = True
    default: Any = inspect.Parameter.empty


def options_of(target: Callable[..., Any], leave_out: Collection[str] = ()) -> dict[str, Option]:
    """Read the options of a function, class or dataclass: its parameters by name, without those in ``leave_out``.

    A parameter that has a default may be missing in a configuration.
    """
    options = {}
    for name, parameter in inspect.signature(target, eval_str=True).parameters.items():
        if name in leave_out or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        options[name] = Option(annotation, parameter.default is parameter.empty, parameter.default)
    return options


def call_with(target: Callable[..., Any], given: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """Call a function or class with those of the arguments that it takes.

    Args:
        target: function or class.
        given: arguments that are no options, by name.
        values: values of options, those of other targets included.
    """
    names = inspect.signature(target).parameters
    return target(**{name: value for name, value in {**values, **given}.items() if name in names})


def one_of(known: Iterable[str]) -> Option:
    """Return the option whose values are the ``known`` names, such as those of a registry."""
    return Option(Literal.__getitem__(tuple(known)))


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation, config=STRICT)


@functools.cache
def _schema(annotation: Any) -> dict[str, Any]:
    return _adapter(annotation).json_schema()


def is_path(annotation: Any) -> bool:
    """Return whether an annotation is that of a path: ``PathName``, or ``PathName | None``."""
    schema = _schema(annotation)
    return any(part.get("format") == "path" for part in schema.get("anyOf", [schema]))


def requirement(annotation: Any) -> str:
    """Return a description of the allowed values, such as "an integer, at least 1, or null"."""
    return _description(_schema(annotation))


def _description(schema: Mapping[str, Any]) -> str:
    if "description" in schema:
        return schema["description"]
    if "anyOf" in schema:
        return ", or ".join(map(_description, schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = schema.get("type")
    if kind == "array":
        fewest, most = schema.get("minItems", 0), schema.get("maxItems")
        return f"a list of {fewest} to {most} values" if most is not None else "a list"
    kinds = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
    limits = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
    limits["exclusiveMaximum"] = "less than"
    bounds = [f"{text} {schema[name]:g}" for name, text in limits.items() if name in schema]
    return ", ".join([kinds.get(str(kind), "a name" if kind == "string" else "a value"), *bounds])


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Raise InputError, naming the ``key`` and the allowed values, unless ``annotation`` allows ``value``."""
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as error:
        schema = _schema(annotation)
        if schema.get("type") == "array":
            place = error.errors()[0]["loc"]
            if not isinstance(value, list | tuple):
                raise InputError(f"{key}={value}: need a list, such as [1, 2]") from None
            if place and "description" not in schema:
                value, schema = value[cast(int, place[0])], schema.get("items", {})
        names = _names(schema)
        if names and "description" not in schema:
            raise InputError(f"{key}={value}: known are {', '.join(names)}{did_you_mean(value, names)}") from None
        raise InputError(f"{key}={_shown(value)}: need {_description(schema)}") from None


def _names(schema: Mapping[str, Any]) -> list[str]:
    """Return the names that a schema allows, and null if it does; an empty list if it allows other values."""
    if "anyOf" in schema:
        parts = [_names(part) for part in schema["anyOf"]]
        return [name for part in parts for name in part] if all(parts) and parts[:-1] else []
    if schema.get("type") == "null":
        return ["null"]
    return schema.get("enum", [schema["const"]] if "const" in schema else []) if schema.get("type") == "string" else []


def _shown(value: Any) -> Any:
    return repr(value) if value == "" or (isinstance(value, str) and "\0" in value) else value


def check_name(key: str, value: Any, known: Iterable[str]) -> None:
    """Raise InputError, naming the ``key`` and the nearest name, unless ``value`` is one of the ``known`` names."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{key}={value}: known are {', '.join(known)}{did_you_mean(value, known)}")


def check_section(
    section: Any, options: Mapping[str, Option], name: str = "", foreign: Mapping[str, str] | None = None
) -> None:
    """Check the values of a section, and that it has no unknown key.

    Args:
        section: dictionary or DictConfig, with interpolations resolved.
        options: options of the section by name.
        name: name of the section, for errors; "" for the top level.
        foreign: {option: sentence} about options that the section would have with another choice, see ``elsewhere``.

    Raises:
        InputError: naming the first key at fault.
    """
    if not isinstance(section, Mapping | DictConfig):
        raise InputError(f"{name}={section}: need a section with {', '.join(options)}")
    values = plain(section) if isinstance(section, DictConfig) else section
    prefix = f"{name}." if name else ""
    for key in map(str, values):
        if key not in options:
            raise InputError(f"{prefix}{key}: no such option{_hint(prefix, key, options, foreign or {})}")
    for key, option in options.items():
        if key not in values and option.required:
            raise InputError(f"{prefix}{key} is missing")
        if key in values and isinstance(values[key], str) and values[key] == MISSING:
            raise InputError(f"{prefix}{key} is missing: say {prefix}{key}=...")
        if key in values:
            check_value(f"{prefix}{key}", values[key], option.annotation)


def _hint(prefix: str, key: str, options: Iterable[str], foreign: Mapping[str, str]) -> str:
    if now := present_name(f"{prefix}{key}"):
        return f"; it is now {now}"
    if key in foreign:
        return f"; {foreign[key]}"
    return did_you_mean(f"{prefix}{key}", (f"{prefix}{known}" for known in options))


def elsewhere(
    section: str, choices: Iterable[str], options: Callable[[str], Mapping[str, Option]], chosen: str
) -> dict[str, str]:
    """Return {option: sentence} for the options of other choices of a section that the ``chosen`` one does not have."""
    having: dict[str, list[str]] = {}
    for choice in choices:
        for key in options(choice).keys() - options(chosen).keys():
            having.setdefault(key, []).append(choice)
    return {
        key: f"{section}.{key} is an option of {section}={' and '.join(names)}, and this is {section}={chosen}"
        for key, names in having.items()
    }


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the nearest known name, or "" if none is near."""
    near = difflib.get_close_matches(str(name), [str(other) for other in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def plain(cfg: Any, resolve: bool = False) -> dict[str, Any]:
    """Convert a configuration to dictionaries, lists and plain values; interpolations stay unless ``resolve``."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of dictionaries to {"a.b": value}; an empty dictionary is a value."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return leaves
