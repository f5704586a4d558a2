"""The record and the host: strict in what is read, and for each thing that does not fit a reason that a person can read."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from imagefs.errors import ImageFSError, IntegrityError, LimitError, UnsupportedError
from imagefs.format.manifest import BlobName
from snapshotstore import manifest
from snapshotstore.checkpoint.base import Engine
from snapshotstore.compat import Host, choose, collect, cpu_needed, cpu_of, fits, gpu_mapping, match, signal_frame_of
from snapshotstore.manifest import Cpu, Economics, Gpu, Oci, Program, Record, Runtime, key_of

GPU = Gpu(count=2, model="H100", memory=80 << 30, uuids=("GPU-a", "GPU-b"), driver="580.1", cuda="13.4", mode="custom")
RECORD = Record(
    runtime=Runtime(engine="criu", version="4.1.1", format="criu-4", exact=False, flags=("--shell-job",)),
    cpu=Cpu(arch="x86_64", vendor="GenuineIntel", features=("avx2", "fma"), xsave=2700),
    kernel="6.18.1",
    oci=Oci(image="a" * 64, spec="b" * 64, mounts=("/run/imagefs",)),
    lineage="service",
    key="c" * 64,
    created=1_800_000_000.5,
    python=Program(version="3.11.2", argv=("-m", "agent"), environment=("PATH",)),
)
HOST = Host(
    arch="x86_64",
    kernel="6.18.1",
    page_size=4096,
    vendor="GenuineIntel",
    features=frozenset({"avx2", "fma", "avx512f"}),
    xsave=2700,
    engines=(Engine("criu", "4.1.1", "criu-4", Path("/usr/sbin/criu"), is_exact=False),),
    image="a" * 64,
    spec="b" * 64,
    key="c" * 64,
)


def host(**changes: Any) -> Host:
    return Host(**({name: getattr(HOST, name) for name in HOST.__dataclass_fields__} | changes))


def record(**changes: Any) -> Record:
    return structs.replace(RECORD, **changes)


def engine(**changes: Any) -> tuple[Engine, ...]:
    facts: dict[str, Any] = {"name": "criu", "version": "4.1.1", "format": "criu-4", "program": Path("/x"), "is_exact": False}
    return (Engine(**(facts | changes)),)


def test_what_is_equal_fits() -> None:
    assert match(RECORD, HOST) == []


def test_where_nothing_is_said_of_the_program_any_will_do() -> None:
    assert match(RECORD, host(image=None, spec=None, key=None)) == []


@pytest.mark.parametrize(
    ("made", "here", "what", "words"),
    [
        (RECORD, host(engines=()), "runtime.engine", "criu.*none"),
        (RECORD, host(engines=engine(name="runsc")), "runtime.engine", "criu.*runsc"),
        (RECORD, host(engines=engine(format="criu-5")), "runtime.format", "criu-4.*criu-5"),
        (RECORD, host(engines=engine(version="4.2", is_exact=True)), "runtime.version", r"4\.1\.1.*4\.2"),
        (record(runtime=structs.replace(RECORD.runtime, exact=True)), host(engines=engine(version="4.2")), "runtime.version", "alone"),
        (RECORD, host(arch="aarch64"), "cpu.arch", "x86_64.*aarch64"),
        (RECORD, host(page_size=65536), "cpu.page_size", "4096.*65536"),
        (RECORD, host(features=frozenset({"avx2"})), "cpu.features", "no fma"),
        (record(cpu=structs.replace(RECORD.cpu, features=tuple(f"f{n:02}" for n in range(20)))), HOST, "cpu.features", "f11 and 8 more"),
        (RECORD, host(xsave=1000), "cpu.xsave", "2700.*1000"),
        (RECORD, host(image="d" * 64), "oci.image", "aaaaaaaaaaaa.*dddddddddddd"),
        (RECORD, host(spec="d" * 64), "oci.spec", "set up otherwise"),
        (RECORD, host(key="d" * 64), "key", "another source"),
        (record(gpu=GPU), HOST, "gpu", "2 of the GPU H100.*none"),
        (record(gpu=GPU), host(gpu=structs.replace(GPU, count=1)), "gpu.count", "2.*1"),
        (record(gpu=GPU), host(gpu=structs.replace(GPU, model="A100")), "gpu.model", "H100.*A100"),
        (record(gpu=GPU), host(gpu=structs.replace(GPU, driver="570")), "gpu.driver", "580.1.*570"),
        (record(gpu=GPU), host(gpu=structs.replace(GPU, memory=40 << 30)), "gpu.memory", "GPUs of"),
        (record(economics=Economics(quarantined="two crashes")), HOST, "economics.quarantined", "two crashes"),
        (record(economics=Economics(cold_p50=1.0, restore_p50=1.5)), HOST, "economics", "1.5 s.*1 s"),
    ],
)
def test_what_does_not_fit_is_told_with_the_reason(made: Record, here: Host, what: str, words: str) -> None:
    found = match(made, here)
    assert [mismatch.what for mismatch in found] == [what]
    assert not fits(found)
    with pytest.raises(AssertionError, match=f"(?s){words}"):
        raise AssertionError(str(found[0]))


@pytest.mark.parametrize(
    ("made", "here", "what"),
    [
        (RECORD, host(kernel="6.1"), "kernel"),
        (RECORD, host(vendor="AuthenticAMD"), "cpu.vendor"),
        (RECORD, host(engines=engine(version="4.2")), "runtime.version"),
        (record(gpu=GPU), host(gpu=structs.replace(GPU, cuda="13.5")), "gpu.cuda"),
    ],
)
def test_some_of_it_is_a_warning(made: Record, here: Host, what: str) -> None:
    found = match(made, here)
    assert [mismatch.what for mismatch in found] == [what]
    assert fits(found)
    assert str(found[0]).endswith("(a warning)")


def test_what_is_the_kernels_own_is_not_asked_for() -> None:
    cpu = structs.replace(RECORD.cpu, features=(*RECORD.cpu.features, "ibrs", "vmx", "constant_tsc"))
    assert match(record(cpu=cpu), HOST) == []


def test_all_of_it_is_told_and_what_is_fatal_comes_first() -> None:
    found = match(RECORD, host(kernel="6.1", vendor="AuthenticAMD", features=frozenset(), image="d" * 64))
    assert [mismatch.fatal for mismatch in found] == [True, True, False, False]


def test_the_best_variant_is_the_one_that_uses_most_of_the_host() -> None:
    wide = record(cpu=structs.replace(RECORD.cpu, features=("avx2", "avx512f", "fma")))
    wider = record(cpu=structs.replace(RECORD.cpu, features=("amx_tile", "avx2", "avx512f", "fma")))
    choice = choose([RECORD, wider, wide], HOST)
    assert choice.best == 2
    assert [fits(found) for found in choice.mismatches] == [True, False, True]
    fast, slow = (record(economics=Economics(restore_p50=seconds)) for seconds in (0.1, 0.2))
    assert choose([slow, RECORD, fast], HOST).best == 2
    assert choose([RECORD, record(created=RECORD.created + 1)], HOST).best == 1
    assert choose([RECORD, record(kernel="6.1", created=RECORD.created + 1)], HOST).best == 0
    assert choose([RECORD, record(gpu=GPU)], host(gpu=GPU)).best == 1


def test_no_variant_may_fit() -> None:
    assert choose([RECORD], host(arch="riscv64")).best is None
    assert choose([], HOST).best is None


def test_gpus_take_each_others_places() -> None:
    here = structs.replace(GPU, uuids=("GPU-x", "GPU-y"))
    assert fits(match(record(gpu=GPU), host(gpu=here)))
    assert gpu_mapping(record(gpu=GPU), host(gpu=here)) == {"GPU-a": "GPU-x", "GPU-b": "GPU-y"}
    assert gpu_mapping(RECORD, HOST) == {}


def test_this_host() -> None:
    here = collect(HOST.engines)
    assert here.page_size > 0
    assert here.arch
    assert here.features
    made = record(cpu=cpu_needed(here), kernel=here.kernel)
    assert set(made.cpu.features) < here.features
    assert match(manifest.decode(manifest.encode(made)), here) == []


def test_a_program_may_use_what_all_processors_have() -> None:
    text = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n"
    assert cpu_of(text) == ("GenuineIntel", frozenset({"fpu", "avx2"}))
    assert cpu_of("processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\n") == ("0x41", frozenset({"fp", "asimd", "sve"}))
    assert cpu_of("") == ("", frozenset())


def test_the_size_of_a_signals_frame() -> None:
    assert signal_frame_of(struct.pack("@LLLLLL", 33, 1, 51, 3632, 0, 0)) == 3632
    assert signal_frame_of(struct.pack("@LLLL", 33, 1, 0, 0)) == 0
    assert signal_frame_of(b"short") == 0


# -- the record ---------------------------------------------------------------------------------------------------------------------------


def test_a_record_is_read_back() -> None:
    made = record(gpu=GPU, economics=Economics(cold_p50=2.5, logical=5))
    assert manifest.decode(manifest.encode(made)) == made
    blobs = [BlobName("e" * 64, 5)]
    found = manifest.annotations(made, blobs)
    assert (manifest.read(found), manifest.pages_of(found)) == (made, blobs)
    assert manifest.pages_of({}) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.replace('"format":1', '"format":2'), UnsupportedError),
        (lambda t: t.replace('"format":1', '"format":0'), UnsupportedError),
        (lambda t: t.replace('"kernel":', '"colonel":'), IntegrityError),
        (lambda t: t.replace('"kernel":', '"jernel":"6","kernel":'), IntegrityError),
        (lambda t: t.replace('"page_size":4096', '"page_size":0'), IntegrityError),
        (lambda t: t.replace('"xsave":2700', '"xsave":-1'), IntegrityError),
        (lambda t: t.replace("a" * 64, "../" + "a" * 61), IntegrityError),
        (lambda t: t.replace(":", ": ", 1), IntegrityError),
        (lambda t: t + "\n", IntegrityError),
        (lambda t: t[:-1], IntegrityError),
        (lambda t: "", IntegrityError),
        (lambda t: "\ud800", IntegrityError),
        (lambda t: "[" * 1000, LimitError),
        (lambda t: " " * (manifest.MAX_RECORD + 1), LimitError),
    ],
)
def test_any_other_record_is_refused(change: Callable[[str], str], expected: type[ImageFSError]) -> None:
    with pytest.raises(expected):
        manifest.decode(change(manifest.encode(RECORD)))


def test_what_could_not_be_read_is_not_written() -> None:
    for wrong in (record(created=float("nan")), record(key="x"), record(cpu=structs.replace(RECORD.cpu, page_size=0))):
        with pytest.raises(UnsupportedError):
            manifest.encode(wrong)
    with pytest.raises(LimitError):
        manifest.encode(record(lineage="x" * manifest.MAX_RECORD))


def test_a_manifest_without_a_record_is_no_snapshot() -> None:
    with pytest.raises(IntegrityError, match=r"imagefs\.snapshot"):
        manifest.read({})
    with pytest.raises(IntegrityError):
        manifest.pages_of({manifest.PAGES_ANNOTATION: "{}"})


def test_a_key_changes_with_each_of_its_parts() -> None:
    parts = {"image": "a" * 64, "argv": ["x", "y"], "environment": ["A"]}
    keys = {key_of(**parts), key_of(**(parts | {"argv": ["x y"]})), key_of(**(parts | {"environment": []})), key_of(image="a" * 64)}
    assert len(keys) == 4
    assert key_of(**dict(reversed(parts.items()))) == key_of(**parts)
