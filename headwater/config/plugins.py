"""Kinds that installed packages bring, by Python entry points: :func:`installed`, :class:`open_to`.

A package names its settings class in the group of a family, such as ``headwater.rules``, under the kind that
a file says. Nothing else is ever looked at: no path, no module and no code comes from a file or a network,
only a kind, which is looked up among the entry points of packages that this machine's owner installed.

Built-in kinds are looked up nowhere and import no package; a package cannot take the name of one. Nothing
here imports torch, and a settings class should not either: it says where its work is done as
``implementation = "module:name"``, which is imported when it is first used.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import Field, GetCoreSchemaHandler, field_validator
from pydantic_core import PydanticCustomError, core_schema

from headwater.config.settings import Settings
from headwater.config.traits import Pluggable
from headwater.errors import ConfigError, HeadwaterError, MissingDependency

FAMILIES: Mapping[str, str] = {
    "rules": "strategy",
    "codecs": "codec.up",
    "trainers": "training",
    "adapter_kinds": "adapter",
    "tasks": "data",
    "trackers": "trackers",
}
"""For each family the table of the federation file that names its kinds; its group is ``headwater.NAME``."""
LISTS = frozenset({"trackers"})
"""The families of which a file names several kinds: their table is a list."""
INSTALLED = "(installed)"
"""The tag of every kind of a package in a pydantic union; no file can say it."""
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99} [A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}")
"""What may stand in a kind and in a release: a server names both, and owners' logs show them."""
Found = TypeVar("Found", bound=Pluggable)


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point of an installed package.

    Args:
        family: a key of :data:`FAMILIES`.
        kind: the name of the entry point.
        package, version: of the distribution.
        settings: its settings class, as ``module:name``.
        folder: where the package is installed.
    """

    family: str
    kind: str
    package: str
    version: str
    settings: str
    folder: str

    @property
    def name(self) -> str:
        """As owners allow it: ``rules:clipped-mean``."""
        return f"{self.family}:{self.kind}"

    @property
    def release(self) -> str:
        """What is installed: ``headwater-clipped-mean 1.0``."""
        return f"{self.package} {self.version}"


class PluginMissing(MissingDependency):
    """A package whose kind a federation uses is not installed here, or in another version.

    Attributes:
        number: of the package among the federation's ``[plugins]``, from 1; 0 where it is not known.
    """

    number = 0


class PluginNotAllowed(ConfigError):
    """A package's kind that the owner of this machine does not allow.

    Attributes:
        number: as in :class:`PluginMissing`.
    """

    number = 0


class AllowedPlugins(Settings):
    """``[plugins]`` of ``server.toml`` and ``agent.toml``: what of installed packages may run here."""

    allow: list[str] = Field(
        default=[], description='kinds of installed packages that may run here, such as "rules:NAME"'
    )

    @field_validator("allow")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for name in value:
            _split(name)
        return value


AGENT_ALLOWS, SERVER_ALLOWS = "[plugins] allow of agent.toml", "[plugins] allow of server.toml"


class _Allowed:
    """What this process may import. Everything installed, until its owner's file says less."""

    names: frozenset[str] | None = None
    where: str = ""


_FOUND: dict[tuple[str, str], Plugin] = {}


def allow_only(names: Iterable[str] | None, where: str = "") -> None:
    """From now on this process uses no kinds of packages but these; None allows all that are installed.

    Args:
        names: such as ``rules:clipped-mean``.
        where: the file and key that say so, for people.
    """
    _Allowed.names = None if names is None else frozenset(names)
    _Allowed.where = where


def installed() -> tuple[Plugin, ...]:
    """All kinds that the packages of this Python bring, by family and name. Imports none of them."""
    return tuple(plugin for family in FAMILIES for plugin in _points(family))


def find(family: str, kind: str) -> Plugin | None:
    """The package's kind of this name, or None. Imports nothing.

    Raises:
        ConfigError: two packages bring it.
    """
    if (known := _FOUND.get((family, kind))) is not None:
        return known
    if not _KIND.fullmatch(kind):
        return None
    found = [plugin for plugin in _points(family) if plugin.kind == kind]
    if len(found) > 1:
        raise ConfigError(
            f"{FAMILIES[family]}.kind '{kind}'",
            expected="one package that brings it",
            got=" and ".join(plugin.release for plugin in found),
            hint="Uninstall one of them.",
        )
    if not found:
        return None  # not kept: it may be installed later
    _FOUND[family, kind] = found[0]
    return found[0]


def require_allowed(name: str, what: str) -> None:
    """Refuse a package's kind that the owner of this machine has not allowed.

    Raises:
        PluginNotAllowed: says how to allow it.
    """
    if _Allowed.names is None or name in _Allowed.names:
        return
    allowed = ", ".join(sorted(_Allowed.names)) or "no kind of any package"
    raise PluginNotAllowed(
        f"plug-in {name}",
        expected=f"what {_Allowed.where} allows: {allowed}",
        got=what,
        hint=f'Who owns this machine may add "{name}" there and start it again.',
    )


def settings_class(plugin: Plugin, base: type[Found]) -> type[Found]:
    """Import a plug-in's settings class.

    Args:
        plugin: of :func:`find`.
        base: what every settings class of its family extends.

    Raises:
        PluginNotAllowed: before anything is imported.
        ConfigError: it is no settings class of this family, or the package fails when it is imported.
    """
    require_allowed(plugin.name, plugin.release)
    found = _imported(plugin.settings, plugin)
    if not (isinstance(found, type) and issubclass(found, base) and found.implementation):
        raise ConfigError(
            f"package {plugin.package}, {plugin.name}",
            expected=f"a subclass of {base.__name__} with an implementation",
            got=plugin.settings,
            hint=f"Its author must mend it: docs/how-to of headwater, {plugin.family}.",
        )
    return found


def implementation(family: str, settings: Pluggable) -> Any:  # noqa: ANN401 - each family has its own
    """What does the work of an installed kind: the object that its settings class names.

    Raises:
        ConfigError: these settings are not those of an installed and allowed package, or its import fails.
    """
    kind = str(getattr(settings, "kind", ""))
    plugin = find(family, kind)
    if plugin is None or settings_class(plugin, Pluggable) is not type(settings):
        raise ConfigError(
            f"{FAMILIES[family]}.kind '{kind}'",
            expected="a kind of headwater's own or of an installed package",
            got=f"settings of class {type(settings).__name__}, which none of them brings",
        )
    return _imported(settings.implementation, plugin)


def releases(used: Iterable[tuple[str, Settings | None]]) -> dict[str, str]:
    """For each kind of a package among ``used``: its name, such as ``rules:clipped-mean``, and its release.

    Args:
        used: settings, each with its family.
    """
    found = {}
    for family, settings in used:
        if isinstance(settings, Pluggable) and settings.implementation:
            plugin = find(family, str(getattr(settings, "kind", "")))
            if plugin is not None:
                found[plugin.name] = plugin.release
    return dict(sorted(found.items()))


def require_releases(wanted: Mapping[str, str]) -> None:
    """Refuse a federation whose packages are not allowed or not installed here, in exactly its versions.

    Raises:
        PluginNotAllowed: one is not allowed.
        PluginMissing: one is not installed, or in another version.
        ValueError: a name that is none of a plug-in.
    """
    for number, (name, release) in enumerate(sorted(wanted.items()), start=1):
        family, kind = _split(name)
        if not _RELEASE.fullmatch(release):
            raise ValueError("a package's name, a space and its version")
        try:
            require_allowed(name, release)
        except PluginNotAllowed as error:
            error.number = number
            raise
        here = find(family, kind)
        if here is None or here.release != release:
            package, _, version = release.partition(" ")
            missing = PluginMissing(
                f"{FAMILIES[family]}.kind '{kind}'",
                expected=f"package {release}, with which the federation was made",
                got="none" if here is None else here.release,
                hint=f"If you trust it, install it here: pip install {package}=={version}",
            )
            missing.number = number
            raise missing


def _split(name: str) -> tuple[str, str]:
    family, _, kind = name.partition(":")
    if family not in FAMILIES or not _KIND.fullmatch(kind):
        raise ValueError(f"names such as rules:NAME, of the families {', '.join(FAMILIES)}")
    return family, kind


class open_to:  # noqa: N801 - reads as a word among annotations, as pydantic's own do
    """Opens a union with a discriminator ``kind`` to the kinds of installed packages.

    Args:
        family: a key of :data:`FAMILIES`.
        base: what every settings class of it extends.
    """

    def __init__(self, family: str, base: type[Pluggable]) -> None:
        self.family, self.base = family, base

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """The union's schema, with one choice more for whatever is not built in."""
        schema = handler(source)
        if schema["type"] != "tagged-union":  # one built-in kind is no union yet
            assert isinstance(source, type)
            assert issubclass(source, Settings)
            (kind,) = get_args(source.model_fields["kind"].annotation)
            schema = core_schema.tagged_union_schema({kind: schema}, "kind")
        built_in = frozenset(schema["choices"])

        def choose(value: object) -> object:
            kind = _kind(value)
            return kind if kind is None or kind in built_in else INSTALLED

        def dump(value: Any, inner: Any, info: core_schema.SerializationInfo) -> Any:  # noqa: ANN401 - any table
            if not isinstance(value, Pluggable) or not value.implementation:
                return inner(value)
            return value.model_dump(mode=info.mode, exclude_none=info.exclude_none)

        def validate(value: Any, info: core_schema.ValidationInfo) -> Pluggable:  # noqa: ANN401 - what came
            return self._validated(value, info, sorted(map(str, built_in)))

        more = core_schema.with_info_plain_validator_function(validate)
        return core_schema.tagged_union_schema(
            {**schema["choices"], INSTALLED: more},
            choose,
            serialization=core_schema.wrap_serializer_function_ser_schema(dump, info_arg=True, schema=schema),
        )

    def _validated(self, value: Any, info: core_schema.ValidationInfo, built_in: list[str]) -> Pluggable:  # noqa: ANN401 - what came
        kind = str(_kind(value))
        plugin = find(self.family, kind)
        if plugin is None:
            there = [p.kind for p in _points(self.family)]
            raise PydanticCustomError(
                "unknown_kind",
                "Input should be one of {built_in}, or a kind of an installed package ({there})",
                {
                    "built_in": ", ".join(f"'{name}'" for name in built_in),
                    "there": ", ".join(there) or f"none brings one for [{FAMILIES[self.family]}]",
                    "kind": kind,
                    "group": f"headwater.{self.family}",
                },
            )
        found = settings_class(plugin, self.base)
        if isinstance(value, found):
            return value
        if info.mode == "json":  # lists for tuples, as in the rest of the file
            return found.model_validate_json(json.dumps(value))
        return found.model_validate(value)


def _kind(value: object) -> object:
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


def _points(family: str) -> tuple[Plugin, ...]:
    """Sorted by name and package. Looked for again where a package came or went: it reads a file of each."""
    return _looked_for(family, tuple((folder, _changed(folder)) for folder in sys.path))


def _changed(folder: str) -> int:
    """When something was put into a folder of packages or taken out of it; 0 if it is not a folder."""
    try:
        return Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=2 * len(FAMILIES))
def _looked_for(family: str, folders: tuple[tuple[str, int], ...]) -> tuple[Plugin, ...]:
    points = metadata.entry_points(group=f"headwater.{family}")
    found = [
        Plugin(
            family,
            point.name,
            point.dist.name,
            point.dist.version,
            point.value,
            str(point.dist.locate_file("")),
        )
        for point in points
        if point.dist is not None
    ]
    return tuple(sorted(found, key=lambda plugin: (plugin.kind, plugin.package)))


def _imported(path: str, plugin: Plugin) -> Any:  # noqa: ANN401 - whatever the package has there
    """The object ``module:name`` of an installed package."""
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except HeadwaterError:
        raise
    except Exception as error:  # a stranger's module may raise anything when it is imported
        raise ConfigError(
            f"package {plugin.release}, {plugin.name}",
            expected=f"{path} to be there",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint="Its author must mend it, or it misses a package of its own.",
        ) from error
    return found
