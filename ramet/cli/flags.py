"""Launch flags, their help and their documentation page, all made from the fields of the config dataclasses."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from ramet.cli.foreign_flags import advice_for
from ramet.errors import ConfigError
from ramet.runtime.config import compose, says_auto


@dataclass(frozen=True, slots=True)
class Flag:
    """One launch flag: where it is declared, and the field behind it."""

    section: type[Any]
    field: Field[Any]
    type: Any

    @property
    def names(self) -> tuple[str, ...]:
        return tuple("--" + name.replace("_", "-") for name in (self.field.name, *self.field.metadata["aliases"]))

    @property
    def help(self) -> str:
        instead = self.field.metadata["instead"]
        text = str(self.field.metadata["help"])
        return f"{text} (not available yet: {instead})" if instead else text

    @property
    def default(self) -> str:
        if self.field.default is None:
            return "auto" if says_auto(self.field) else "not set"
        return str(self.field.default)


class FlagParser(argparse.ArgumentParser):
    """Exact flags only; every complaint is a `ConfigError`, and an unknown flag lists the near ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def parse_known(self, arguments: Sequence[str]) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(arguments)
        for word in unknown:
            raise ConfigError(f"unknown argument '{word}'{self._hint(word)}")
        return namespace

    def _hint(self, word: str) -> str:
        known = [name for action in self._actions if action.help != argparse.SUPPRESS for name in action.option_strings]
        if (advice := advice_for(word)) is not None:
            return f"; {advice}"
        if not word.startswith("-"):
            return f"; a model is named by --model-path {word}" if "--model-path" in known else ""
        near = get_close_matches(word.split("=")[0], known, n=3, cutoff=0.6)
        return f"; near ones: {', '.join(near)}" if near else ""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse_config(config_class: type[Any], arguments: Sequence[str], *, program: str, description: str) -> Any:
    """Command line → `config_class`. `--config file.yaml` gives values that flags on the command line override."""
    parser = flag_parser(config_class, program=program, description=description)
    return config_of(config_class, {}, vars(parser.parse_known(arguments)))


def config_of(config_class: type[Any], defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """`defaults`, overridden by the file that `given["config"]` names, overridden by the flags that were `given`."""
    flags = dict(given)
    path = flags.pop("config", None)
    return compose(config_class, {**defaults, **(read_yaml(Path(path)) if path else {}), **flags})


def flag_parser(config_class: type[Any], *, program: str, description: str, arguments: str = "") -> FlagParser:
    """A parser whose namespace holds only the flags that were given. The usage names none of them: they are listed below it, in groups."""
    usage = f"{program} [options]{arguments}"
    parser = FlagParser(prog=program, usage=usage, description=description, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; the command line overrides it")
    groups: dict[type[Any], argparse._ArgumentGroup] = {}
    for flag in flags_of(config_class):
        if flag.section not in groups:
            groups[flag.section] = parser.add_argument_group(section_title(flag.section), (flag.section.__doc__ or "").strip())
        _add_flag(groups[flag.section], flag)
    return parser


def flags_of(config_class: type[Any]) -> Iterator[Flag]:
    """Every flag, in order of declaration."""
    hints = get_type_hints(config_class)
    for part in fields(config_class):
        if "help" in part.metadata:
            yield Flag(config_class, part, hints[part.name])
        else:
            yield from flags_of(type(part.default))


def section_title(section: type[Any]) -> str:
    return section.__name__.removesuffix("Config").lower()


def read_yaml(path: Path) -> dict[str, Any]:
    """Flat flag names and values; the names are checked where they are used."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected 'flag: value' lines, found {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def flags_markdown(config_class: type[Any]) -> str:
    """The page docs/flags.md."""
    lines = ["# Launch flags", "", "Generated from `ramet/runtime/config.py` by `ramet serve --help-markdown`; do not edit.", ""]
    lines += [
        "`--no-FLAG` turns a switch off, also one that a `--config` file turns on; `auto` may be written where it is the default.",
        "",
    ]
    section: type[Any] | None = None
    for flag in flags_of(config_class):
        if flag.section is not section:
            section = flag.section
            lines += ["", f"## {section_title(section)}", "", (section.__doc__ or "").strip(), "", "| flag | default | meaning |"]
            lines += ["|---|---|---|"]
        names = ", ".join(f"`{name}`" for name in flag.names)
        choices = flag.field.metadata["choices"]
        allowed = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        lines.append(f"| {names} | `{flag.default}` | {flag.help}.{allowed} |")
    return "\n".join(lines) + "\n"


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    default = f" (default: {flag.default})"
    text = (flag.help + default).replace("%", "%%")
    base = _base_type(flag.type)
    if base is bool:
        action = argparse.BooleanOptionalAction if flag.field.default else "store_true"
        group.add_argument(*flag.names, dest=flag.field.name, action=action, default=argparse.SUPPRESS, help=text)
        if not flag.field.default:  # not shown: it says the default, over a --config file that says otherwise
            off = [f"--no-{name[2:]}" for name in flag.names]
            group.add_argument(*off, dest=flag.field.name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    elif get_origin(base) is tuple:
        group.add_argument(*flag.names, dest=flag.field.name, nargs="+", action=_Tuple, type=_reader(flag, get_args(base)[0]), help=text)
    else:
        choices = flag.field.metadata["choices"]
        metavar = "{" + ",".join(choices) + "}" if choices else base.__name__.upper()
        group.add_argument(*flag.names, dest=flag.field.name, type=_reader(flag, base), metavar=metavar, help=text)


def _reader(flag: Flag, base: Any) -> Any:
    """`base`, which leaves the word auto as it is where it is the default."""
    if not says_auto(flag.field) or base is str:
        return base

    def read(word: str) -> Any:
        return word if word == "auto" else base(word)

    read.__name__ = base.__name__  # what argparse calls it
    return read


class _Tuple(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, "auto" if values == ["auto"] else tuple(values))


def _base_type(hint: Any) -> Any:
    """`int | None` → `int`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint
