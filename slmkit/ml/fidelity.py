"""The fidelity certificate: what merging, quantizing or exporting did to a model, measured before the artifact is published.

The same probes go through the model before and after, after in the runtime that will serve it: KL divergence and agreement along the answers,
perplexity, greedy answers, the chat template as each renders it. Of a fault it tells the probe that it hits hardest, and the layer from which on
the hidden states part. Outside its bounds (`steps/_fidelity.py`) a step fails, and keeps its work: the next run judges it again.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from slmkit.errors import StepFailed
from slmkit.ml import answers, models
from slmkit.ml.lora import decoder
from slmkit.ml.probes import WRITTEN, Probes, choose
from slmkit.steps import _fidelity
from slmkit.steps._step import Card, Context, Given, Result

FILE = ".slmkit/fidelity.json"
ASKED = 8  # probes that are answered greedily
HIDDEN = 8  # probes whose hidden states are compared
SHARED = 32  # placed tokens from the front whose hidden states are kept of each


class Runtime(Protocol):
    """What runs a model. logits: fp32 [len, vocabulary] after each of `ids`; greedy: what it writes after each prompt, with the id that ended it;
    render: the chat template's text of messages with the generation prompt, None where it has no template."""

    name: str

    def logits(self, ids: list[int]) -> torch.Tensor: ...
    def greedy(self, prompts: list[list[int]], most: int, ends: frozenset[int]) -> list[list[int]]: ...
    def render(self, messages: list[dict]) -> str | None: ...


class Transformers:
    """A folder (a model, an adapter on its base, quantized or not) as slmkit loads it: also what eval and serve run."""

    def __init__(self, given: Given, where: torch.device, name: str = "transformers", dtype: torch.dtype | None = None):
        self.where, self.name = where, name
        self.model, self.tokenizer = models.load(given, where, dtype=dtype), models.tokenizer(given)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids], device=self.where)).logits[0].float().cpu()

    @torch.no_grad()
    def hidden(self, ids: list[int]) -> list[tuple[str, torch.Tensor]]:
        """(name of a layer, fp32 [len, width] of what leaves it): the embedding, every block, and before the output layer."""
        prefix, blocks = decoder(self.model)
        states = self.model(torch.tensor([ids], device=self.where), output_hidden_states=True).hidden_states
        names = ["the embedding", *(f"{prefix}.{i}" for i in range(len(blocks)))]
        return [(n, s[0].float().cpu()) for n, s in zip(names, states, strict=True)]

    def greedy(self, prompts: list[list[int]], most: int, ends: frozenset[int]) -> list[list[int]]:
        pad = self.tokenizer.pad_token_id
        return answers.greedy(self.model, prompts, set(ends), 0 if pad is None else pad, most, self.where)

    def render(self, messages: list[dict]) -> str | None:
        if not self.tokenizer.chat_template:
            return None
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@dataclass
class Reading:
    """What a runtime said on the probes. logits: of each probe, those that predict its measured tokens."""

    logits: list[torch.Tensor]
    greedy: list[list[int]]
    rendered: list[str | None]
    hidden: list[list[tuple[str, torch.Tensor]]] = field(default_factory=list)
    runtime: str = ""


def take(runtime: Runtime, asked: Probes) -> Reading:
    """Run the probes, one at a time, unpadded."""
    said = logits(runtime, asked)
    greedy = runtime.greedy([p.prompt for p in asked.probes[:ASKED]], WRITTEN, asked.ends)
    rendered = [runtime.render(m[:-1] if m[-1]["role"] == "assistant" else m) for m in asked.messages]
    hidden = getattr(runtime, "hidden", None)
    states = [[(n, s[:SHARED].clone()) for n, s in hidden(list(p.ids[: p.end]))] for p in asked.probes[:HIDDEN]] if hidden else []
    return Reading(said, greedy, rendered, states, runtime.name)


def logits(runtime: Runtime, asked: Probes) -> list[torch.Tensor]:
    """Of each probe, those that predict its measured tokens."""
    return [runtime.logits(list(p.ids[: p.end]))[p.start - 1 : p.end - 1].clone() for p in asked.probes]


def compare(before: Reading, after: Reading, asked: Probes) -> dict[str, Any]:
    """The certificate."""
    known = min(before.logits[0].shape[1], after.logits[0].shape[1])  # rows that only pad an embedding take no part
    divergence, same, nats = [], [], ([], [])
    finite = all(torch.isfinite(x).all() for x in (*before.logits, *after.logits))
    for probe, old, new in zip(asked.probes, before.logits, after.logits, strict=True):
        p, q = (x[:, :known].double().log_softmax(-1) for x in (old, new))
        divergence.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
        same.append(p.argmax(-1) == q.argmax(-1))
        target = torch.tensor(probe.ids[probe.start : probe.end])[:, None]
        for kept, logs in zip(nats, (p, q), strict=True):
            kept.append(-logs.gather(1, target)[:, 0])
    everywhere = torch.cat(divergence)
    by_probe = torch.stack([d.mean() for d in divergence])
    ended = [sum(bool(g) and g[-1] in asked.ends for g in reading.greedy) for reading in (before, after)]
    certificate = {
        "probes": len(asked.probes), "source": asked.source, "tokens": len(everywhere), "runtime": after.runtime, "runtime_before": before.runtime,
        "mean_kl": everywhere.mean().item(), "p99_kl": torch.quantile(everywhere, 0.99).item(), "max_kl": everywhere.max().item(),
        "top1": torch.cat(same).double().mean().item(),
        "perplexity_before": torch.cat(nats[0]).mean().exp().item(), "perplexity_after": torch.cat(nats[1]).mean().exp().item(),
        "answers": len(before.greedy), "answers_identical": sum(a == b for a, b in zip(before.greedy, after.greedy, strict=True)),
        "answers_ended_before": ended[0], "answers_ended_after": ended[1],
        "template_same": before.rendered == after.rendered, "finite": bool(finite),
        "worst_probe": asked.probes[int(by_probe.argmax())].name, "worst_probe_kl": by_probe.max().item(),
    }  # fmt: skip
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in certificate.items()} | _parting(before, after)


def _parting(before: Reading, after: Reading) -> dict[str, Any]:
    """The layer at which the hidden states part most: the largest step of their relative error from one layer to the next."""
    if not before.hidden or not after.hidden:
        return {}
    names = [n for n, _ in after.hidden[0]] + ["the output layer"]
    errors = [_error([r[i][1] for r in before.hidden], [r[i][1] for r in after.hidden]) for i in range(len(names) - 1)]
    centred = [[x - x.mean(-1, keepdim=True) for x in reading.logits[:HIDDEN]] for reading in (before, after)]
    errors.append(_error(*centred) if centred[0][0].shape == centred[1][0].shape else errors[-1])
    steps = [now - earlier for now, earlier in zip(errors, [0.0, *errors], strict=False)]
    worst = max(range(len(steps)), key=lambda i: steps[i] if steps[i] == steps[i] else float("inf"))
    return {"worst_layer": names[worst], "relative_error_by_layer": {n: e if math.isfinite(e) else None for n, e in zip(names, errors, strict=True)}}


def _error(old: list[torch.Tensor], new: list[torch.Tensor]) -> float:
    off = sum((a - b).double().square().sum() for a, b in zip(old, new, strict=True))
    return (off / sum(a.double().square().sum() for a in old).clamp(min=1e-30)).sqrt().item()


def weights_finite(folder: Path) -> str | None:
    """The name of a stored tensor that holds something other than finite numbers."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                value = opened.get_tensor(key)
                if value.is_floating_point() and not torch.isfinite(value.float()).all():
                    return key
    return None


def certified(
    ctx: Context, said: _fidelity.Fidelity | None, usual: dict[str, float], probed: Given, before: Callable[[], Runtime],
    work: Callable[[Probes, Reading], Result], after: Callable[[Path], Runtime],
) -> Result:  # fmt: skip
    """Do a step's `work`, which fills ctx.out, and publish nothing that is not what it was made from.

    probed: the model whose tokenizer reads the probes. before, after: load what is compared; each is let go before the next. The certificate goes
    into .slmkit/fidelity.json, the result and the card. Raises StepFailed outside the bounds, with the work kept in the step's state.
    """
    kept = ctx.state / "kept"
    if (kept / "result.json").is_file():
        result, certificate = _again(ctx, kept)
    else:
        asked = choose(ctx.inputs.get("probes") or _own(ctx), probed)
        old = _reading(before, asked)
        result = work(asked, old)
        certificate = compare(old, _reading(lambda: after(ctx.out), asked), asked)
        if broken := weights_finite(ctx.out):
            certificate |= {"finite": False, "worst_layer": broken}
    limits = _fidelity.bounds(said, usual)
    wrong = _fidelity.outside(certificate, limits)
    if wrong:
        _keep(ctx, kept, result, certificate)
        place = f"worst at {certificate['worst_layer']}, " if certificate.get("worst_layer") else ""
        raise StepFailed(
            f"what came out is not what went in: {'; '.join(wrong)}; {place}on probe {certificate['worst_probe']}", where=kept / "fidelity.json",
            mend="look for the fault; if this much is meant, set the bound and run again: the work is kept, and is only judged anew",
        )
    models.write_json(_home(ctx.out) / "fidelity.json", certificate | {"bounds": limits})
    told = _fidelity.line(certificate)
    ctx.log("fidelity", what=told)
    short = {k: v for k, v in certificate.items() if k not in ("relative_error_by_layer",)}
    return replace(result, values=result.values | {"fidelity": short}, card=_told(result.card, told))


def _own(ctx: Context) -> tuple[Given, ...]:
    calibration = ctx.inputs.get("calibration")
    return (calibration,) if calibration is not None else ()


def _reading(load: Callable[[], Runtime], asked: Probes) -> Reading:
    runtime = load()
    try:
        return take(runtime, asked)
    finally:
        del runtime
        models.free()


def _home(out: Path) -> Path:
    home = out / ".slmkit"
    home.mkdir(exist_ok=True)
    return home


def _told(card: Card | None, line: str) -> Card | None:
    return card and replace(card, text=card.text.rstrip() + f"\n\n## Fidelity\n\nAgainst what it was made from: {line}. `{FILE}` holds the rest.\n")


def _keep(ctx: Context, kept: Path, result: Result, certificate: dict) -> None:
    """Move what was made aside, whole or not at all."""
    making = kept.with_name("kept.part")
    shutil.rmtree(making, ignore_errors=True)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(ctx.out, making / "out")
    models.write_json(making / "fidelity.json", certificate)
    models.write_json(making / "result.json", asdict(result))
    making.rename(kept)


def _again(ctx: Context, kept: Path) -> tuple[Result, dict]:
    said = json.loads((kept / "result.json").read_text(encoding="utf-8"))
    shutil.copytree(kept / "out", ctx.out, dirs_exist_ok=True)
    card = Card(**said.pop("card")) if said["card"] else said.pop("card")
    return Result(**said | {"card": card, "checks": ()}), json.loads((kept / "fidelity.json").read_text(encoding="utf-8"))
