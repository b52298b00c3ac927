"""What this machine can do: one row for each thing the core chain or an extra stands on, with the mend where there is one.

Nothing is believed that can be tried: torch and bitsandbytes are run (see `_probes`). The network is left alone unless asked for.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from slmkit.cli import _probes
from slmkit.errors import CannotRun

PACKAGE = Path(__file__).parents[1]
GIB = 1 << 30
NF4_ERROR = 0.12  # relative RMS error of NF4 in blocks of 64 on normal weights is 0.08 to 0.10


@dataclass(frozen=True)
class Row:
    """level: `ok`; `warn` (the core chain runs, something is slower or missing); `fail` (it cannot run). ok: not `fail`."""

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    mend: str | None = None

    @property
    def ok(self) -> bool:
        return self.level != "fail"


def run(store: Path, online: bool, as_json: bool, deep: bool = False) -> int:
    """Print the report to stdout, a line or a JSON object; 0, or 4 when the core chain cannot run here."""
    rows = check(store, online) + (_invariances() if deep else [])
    code = 0 if all(r.ok for r in rows) else CannotRun.code
    if as_json:
        print(json.dumps({"ok": code == 0, "exit": code, "rows": [{"ok": r.ok} | asdict(r) for r in rows]}, indent=2))
    else:
        print(render(rows))
    return code


def render(rows: list[Row]) -> str:
    """One line a row: level, name, what was found, the mend."""
    width = max(len(r.name) for r in rows)
    return "\n".join(f"{r.level:<4}  {r.name:<{width}}  {r.detail}" + (f"; mend: {r.mend}" if r.mend else "") for r in rows)


def check(store: Path, online: bool) -> list[Row]:
    """Every row, in the order in which a reader wants them."""
    torch, nf4 = _probes.start("pytorch"), _probes.start("nf4")
    core, extras = _requirements()
    packages = [_package(r) for r in core]
    extra_rows = [_extra(name, needs) for name, needs in extras.items()]
    machine = [_memory(), _disk(store)]
    hub = [_hub()] if online else []
    torch_rows, nf4_row = _torch_rows(_probes.finish(torch)), _nf4_row(_probes.finish(nf4))
    return [_python(), *torch_rows, *machine, *packages, nf4_row, *extra_rows, *hub]


def _python() -> Row:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Row("python", "ok", found)


# -- packages and extras, as slmkit's own metadata declares them --


def _requirements() -> tuple[list, dict[str, list]]:
    """(core, {extra: …}) as packaging Requirements: of the installed slmkit, else of the checkout it runs from."""
    from packaging.requirements import Requirement

    try:
        lines = [Requirement(r) for r in metadata.requires("slmkit") or []]
        extras = metadata.metadata("slmkit").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        import tomllib

        project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
        given = project["optional-dependencies"]
        return [Requirement(r) for r in project["dependencies"]], {e: [Requirement(r) for r in rs] for e, rs in given.items()}
    core = [r for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})]
    return core, {e: [r for r in lines if r not in core and r.marker.evaluate({"extra": e})] for e in extras}


def _version(requirement) -> tuple[str | None, bool]:
    """(installed version or None, whether it lies within the bounds)."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None, False
    return found, requirement.specifier.contains(found, prereleases=True)


def _install(requirements: list) -> str:
    """The command that installs these into the Python that runs now, with the project's constraints where they are at hand."""
    pip = [sys.executable, "-m", "pip", "install"]
    if shutil.which("uv") and not _has_pip():
        pip = ["uv", "pip", "install", "--python", sys.executable]
    constraints = PACKAGE.parent / "constraints.txt"
    pinned = ["-c", str(constraints)] if constraints.is_file() else []
    return shlex.join([*pip, *pinned, *(f"{r.name}{r.specifier}" for r in requirements)])


def _has_pip() -> bool:
    from importlib.util import find_spec

    return find_spec("pip") is not None


def _package(requirement) -> Row:
    found, within = _version(requirement)
    if found is None:
        return Row(requirement.name, "fail", "not installed", _install([requirement]))
    if not within:
        return Row(requirement.name, "warn", f"{found} is outside {requirement.specifier}, untested", _install([requirement]))
    return Row(requirement.name, "ok", found)


def _extra(name: str, needs: list) -> Row:
    found = {r.name: _version(r) for r in needs}
    if all(within for _, within in found.values()):
        return Row(f"extra {name}", "ok", ", ".join(f"{n} {v}" for n, (v, _) in found.items()))
    wrong = [f"{n} {v} is out of bounds" if v else f"{n} is not installed" for n, (v, within) in found.items() if not within]
    return Row(f"extra {name}", "warn", f"optional: {', '.join(wrong)}", _install(needs))


# -- the machine --


def _memory() -> Row:
    """Free memory: what the system has available, or what the control group leaves of its limit if that is less."""
    import psutil

    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f).read_text().strip() for f in ("memory.max", "memory.current"))
        if limit != "max":
            free, total = min(free, int(limit) - int(used)), min(total, int(limit))
    except (OSError, ValueError):
        pass  # no control groups of version 2 here: the system's own number holds
    detail = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if free < 3 * GIB:
        return Row("memory", "warn", detail, "the embedded models need about 3 GiB; close something, or use a smaller base")
    return Row("memory", "ok", detail)


def _disk(store: Path) -> Row:
    place = store.absolute()
    while not place.exists():
        place = place.parent
    detail = f"{shutil.disk_usage(place).free / GIB:.1f} GiB free at {store}"
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        return Row("disk", "fail", f"{place} cannot be written to", "give a store that can be with --store or $SLMKIT_STORE")
    if shutil.disk_usage(place).free < 2 * GIB:
        return Row("disk", "warn", detail, "`slmkit gc` frees what nothing refers to; or give another place with --store")
    return Row("disk", "ok", detail)


def _hub() -> Row:
    """Whether the hub (HF_ENDPOINT, else huggingface.co) answers a HEAD within 5 seconds; any answer will do."""
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    mend = "check the network, proxy and HF_ENDPOINT; without the hub, use local folders, or what is locked and downloaded"
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5):
            return Row("hub", "ok", f"{endpoint} answers")
    except urllib.error.HTTPError as e:
        level = "warn" if e.code >= 500 else "ok"
        return Row("hub", level, f"{endpoint} answers {e.code}", mend if level == "warn" else None)
    except (OSError, ValueError) as e:  # URLError and timeouts are OSErrors; ValueError is an endpoint that is no URL
        return Row("hub", "warn", f"{endpoint} cannot be reached: {getattr(e, 'reason', e)}", mend)


# -- what has to be run to be believed --


def _invariances() -> list[Row]:
    """What must hold of training, tried on the embedded student."""
    from slmkit import demo

    found = _probes.finish(_probes.start_module("slmkit.ml.invariances", str(demo.path("student")), str(demo.path("train"))))
    if isinstance(found, dict):
        return [Row("training", "fail", found["error"], "`slmkit doctor` says what is missing")]
    mend = "do not trust trainings on this machine before it is mended; the versions of constraints.txt are known to hold it"
    said = [(f"{r['what']}: {r['apart']:.1e} apart, {r['bound']:.0e} allowed", r["ok"]) for r in found]
    return [Row("training", "ok" if ok else "fail", text, None if ok else mend) for text, ok in said]


def _torch_rows(found: dict) -> list[Row]:
    if "error" in found:
        return [Row("torch runs", "fail", found["error"], "install torch again; `python -c 'import torch'` shows all of it")]
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "CPU"
    rows = [Row("torch runs", "ok", f"{found['version']}, {build} build, {found['threads']} threads")]
    ratio = found["bf16"]
    speed = f"a matrix product takes {ratio:.2f} × the time of fp32"
    slow = "set `precision: fp32` in train steps that run on this CPU"
    rows.append(Row("cpu bf16", "ok", f"fast: {speed}") if ratio < 1.1 else Row("cpu bf16", "warn", f"slow: {speed}", slow))
    for gpu in found["gpus"]:
        detail = f"{gpu['name']}, {gpu['bytes'] / GIB:.0f} GiB, bf16 {'yes' if gpu['bf16'] else 'no'}"
        rows.append(Row("gpu", "ok", detail))
    if not found["gpus"]:
        rows.append(_no_gpu(build))
    return rows


def _no_gpu(build: str) -> Row:
    if not shutil.which("nvidia-smi"):
        return Row("gpu", "ok", "none; everything in the core chain runs on the CPU")
    if build == "CPU":
        return Row("gpu", "warn", "an NVIDIA driver, but torch is a CPU build", "install torch's CUDA build (pytorch.org)")
    return Row("gpu", "warn", "an NVIDIA driver, but torch sees no GPU", "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES")


def _nf4_row(found: dict) -> Row:
    mend = "install the bitsandbytes of constraints.txt again; until then use `method: lora` instead of qlora"
    if "error" in found:
        return Row("nf4 on cpu", "fail", f"bitsandbytes does not run: {found['error']}", mend)
    sane = found["quantization"] < NF4_ERROR and found["forward"] < 0.02 and found["after"] == 0
    detail = "relative error {quantization:.3f} of the weights, {forward:.1e} of the forward, {after:.1e} after it"
    if not sane:
        return Row("nf4 on cpu", "fail", f"wrong numbers: {detail.format(**found)}", mend)
    return Row("nf4 on cpu", "ok", detail.format(**found))
