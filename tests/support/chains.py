"""A chain of artifacts as the steps leave them, written by hand through the real store: a teacher's data, an adapter, a merge, INT4, an eval."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from slmkit.artifact import digest, manifest
from slmkit.artifact.fingerprint import fingerprint
from slmkit.artifact.manifest import Artifact
from slmkit.artifact.store import Store
from tests.support import evals

RECIPE = "recipe: shop\nsteps: {}   # <script>window.touched = 'recipe'</script>\n"
XRAY = {
    "schema": "slmkit.xray/1", "data": {"name": "train.jsonl", "form": "messages", "format": "messages", "rows": 1200, "dropped": {}},
    "validation": None, "roles": {"user": 1200, "assistant": 1200}, "languages": {"en": 1180, "de": 20},
    "duplicates": {k: {"rows": 3, "shown": []} for k in ("exact", "near", "conflicting")},
    "leaks": [{"against": "notes", "questions": 40, "leaked": 0, "kinds": {}, "shown": []}], "empty": {}, "personal": {}, "tasks_not_read": [],
    "findings": [{"kind": "duplicates", "level": "warning", "count": 3, "what": "copies of another row: 3 rows", "where": [], "allow": ""}],
    "tokens": {
        "min": 10, "median": 42, "p95": 77, "max": 90, "mean": 45.0, "sum": 54000, "trained": 21000, "max_length": 96,
        "histogram": {"edges": [10, 30, 50, 70, 91], "counts": [200, 600, 300, 100]}, "untrained": {"rows": 0, "shown": []},
        "left_out": {"rows": 7, "shown": []}, "cut": {},
    },
}  # fmt: skip
CERTIFICATE = {
    "answers": 8, "answers_identical": 7, "answers_ended_after": 8, "answers_ended_before": 8, "bounds": {"mean_kl": 0.3, "ended": 0.25},
    "finite": True, "max_kl": 0.12, "mean_kl": 0.00057, "p99_kl": 0.0101, "perplexity_after": 1.1395, "perplexity_before": 1.1391,
    "probes": 24, "runtime": "transformers",
    "source": "teach", "template_same": True, "tokens": 768, "top1": 0.997, "worst_layer": "model.layers.0",
}  # fmt: skip
DEMO = {
    "base": ("demo:student", "a" * 64, 2_029_126), "teacher": ("demo:teacher", "b" * 64, 6_618_974), "notes": ("demo:notes", "c" * 64, 51_674),
}  # fmt: skip


def given(role: str, source: Artifact | str, type_: str = "model", name: str | None = None, **more) -> dict:
    """An input as the engine records it: an artifact, or one of DEMO by name."""
    if isinstance(source, Artifact):
        uri, mark, size, kind = f"artifact:{source.path.name}", source.fingerprint, source.manifest["outputs"]["bytes"], source.type
        own = {"name": source.name, "type": kind, "uri": uri, "digest": source.digest, "fingerprint": mark, "bytes": size}
    else:
        own = dict(zip(("uri", "digest", "bytes"), DEMO[source], strict=True)) | {"name": source, "type": type_, "fingerprint": None}
    return own | {"role": role, "revision": None, "columns": None, "name": name or own["name"]} | more


def put(store: Store, kind: str, type_: str, name: str, inputs: list[dict], files: dict[str, str], recipe: str = "shop", **more) -> Artifact:
    """Publish an artifact. more: config, result, seconds, cost, write (fills the folder)."""
    config, write = more.get("config", {}), more.get("write")
    body = {"schema": 1, "kind": kind, "version": 1, "config": config, "pins": {}, "inputs": {"made": [name, recipe, *(i["digest"] for i in inputs)]}}
    mark = fingerprint(body)
    with store.hold(kind, mark, True, print) as work:
        out = work / "out"
        for path, text in ({".slmkit/recipe.yaml": RECIPE, "README.md": f"# {name}\n"} | files).items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text, encoding="utf-8", errors="surrogatepass")
        result = more.get("result", {}) | (write(out) if write else {})
        listed = digest.listing(out)
        seconds = more.get("seconds", 2.5)
        manifest.write(out, {
            "schema": manifest.SCHEMA, "kind": kind, "kind_version": 1, "type": type_, "fingerprint": mark, "fingerprint_payload": body,
            "config": config, "pins": {}, "name": name, "recipe": recipe, "overrides": more.get("overrides", []), "execution": {},
            "run": {"finished": "2026-01-02T03:04:05.678Z", "seconds": seconds, "attempts": 1, "argv": ["/x/slmkit/__main__.py", "run", "a b.yaml"]},
            "tool": {"slmkit": "0.1.0", "commit": "d" * 40, "dirty": True},
            "environment": {"python": "3.11.7", "platform": "Linux", "cpus": 2, "gpus": [], "cuda": None, "packages": {"torch": "2.13.0"}},
            "determinism": {"seed": 0, "claimed": "exact"}, "inputs": inputs, "result": result, "cost": {"seconds": seconds} | more.get("cost", {}),
            "outputs": {"digest": digest.of_listing(listed), "bytes": sum(f["bytes"] for f in listed), "files": listed},
        })  # fmt: skip
        made = store.publish(work, kind, mark)
    store.name(recipe, name, made)
    return made


def events(losses: dict[int, float], held_out: dict[int, float]) -> str:
    told = (("step", losses), ("validation", held_out))
    return "".join(json.dumps({"event": name, "step": s, "loss": v}) + "\n" for name, values in told for s, v in values.items())


def questions(count: int = 40) -> dict[str, dict]:
    """Four models on one task: right or wrong, and a share. The base is nearly always wrong, INT4 loses a little."""
    draw = random.Random(5)
    out: dict[str, dict] = {}
    for model, rate in {"base": 0.1, "teacher": 0.95, "tuned": 0.9, "int4": 0.85}.items():
        right = [float(draw.random() < rate) for _ in range(count)]
        out[model] = {"notes": {"exact_match": right, "f1": [min(1.0, r + round(draw.random() * 0.4, 3)) for r in right]}}
    return out


def build(
    store: Store, models: dict | None = None, recipe: str = "shop", eval_result: dict | None = None,
    spoil: Callable[[Path], None] | None = None, **asked,
) -> dict[str, Artifact]:
    """The whole chain; its steps by name. spoil: changes the eval's folder before it is published. asked: for tests.support.evals.write."""
    curve = events({s: 3 / s + 0.1 for s in range(1, 61)}, {30: 0.4, 60: 0.3})
    teach = put(store, "distill", "dataset", "teach", [given("teacher", "teacher")], {"train.jsonl": '{"a": 1}\n'}, recipe,
                result={"rows": 1200, "requests": 1210, "answered": 1210, "from_ledger": 10, "dropped": {"json_schema": 10}, "tokens": 98_765,
                        "usd": 1.75},
                config={"mode": "answer", "terms": "our own model"}, cost={"tokens": 98_765, "usd": 1.75}, seconds=37.81)  # fmt: skip
    sft = put(store, "train", "adapter", "sft", [given("model", "base"), given("data", teach)],
              {"xray.json": json.dumps(XRAY), ".slmkit/attempt-1/events.jsonl": curve}, recipe, config={"method": "qlora", "objective": "sft"},
              seconds=76.7)
    tuned = put(store, "merge", "model", "tuned", [given("model", sft), given("probes", teach, witness=True)],
                {".slmkit/fidelity.json": json.dumps(CERTIFICATE), "model.bin": "w" * 5000}, recipe)
    int4 = put(store, "quantize", "model", "int4", [given("model", tuned)], {".slmkit/fidelity.json": json.dumps(CERTIFICATE)}, recipe,
               config={"method": "gptq", "bits": 4})
    sizes = {"base": 1_972_448, "teacher": 6_562_296, "tuned": 1_972_448, "int4": 754_592}
    speed = {m: {"tokens_per_second": 4000.5 + 700 * i, "seconds": 1.25 + i} for i, m in enumerate(sizes)}
    figures = {"bound": ">= 0.6", "value": 0.85, "low": 0.72, "high": 0.93, "questions": 40, "needed": None, "method": "exact"}
    checks = [{"name": "int4.notes.exact_match", "ok": True, "verdict": "pass", "detail": "fine", "figures": figures}]
    models = models or questions()
    score = put(store, "eval", "scores", "score",
                [*(given("models", s, name=m) for m, s in (("base", "base"), ("teacher", "teacher"), ("tuned", tuned), ("int4", int4))),
                 given("tasks", "notes", "task")], {}, recipe,
                config={"expect": {"int4.notes.exact_match": ">= 0.6"}, "made": len(str(models))}, write=lambda out: _eval(out, models, spoil, asked),
                result={"speed": speed, "size_bytes": sizes, "checks": checks} | (eval_result or {}))  # fmt: skip
    return {"teach": teach, "sft": sft, "tuned": tuned, "int4": int4, "score": score}


def _eval(out: Path, models: dict, spoil: Callable[[Path], None] | None, asked: dict) -> dict:
    told = evals.write(out, models, **asked)
    if spoil:
        spoil(out)
    return {"scores": told}


def finder(store: Store):
    known = {a.fingerprint: a for a in store.artifacts()}
    return known.get
