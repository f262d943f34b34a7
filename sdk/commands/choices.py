"""Options that several commands have: which artifact of a bundle to run, for which device, with how many threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from ..manifest import Precision, RuntimeName

if TYPE_CHECKING:
    _ParamType = click.ParamType[str]
else:  # not generic in older versions of click
    _ParamType = click.ParamType

_F = TypeVar("_F", bound=Callable[..., Any])


class DeviceName(_ParamType):
    """A device profile: a name of the catalogue, ``host``, or the path of a ``.toml`` file. Completes names.

    Args:
        engine_devices: ``cpu`` and ``npu``, what an engine runs on in this machine, are taken too.
    """

    name = "device"

    def __init__(self, engine_devices: bool = False) -> None:
        self.engine_devices = engine_devices

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names of the catalogue; a path is completed by the shell."""
        from ...device_profiles.profiles import list_profiles

        known = ["cpu", "npu", *list_profiles()] if self.engine_devices else list_profiles()
        names = [CompletionItem(name) for name in known if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


def bundle_argument(function: _F) -> _F:
    """The argument BUNDLE: a bundle's folder."""
    return click.argument("bundle", type=click.Path(path_type=Path))(function)


def artifact_options(function: _F) -> _F:
    """``--runtime``, ``--precision``, ``--device`` (a profile) and ``--threads``."""
    runtimes, precisions = click.Choice(get_args(RuntimeName)), click.Choice(get_args(Precision))
    for option in (
        click.option("--threads", type=click.IntRange(0, 256), default=0, help="0: the device's own number."),
        click.option("--device", type=DeviceName(engine_devices=True), help="Profile to choose by; or cpu, npu."),
        click.option("--precision", type=precisions, help="Artifact to take, where there are several."),
        click.option("--runtime", type=runtimes, help="Engine to take."),
    ):
        function = option(function)
    return function
