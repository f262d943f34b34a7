"""From a bundle's folder to a student at work: checks the bundle, chooses the artifact, opens its engine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from ..errors import EngineError, MissingExtraError, UsageError, WrongAnswerError
from ..runtimes.contract import OpenOptions
from ..runtimes.decoder_contract import DecoderOptions
from ..runtimes.encoder_decoder_contract import EncoderDecoderOptions, SourceAnswer
from ..runtimes.registry import RUNTIMES, open_artifact
from .bundle import MIB, Bundle, decoder_answers, known_answers, read_bundle, source_answers
from .manifest import ArtifactEntry, Manifest, Precision
from .student import Student

if TYPE_CHECKING:
    from ..device_profiles.schema import DeviceProfile, RuntimePreference
    from .summarizer import Summarizer
    from .writer import Writer

HOST = "host"
ENGINE_DEVICES = ("cpu", "npu")


@dataclass(frozen=True)
class Candidate:
    """An artifact that may be opened, on ``device`` (``cpu`` or ``npu``) with ``threads`` (0: the runtime's choice)."""

    artifact: ArtifactEntry
    device: str = "cpu"
    threads: int = 0

    def __str__(self) -> str:
        return f"{self.artifact.runtime} in {self.artifact.precision} on the {self.device}"


def load(
    path: str | os.PathLike[str],
    *,
    device: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    spinning: bool = False,
) -> Student:
    """Load a bundle.

    The artifact is chosen among those that ``runtime`` and ``precision`` leave: with a device profile by its order of
    preference, past precisions that it says to avoid; otherwise the fastest that was measured on a machine of this
    kind, then the order of the bundle. Of these the first is taken whose engine is installed; an engine that is
    installed and fails is passed over with a warning, and :attr:`Student.effective` tells what runs.

    Args:
        path: the bundle's folder.
        device: name or ``.toml`` path of a device profile; None or ``"host"`` for the machine this runs on, ``"cpu"``
            or ``"npu"`` for just that of this machine.
        runtime: ``onnxruntime``, ``openvino`` or ``litert``.
        precision: ``fp32``, ``w8a8-static``, ….
        threads: intra-operator threads; 0 takes the profile's, or the number of physical cores, at most 4.
        cache_dir: folder for the engine's cache of compiled models; None turns it off.
        spinning: let waiting threads spin, where the engine can be told (``onnxruntime``): faster alone on an idle
            machine, slower on a busy one, and at the cost of power.

    Raises:
        BundleError: the bundle is missing, damaged, was changed, or has no such artifact.
        MissingExtraError: no engine for it is installed; the message names the extra.
        EngineError: the engine cannot run it here, or every artifact is to be avoided on ``device``.
        WrongAnswerError: the engine does not give the bundle's known answers.
        ProfileError: no such device profile.
        UsageError: an option that there is not.
    """
    _check_options(runtime, precision, threads, spinning)
    bundle = read_bundle(path)
    _check_task(bundle, path, "classify", "tag", "embed")

    def opened(candidate: Candidate) -> Student:
        artifact = candidate.artifact
        options = OpenOptions(
            device=candidate.device,
            threads=threads or candidate.threads,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            spinning=spinning,
            padding_side=bundle.manifest.tokenizer.padding_side,
            max_tokens=bundle.manifest.tokenizer.max_tokens,
            known_answers=known_answers(artifact),
        )
        return Student(bundle, artifact, open_artifact(artifact.runtime, bundle.artifact_path(artifact), options))

    return _first_opened(bundle, _candidates(bundle, device, runtime, precision), opened)


def load_writer(
    path: str | os.PathLike[str],
    *,
    device: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    spinning: bool = False,
    context: int | None = None,
    memory_mib: float | None = None,
    prefix_dir: str | os.PathLike[str] | None = None,
) -> Writer:
    """Load a bundle whose student writes (task ``generate``). The artifact is chosen as by :func:`load`.

    Args:
        path: the bundle's folder.
        device: as of :func:`load`.
        runtime: ``onnxruntime``, ``openvino`` or ``litert``.
        precision: ``fp32``, ``w8a8-dynamic`` or ``w4a8-dynamic``.
        threads: as of :func:`load`.
        cache_dir: folder for the engine's cache of compiled models or packed weights; None turns it off.
        spinning: as of :func:`load`.
        context: the most tokens of prompt and text together; None takes the bundle's. Memory grows with it.
        memory_mib: MiB that this process may take; more is refused before it is taken. None: no limit.
        prefix_dir: folder where caches of system prompts are kept, so that they need not be read anew after a start.

    Raises:
        OverBudgetError: the memory predicted for this context is over ``memory_mib``.
        BundleError, MissingExtraError, EngineError, WrongAnswerError, ProfileError, UsageError: as of :func:`load`.
    """
    from .open_writer import open_writer

    _check_options(runtime, precision, threads, spinning)
    bundle = read_bundle(path)
    _check_task(bundle, path, "generate")

    def opened(candidate: Candidate) -> Writer:
        options = DecoderOptions(
            device=candidate.device,
            threads=threads or candidate.threads,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            spinning=spinning,
            context=context,
            memory_limit=None if memory_mib is None else int(memory_mib * MIB),
            answers=decoder_answers(candidate.artifact),
        )
        return open_writer(bundle, candidate.artifact, options, None if prefix_dir is None else Path(prefix_dir))

    return _first_opened(bundle, _candidates(bundle, device, runtime, precision), opened)


def load_summarizer(
    path: str | os.PathLike[str],
    *,
    device: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    spinning: bool = False,
    source_context: int | None = None,
    context: int | None = None,
    memory_mib: float | None = None,
) -> Summarizer:
    """Load a bundle whose student summarises (task ``summarize``). The artifact is chosen as by :func:`load`.

    Args:
        path: the bundle's folder.
        device: as of :func:`load`.
        runtime: ``onnxruntime``, ``openvino`` or ``litert``.
        precision: ``fp32``, ``w8a8-dynamic``, ….
        threads: as of :func:`load`.
        cache_dir: folder for the engine's cache of compiled models or packed weights; None turns it off.
        spinning: as of :func:`load`.
        source_context: the most tokens of a source; None takes the bundle's. Memory grows with it.
        context: the most tokens of a summary; None takes the bundle's.
        memory_mib: MiB that this process may take; more is refused before it is taken. None: no limit.

    Raises:
        OverBudgetError: the memory predicted for these contexts is over ``memory_mib``.
        BundleError, MissingExtraError, EngineError, WrongAnswerError, ProfileError, UsageError: as of :func:`load`.
    """
    from .open_summarizer import open_summarizer

    _check_options(runtime, precision, threads, spinning)
    bundle = read_bundle(path)
    _check_task(bundle, path, "summarize")

    def opened(candidate: Candidate) -> Summarizer:
        options = EncoderDecoderOptions(
            device=candidate.device,
            threads=threads or candidate.threads,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            spinning=spinning,
            context=context,
            source_context=source_context,
            memory_limit=None if memory_mib is None else int(memory_mib * MIB),
            source_answers=_answers_within(candidate.artifact, source_context, context),
        )
        return open_summarizer(bundle, candidate.artifact, options)

    return _first_opened(bundle, _candidates(bundle, device, runtime, precision), opened)


def _answers_within(
    artifact: ArtifactEntry, source_context: int | None, context: int | None
) -> tuple[SourceAnswer, ...]:
    """The known answers that fit contexts smaller than the artifact's own.

    Raises:
        UsageError: none does, so that the engine could not be checked.
    """
    answers = source_answers(artifact)
    found = tuple(
        answer
        for answer in answers
        if (source_context is None or len(answer.source) <= source_context)
        and (context is None or len(answer.prompt) <= context)
    )
    if not found:
        sources = min(len(answer.source) for answer in answers)
        prompts = min(len(answer.prompt) for answer in answers)
        raise UsageError(
            f"the contexts asked for hold none of the bundle's known answers, by which the engine is checked: take a "
            f"source context of {sources} tokens at least, and a context of {prompts}"
        )
    return found


def _check_task(bundle: Bundle, path: str | os.PathLike[str], *tasks: str) -> None:
    """Refuse a bundle that another function opens."""
    task = bundle.manifest.task
    if task not in tasks:
        does, opens = _OPENED_BY.get(task, (f"does {task!r}", "load"))
        raise UsageError(f"{path}: this student {does}; open it with edgescribe.{opens}()")


_OPENED_BY = {"generate": ("writes", "load_writer"), "summarize": ("summarises", "load_summarizer")}


def _candidates(
    bundle: Bundle, device: str | os.PathLike[str] | None, runtime: str | None, precision: str | None
) -> list[Candidate]:
    """The artifacts that may be opened, best first; see :func:`load`."""
    artifacts = bundle.artifacts(runtime, precision)
    if device is None or device == HOST or device in ENGINE_DEVICES:
        engine_device = str(device) if device in ENGINE_DEVICES else "cpu"
        return [Candidate(artifact, engine_device) for artifact in by_measurement(bundle.manifest, artifacts)]
    # Imported here: reading profiles takes memory that most apps need not pay.
    from ..device_profiles.profiles import load_profile

    name = device if isinstance(device, str) else Path(device)
    return by_preference(artifacts, load_profile(name), explicit=precision is not None)


def by_measurement(manifest: Manifest, artifacts: tuple[ArtifactEntry, ...]) -> list[ArtifactEntry]:
    """The artifacts by their p90 latency measured on machines of this kind; unmeasured ones after, in their order."""
    measured = [measurement for measurement in manifest.measurements if measurement.how == "measured"]
    if not measured or len(artifacts) == 1:
        return list(artifacts)
    cores = this_machines_cores()
    latency: dict[tuple[str, str], float] = {}
    for measurement in measured:
        if measurement.machine == cores or measurement.machine.endswith(f", {cores}"):
            key = (measurement.runtime, measurement.precision)
            latency[key] = min(measurement.p90_ms, latency.get(key, measurement.p90_ms))
    return sorted(artifacts, key=lambda artifact: latency.get((artifact.runtime, artifact.precision), float("inf")))


def this_machines_cores() -> str:
    """This machine's cores as a measurement's ``machine`` ends (``…, 4 x Cortex-A76``): machines of a kind share it."""
    from ..device_profiles.probe_cpu import probe_cpu

    return "; ".join(f"{cluster.count} x {cluster.core}" for cluster in probe_cpu().clusters.values())


def by_preference(
    artifacts: tuple[ArtifactEntry, ...], profile: DeviceProfile, *, explicit: bool = False
) -> list[Candidate]:
    """The artifacts in the order in which a device profile prefers their runtimes.

    Args:
        artifacts: what to choose from.
        profile: the device.
        explicit: the caller named the precision, so that one that the profile says to avoid is allowed.

    Raises:
        EngineError: nothing of the bundle is for a runtime of the device, or all of it is to be avoided there.
    """
    chosen: list[Candidate] = []
    reasons: list[str] = []
    for preference in profile.runtimes:
        for artifact in artifacts:
            if artifact.runtime != preference.name:
                continue
            reason = None if explicit else avoided(artifact.precision, preference)
            if reason is None:
                chosen.append(Candidate(artifact, preference.device, preference.threads))
            else:
                reasons.append(f"{artifact.runtime} in {artifact.precision}: {reason}")
    if chosen:
        return chosen
    names = ", ".join(dict.fromkeys(preference.name for preference in profile.runtimes))
    there = ", ".join(f"{artifact.runtime} in {artifact.precision}" for artifact in artifacts)
    if reasons:
        raise EngineError(
            f"the profile {profile.id!r} says to avoid all that fits ({'; '.join(reasons)}); name the "
            "precision to use it all the same, or convert the student for this device"
        )
    raise EngineError(
        f"nothing fits the device {profile.id!r}: it runs {names}, and there is {there}; convert the student for it"
    )


def avoided(precision: str, preference: RuntimePreference) -> str | None:
    """Why a profile says not to use a precision on a runtime, or None. Its entries that name none are for people."""
    for avoid in preference.avoid:
        if precision in avoid.what.lower().split():
            return avoid.why
    return None


Opened = TypeVar("Opened")


def _first_opened(bundle: Bundle, candidates: list[Candidate], opened: Callable[[Candidate], Opened]) -> Opened:
    missing: list[MissingExtraError] = []
    failed: list[EngineError] = []
    for candidate in candidates:
        try:
            result = opened(candidate)
        except MissingExtraError as error:
            missing.append(error)
            continue
        except EngineError as error:
            failed.append(error)
            continue
        for failure in failed:
            warnings.warn(f"{bundle.folder}: took {candidate}, since: {failure}", RuntimeWarning, stacklevel=3)
        return result
    raise _first_failure(failed, missing)


def _first_failure(failed: list[EngineError], missing: list[MissingExtraError]) -> EngineError:
    """What to tell where nothing could be opened: the real failures, or else which extras would help."""
    if len(failed) > 1:
        wrong = any(isinstance(error, WrongAnswerError) for error in failed)
        message = "no artifact of the bundle could be opened: " + "; ".join(str(error) for error in failed)
        return WrongAnswerError(message) if wrong else EngineError(message)
    if failed:
        return failed[0]
    first = missing[0]
    extras = list(dict.fromkeys(error.extra for error in missing))
    if len(extras) > 1:
        first.args = (
            f"none of the engines that the bundle is for is installed here ({', '.join(extras)}); install one with: "
            f"pip install 'edgescribe[{extras[0]}]'",
        )
    return first


def _check_options(runtime: str | None, precision: str | None, threads: object, spinning: object) -> None:
    if runtime is not None and runtime not in RUNTIMES:
        raise UsageError(f"there is no runtime {runtime!r}; choose one of {', '.join(RUNTIMES)}")
    if precision is not None and precision not in get_args(Precision):
        raise UsageError(f"there is no precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= 1024:
        raise UsageError(f"threads is {threads!r}; give a whole number, or 0 for the number of physical cores")
    if not isinstance(spinning, bool):
        raise UsageError(f"spinning is {spinning!r}; give True or False")
