"""Which artifact is taken, and what is said where none can be."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgescribe import BundleError, EngineError, ProfileError, UsageError, WrongAnswerError, load
from edgescribe.device_profiles.profiles import load_profile, profile_toml
from edgescribe.device_profiles.schema import (
    Accelerator,
    Avoid,
    CpuCluster,
    DeviceProfile,
    Memory,
    RuntimePreference,
)
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.load import by_preference, this_machines_cores
from edgescribe.sdk.manifest import Measurement

RUNTIMES = ("onnxruntime", "openvino", "litert")


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    """Writes a device profile with these runtimes in order of preference."""

    def write(*runtimes: RuntimePreference) -> Path:
        made = DeviceProfile(
            schema_version=1,
            id="desk",
            name="A desk",
            kind="desktop",
            isa="x86_64",
            clusters={"cpu": CpuCluster(core="core", count=4, max_mhz=1000)},
            memory=Memory(total_mib=1000, bandwidth_gb_s=10.0),
            int8_gmac_s=10.0,
            fp32_gmac_s=5.0,
            runtimes=runtimes,
            budgets={},
            sources={},
            accelerators=(Accelerator(name="npu", kind="npu", tops=1.0),),
        )
        path = tmp_path / "desk.toml"
        path.write_text(profile_toml(made))
        return path

    return write


def measured(runtime: str, p90: float, machine: str, how: str = "measured") -> Measurement:
    return Measurement(
        device="host", machine=machine, runtime=runtime, precision="fp32", how=how, tokens=128, samples=10, threads=1,  # type: ignore[arg-type]
        p50_ms=p90, p90_ms=p90, p99_ms=p90, throughput_per_s=1, load_ms=1, peak_rss_mib=1, disk_mib=1,
    )  # fmt: skip


def test_each_runtime_answers_alike(three_runtimes: Path) -> None:
    texts = ["kernel driver", "chess", "", "game " * 40, "Linux in Paris. " * 3]
    rows = []
    for runtime in RUNTIMES:
        with load(three_runtimes, runtime=runtime, threads=1) as student:
            assert student.effective.runtime == student.info.runtime == runtime
            rows.append([list(result.scores.values()) for result in student.classify(texts, batch_size=3)])
            alone = [list(student.classify(text).scores.values()) for text in texts]
            np.testing.assert_allclose(alone, rows[-1], atol=1e-4)
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-3)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-3)


def test_the_bundles_order_counts_without_measurements(three_runtimes: Path) -> None:
    with load(three_runtimes) as student:
        assert student.info.runtime == "onnxruntime"


@pytest.mark.parametrize("device", [None, "host", "cpu"])
def test_the_fastest_measured_on_such_a_machine_is_taken(
    three_runtimes: Path, rewrite: Callable[..., Path], device: str | None
) -> None:
    here = f"Some Board, {this_machines_cores()}"
    measurements = (
        measured("onnxruntime", 9.0, here),
        measured("litert", 3.0, here),
        measured("openvino", 1.0, "Other Board, 64 x Other Core"),
        measured("openvino", 1.0, here, "estimated"),
    )
    with load(rewrite(three_runtimes, measurements=measurements), device=device) as student:
        assert student.info.runtime == "litert"


def test_a_profiles_order_of_preference(three_runtimes: Path, profile: Callable[..., Path]) -> None:
    path = profile(RuntimePreference(name="litert", threads=1), RuntimePreference(name="onnxruntime", threads=2))
    with load(three_runtimes, device=path) as student:
        assert (student.info.runtime, student.effective.threads) == ("litert", 1)
    with load(three_runtimes, device=str(path), runtime="onnxruntime") as student:
        assert (student.info.runtime, student.effective.threads) == ("onnxruntime", 2)
    with load(three_runtimes, device=path, runtime="onnxruntime", threads=1) as student:
        assert student.effective.threads == 1


def test_what_a_profile_says_to_avoid(three_runtimes: Path, profile: Callable[..., Path]) -> None:
    avoid = (Avoid(what="fp32 models", why="it is slow there"),)
    path = profile(
        RuntimePreference(name="litert", threads=1, avoid=avoid), RuntimePreference(name="openvino", threads=1)
    )
    with load(three_runtimes, device=path) as student:
        assert student.info.runtime == "openvino"
    with pytest.raises(EngineError, match=r"says to avoid all that fits .*it is slow there"):
        load(three_runtimes, device=path, runtime="litert")
    with load(three_runtimes, device=path, runtime="litert", precision="fp32") as student:
        assert student.info.runtime == "litert"


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
def test_openvinos_int8_is_passed_over_on_a_desktop_without_vnni(three_runtimes: Path, precision: str) -> None:
    artifacts = read_bundle(three_runtimes).artifacts()
    rounded = tuple(msgspec.structs.replace(artifact, precision=precision) for artifact in artifacts)
    without, having = load_profile("desktop-avx2"), load_profile("desktop-avx512-vnni")
    assert [each.artifact.runtime for each in by_preference(rounded, without)] == ["litert", "onnxruntime"]
    assert "openvino" in [each.artifact.runtime for each in by_preference(rounded, having)]
    assert "openvino" in [each.artifact.runtime for each in by_preference(artifacts, without)]  # float32 is right


def test_a_device_that_runs_nothing_of_the_bundle(classify_folder: Path, profile: Callable[..., Path]) -> None:
    path = profile(RuntimePreference(name="litert", threads=1))
    with pytest.raises(EngineError, match="'desk': it runs litert, and there is onnxruntime in fp32"):
        load(classify_folder, device=path)


def test_every_profile_of_the_catalogue_can_be_loaded_for(three_runtimes: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NPUs that this machine does not have
        for name in ("raspberry-pi-5", "desktop-avx2"):
            with load(three_runtimes, device=name) as student:
                assert student.classify("kernel").label in student.info.labels


def test_an_npu_that_is_not_there(three_runtimes: Path, profile: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match=r"(?i)npu"):
        load(three_runtimes, device="npu", runtime="openvino")
    npu = RuntimePreference(name="openvino", threads=1, device="npu")
    with pytest.raises(EngineError, match=r"(?i)npu"):
        load(three_runtimes, device=profile(npu))
    path = profile(npu, RuntimePreference(name="openvino", threads=1))
    with pytest.warns(RuntimeWarning, match="took openvino in fp32 on the cpu, since"), load(
        three_runtimes, device=path
    ) as student:
        assert student.effective.device == "cpu"


def wrong_answers(folder: Path, *runtimes: str) -> dict[str, Any]:
    """The bundle's artifacts, those of ``runtimes`` with known answers that are off by one."""

    def off(artifact: Any) -> Any:
        (answer,) = artifact.known_answers
        outputs = {"logits": [value + 1 for value in answer.outputs["logits"]]}
        return msgspec.structs.replace(artifact, known_answers=(msgspec.structs.replace(answer, outputs=outputs),))

    artifacts = read_bundle(folder).manifest.artifacts
    return {"artifacts": tuple(off(a) if a.runtime in runtimes else a for a in artifacts)}


def test_an_engine_that_computes_wrongly_is_passed_over_aloud(
    three_runtimes: Path, rewrite: Callable[..., Path]
) -> None:
    folder = rewrite(three_runtimes, **wrong_answers(three_runtimes, "onnxruntime"))
    with pytest.warns(RuntimeWarning, match=r"took openvino in fp32 .*known answer"), load(folder) as student:
        assert student.info.runtime == "openvino"
    with pytest.raises(WrongAnswerError, match="instead of"):
        load(folder, runtime="onnxruntime")


def test_where_every_engine_computes_wrongly(three_runtimes: Path, rewrite: Callable[..., Path]) -> None:
    folder = rewrite(three_runtimes, **wrong_answers(three_runtimes, *RUNTIMES))
    with pytest.raises(WrongAnswerError, match=r"no artifact of the bundle could be opened: .*onnx.*xml.*tflite"):
        load(folder)


def in_a_process_without(engines: tuple[str, ...], folder: Path, options: str = "") -> str:
    """What loading prints where these packages cannot be imported."""
    program = f"""
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {engines!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden)
import edgescribe
try:
    student = edgescribe.load({str(folder)!r}{options})
    print(student.info.runtime)
except edgescribe.EdgescribeError as error:
    print(type(error).__name__, error.exit_code, error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr
    return done.stdout


def test_engines_that_are_not_installed(three_runtimes: Path) -> None:
    assert in_a_process_without(("onnxruntime",), three_runtimes) == "openvino\n"
    asked = in_a_process_without(("onnxruntime",), three_runtimes, ", runtime='onnxruntime'")
    assert asked.startswith("MissingExtraError 5")
    assert "pip install 'edgescribe[onnxruntime]'" in asked
    none = in_a_process_without(("onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"), three_runtimes)
    assert none.startswith("MissingExtraError 5 none of the engines that the bundle is for is installed here")


def test_loading_imports_one_engine_only(three_runtimes: Path) -> None:
    program = f"""
import sys, edgescribe
edgescribe.load({str(three_runtimes)!r}, runtime="litert").classify("kernel")
print([name for name in ("onnxruntime", "openvino", "torch", "tomllib", "subprocess") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "tensorrt"}, "no runtime 'tensorrt'; choose one of onnxruntime, openvino, litert"),
        ({"precision": "int8"}, "no precision 'int8'; choose one of fp32, w8a8-static"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": True}, "threads is True"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"spinning": 1}, "spinning is 1; give True or False"),
    ],
)
def test_options_that_there_are_not(classify_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(classify_folder, **options)
    assert message in str(caught.value)


def test_what_the_bundle_does_not_have(classify_folder: Path) -> None:
    with pytest.raises(BundleError, match="no artifact for litert; it has onnxruntime in fp32"):
        load(classify_folder, runtime="litert")
    with pytest.raises(BundleError, match="no artifact for onnxruntime in w8a8-static"):
        load(classify_folder, runtime="onnxruntime", precision="w8a8-static")


def test_an_unknown_device(classify_folder: Path) -> None:
    with pytest.raises(ProfileError, match="raspberry-pi-5"):
        load(classify_folder, device="raspbery-pi-5")


def test_a_cache_folder(three_runtimes: Path, tmp_path: Path) -> None:
    for runtime in RUNTIMES:
        for _ in range(2):
            with load(three_runtimes, runtime=runtime, cache_dir=tmp_path / runtime) as student:
                assert student.classify("kernel").label in student.info.labels


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_eight_threads_on_each_runtime(three_runtimes: Path, runtime: str) -> None:
    texts = ["kernel driver", "chess", "", "game " * 40, "Linux in Paris."]
    with load(three_runtimes, runtime=runtime, threads=1) as student:
        alone = [student.classify(text) for text in texts]

        def work(number: int) -> None:
            for turn in range(15):
                index = (number + turn) % len(texts)
                assert student.classify(texts[index]) == alone[index]
                together = student.classify(texts, batch_size=1 + turn % 3)
                np.testing.assert_allclose([r.score for r in together], [r.score for r in alone], atol=1e-4)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, number) for number in range(8)]:
                done.result()
