"""``edgescribe devices``: list, show and measure device profiles."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from ..console import Result, bar_of_parts, command, note
from .choices import DeviceName


@click.group()
def devices() -> None:
    """List, show and measure device profiles."""


@command(name="list")
def list_command() -> Result:
    """List the catalogue's device profiles."""
    from ...device_profiles.profiles import HOST, list_profiles, load_profile
    from ...device_profiles.render import render_list

    # host is measured anew each time; "devices show host" and "devices measure" do that
    profiles = [load_profile(name) for name in list_profiles() if name != HOST]
    return Result(data=profiles, text=f"{render_list(profiles)}\n{HOST} is the machine this runs on")


@command()
@click.argument("device", type=DeviceName())
@click.option("--sources/--no-sources", default=True, help="Tell where each number comes from.")
def show(device: str, sources: bool) -> Result:
    """Show one device profile: a name of the list, host, or a .toml file."""
    from ...device_profiles.profiles import load_profile
    from ...device_profiles.render import render_profile

    profile = load_profile(device)
    return Result(data=profile, text=render_profile(profile, with_sources=sources))


@command(epilog="Give the file's path wherever a command takes --device.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="Time to take.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the profile to this .toml file; default: stdout.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def measure(seconds: float, out: Path | None, force: bool) -> Result:
    """Measure this machine and write its device profile as TOML."""
    from ...device_profiles.measure import measure_profile
    from ...device_profiles.profiles import profile_toml
    from ...errors import OutputError

    if out is not None and out.suffix != ".toml":
        raise click.UsageError(f"{out}: a device profile's file name ends with .toml")
    if out is not None and out.exists() and not force:
        raise OutputError(f"{out} exists already; give another path, or --force to replace it")
    with bar_of_parts("Measuring") as advance:
        profile = measure_profile(seconds, lambda part, _: advance(part))
    content = profile_toml(profile)
    if out is None:
        return Result(data=profile, text=content.rstrip("\n"))
    _write(out, content)
    note(f"wrote {out}")
    return Result(data=profile, text=str(out))


for _command in (list_command, show, measure):
    devices.add_command(_command)


def _write(path: Path, content: str) -> None:
    """Write the file whole or not at all."""
    from ...errors import OutputError

    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); give another path") from error
