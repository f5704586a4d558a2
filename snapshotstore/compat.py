"""Which host may restore which snapshot, and why another may not.

Collecting looks at this host and changes nothing; matching is pure: a record and facts in, a list of what does not fit out. So ``doctor``,
a scheduler and a restore all give the same answer.

The rules:

| what | rule |
|---|---|
| engine, its format, architecture, page size, specification, image, key, GPU model, count and driver | equal |
| the engine's version | equal where the engine reads files of its own version alone, else a warning |
| CPU features, size of the registers, memory of a GPU | the host has at least these |
| GPU UUIDs | mapped: :func:`gpu_mapping` |
| kernel, CPU vendor, CUDA | a warning |
| quarantined, or slower than a cold start | refused |

What does not live here: the record (``snapshotstore.manifest``), and looking for engines (``snapshotstore.checkpoint``).
"""

import os
import platform
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from snapshotstore.checkpoint.base import Engine
from snapshotstore.manifest import UNTOLD, Cpu, Gpu, Record

_AT_MINSIGSTKSZ: Final = 51  # asm/auxvec.h of x86 and arm64
_AUXV: Final = struct.Struct("@LL")
_TOLD_MAX: Final = 12

_NOT_A_PROGRAMS: Final = frozenset(
    """
    vme de pse msr pae mce apic sep mtrr pge mca pat pse36 dts acpi ss ht tm pbe syscall nx constant_tsc art arch_perfmon pebs bts
    rep_good nopl xtopology nonstop_tsc cpuid extd_apicid aperfmperf rapl tsc_known_freq tsc_reliable pni_dtes64 dtes64 monitor
    ds_cpl vmx svm smx est tm2 cid xtpr pdcm pcid dca x2apic tsc_deadline_timer hypervisor cmp_legacy extapic cr8_legacy ibs
    skinit wdt tce topoext perfctr_core perfctr_nb bpext perfctr_llc mwaitx cpuid_fault epb cat_l2 cat_l3 cdp_l2 cdp_l3 cqm
    cqm_llc cqm_occup_llc cqm_mbm_total cqm_mbm_local mba rdt_a hw_pstate cppc cpb dtherm ida arat pln pts hwp hwp_notify
    hwp_act_window hwp_epp hwp_pkg_req hfi tpr_shadow flexpriority ept ept_ad vpid vnmi npt lbrv svm_lock nrip_save tsc_scale
    vmcb_clean flushbyasid decodeassists pausefilter pfthreshold avic v_vmsave_vmload vgif v_spec_ctrl smep smap invpcid
    invpcid_single tsc_adjust la57 umip pti kaiser ssbd ibrs ibpb stibp ibrs_enhanced spec_ctrl intel_stibp md_clear flush_l1d
    arch_capabilities core_capabilities arch_lbr split_lock_detect bus_lock_detect intel_pt intel_ppin ssb_no_hle overflow_recov
    succor smca sme sev sev_es sev_snp retpoline retpoline_amd xsaves vmmcall debug_swap
    """.split()  # noqa: SIM905 # a list of 150 quoted words cannot be read
)
"""What Linux calls a CPU's features and no program can use or miss: its own means, and names that come and go with its versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a host is, and what is to run there.

    ``image``, ``spec`` and ``key`` are those of the program that is to be restored, each in hex; None: any will do, as for ``doctor``.
    """

    arch: str
    kernel: str
    page_size: int
    vendor: str = ""
    features: frozenset[str] = frozenset()
    xsave: int = 0
    engines: tuple[Engine, ...] = ()
    gpu: Gpu | None = None
    image: str | None = None
    spec: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing that does not fit: ``what`` names the field, ``why`` is for a person. Those that are not ``fatal`` are warnings."""

    what: str
    why: str
    fatal: bool = True

    def __str__(self) -> str:
        """One line."""
        return self.why if self.fatal else f"{self.why} (a warning)"


@dataclass(frozen=True, slots=True)
class Choice:
    """What :func:`choose` found: the number of the variant to restore, or None; and of each variant what does not fit it."""

    best: int | None
    mismatches: list[list[Mismatch]] = field(default_factory=list)


# -- collecting ---------------------------------------------------------------------------------------------------------------------------


def collect(engines: Sequence[Engine] = (), *, gpu: Gpu | None = None) -> Host:
    """Return the facts of this host. ``engines`` are those that were found to work here, ``gpu`` what of it may be used."""
    vendor, features = cpu_of(Path("/proc/cpuinfo").read_text())
    return Host(
        arch=platform.machine(),
        kernel=os.uname().release,
        page_size=os.sysconf("SC_PAGE_SIZE"),
        vendor=vendor,
        features=features,
        xsave=signal_frame_of(Path("/proc/self/auxv").read_bytes()),
        engines=tuple(engines),
        gpu=gpu,
    )


def cpu_needed(host: Host) -> Cpu:
    """Return what a program that was frozen on ``host`` needs of a CPU: all that it can have looked at there."""
    features = tuple(sorted(host.features - _NOT_A_PROGRAMS))
    return Cpu(arch=host.arch, vendor=host.vendor, features=features, xsave=host.xsave, page_size=host.page_size)


def cpu_of(text: str) -> tuple[str, frozenset[str]]:
    """Return the vendor, and what all processors have, from the text of ``/proc/cpuinfo`` (x86 and arm64)."""
    vendor = ""
    features: frozenset[str] | None = None
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            continue
        name, value = name.strip(), value.strip()
        if name in {"vendor_id", "CPU implementer"}:
            vendor = vendor or value
        elif name in {"flags", "Features"}:
            # Processors of one machine may differ, and the program runs on any of them.
            features = frozenset(value.split()) & (frozenset(value.split()) if features is None else features)
    return vendor, features or frozenset()


def signal_frame_of(auxv: bytes) -> int:
    """Return the size in bytes of the largest signal frame, from ``/proc/self/auxv``; 0 where the kernel does not tell (before 5.14)."""
    for at in range(0, len(auxv) - _AUXV.size + 1, _AUXV.size):
        kind, value = _AUXV.unpack_from(auxv, at)
        if kind == _AT_MINSIGSTKSZ:
            return int(value)
    return 0


# -- matching -----------------------------------------------------------------------------------------------------------------------------


def match(record: Record, host: Host) -> list[Mismatch]:
    """Return all that does not fit, the fatal first; it may be restored if none of it is fatal."""
    found = [*_engine(record, host), *_cpu(record, host), *_program(record, host), *_gpu(record, host), *_worth(record)]
    if record.kernel != host.kernel:
        found.append(Mismatch("kernel", f"it was made on Linux {record.kernel}, this is {host.kernel}", fatal=False))
    return sorted(found, key=lambda mismatch: not mismatch.fatal)


def fits(mismatches: Sequence[Mismatch]) -> bool:
    """Say whether a snapshot of which this does not fit may be restored."""
    return not any(mismatch.fatal for mismatch in mismatches)


def choose(records: Sequence[Record], host: Host) -> Choice:
    """Return which of several variants of one snapshot to restore here.

    Of those that fit: one that keeps what the program had on its GPU; then that which uses most of this CPU; then the fastest, as far as
    was measured; then that with the fewest warnings; then the newest.
    """
    mismatches = [match(record, host) for record in records]
    fitting = [number for number, found in enumerate(mismatches) if fits(found)]
    best = min(fitting, key=lambda number: _rank(records[number], mismatches[number]), default=None)
    return Choice(best, mismatches)


def gpu_mapping(record: Record, host: Host) -> dict[str, str]:
    """Return for each GPU of a snapshot that fits the one of this host that takes its place, by UUID."""
    if record.gpu is None or host.gpu is None:
        return {}
    return dict(zip(record.gpu.uuids, host.gpu.uuids, strict=False))


def _rank(record: Record, found: Sequence[Mismatch]) -> tuple[bool, int, float, int, float]:
    restore = record.economics.restore_p50
    return (
        record.gpu is None or record.gpu.mode == "none",
        -len(record.cpu.features),
        float("inf") if restore is None else restore,
        len(found),
        -record.created,
    )


def _engine(record: Record, host: Host) -> Iterator[Mismatch]:
    needed = record.runtime
    engine = next((engine for engine in host.engines if engine.name == needed.engine), None)
    if engine is None:
        others = ", ".join(engine.name for engine in host.engines) or "none"
        yield Mismatch("runtime.engine", f"it needs the engine {needed.engine}, which does not work here (engines that do: {others})")
        return
    if engine.format != needed.format:
        yield Mismatch("runtime.format", f"it is of {needed.engine}'s format {needed.format}, and the one here reads {engine.format}")
    if engine.version != needed.version:
        fatal = needed.exact or engine.is_exact
        only = ", which restores what it made itself alone" if fatal else ""
        why = f"it was made by {needed.engine} {needed.version}, and here is {engine.version}{only}"
        yield Mismatch("runtime.version", why, fatal)


def _cpu(record: Record, host: Host) -> Iterator[Mismatch]:
    needed = record.cpu
    if needed.arch != host.arch:
        yield Mismatch("cpu.arch", f"it was made on {needed.arch}, and this is {host.arch}")
        return
    if needed.page_size != host.page_size:
        yield Mismatch("cpu.page_size", f"it has pages of {needed.page_size} bytes, and this kernel has pages of {host.page_size}")
    if lacking := sorted(set(needed.features) - host.features - _NOT_A_PROGRAMS):
        more = f" and {len(lacking) - _TOLD_MAX} more" if len(lacking) > _TOLD_MAX else ""
        yield Mismatch("cpu.features", f"this CPU has no {', '.join(lacking[:_TOLD_MAX])}{more}, which its program may use")
    if host.xsave and needed.xsave > host.xsave:
        why = f"its registers take {needed.xsave} bytes, and this CPU (or kernel) saves {host.xsave}"
        yield Mismatch("cpu.xsave", why)
    if needed.vendor and host.vendor and needed.vendor != host.vendor:
        yield Mismatch("cpu.vendor", f"it was made on a CPU of {needed.vendor}, and this is one of {host.vendor}", fatal=False)


def _program(record: Record, host: Host) -> Iterator[Mismatch]:
    if host.image is not None and record.oci.image != host.image:
        made = "nobody told of which image it is" if record.oci.image == UNTOLD else f"it is of the image {record.oci.image[:12]}"
        yield Mismatch("oci.image", f"{made}, and that is {host.image[:12]} now")
    if host.spec is not None and record.oci.spec != host.spec:
        yield Mismatch("oci.spec", "its sandbox was set up otherwise than the one that is to be restored")
    if host.key is not None and record.key != host.key:
        why = "it was made of another source, other arguments, other names of the environment, or by another agent"
        yield Mismatch("key", why)


def _gpu(record: Record, host: Host) -> Iterator[Mismatch]:
    needed, here = record.gpu, host.gpu
    if needed is None:
        return
    if here is None:
        yield Mismatch("gpu", f"it needs {needed.count} of the GPU {needed.model}, and there is none here")
        return
    for name, wanted, found in (
        ("count", needed.count, here.count),
        ("model", needed.model, here.model),
        ("driver", needed.driver, here.driver),
    ):
        if wanted != found:
            yield Mismatch(f"gpu.{name}", f"it was made with the GPU {name} {wanted}, and here it is {found}")
    if needed.memory > here.memory:
        yield Mismatch("gpu.memory", f"it needs GPUs of {needed.memory} bytes, and these have {here.memory}")
    if needed.cuda != here.cuda:
        yield Mismatch("gpu.cuda", f"it was made with CUDA {needed.cuda}, and here it is {here.cuda}", fatal=False)


def _worth(record: Record) -> Iterator[Mismatch]:
    found = record.economics
    if found.quarantined:
        yield Mismatch("economics.quarantined", f"it is in quarantine: {found.quarantined}")
    if found.restore_p50 is not None and found.cold_p50 is not None and found.restore_p50 >= found.cold_p50:
        why = f"restoring it takes {found.restore_p50:.3g} s, and a cold start {found.cold_p50:.3g} s"
        yield Mismatch("economics", why)
