"""What an adapter does to its base, tensor by tensor, in fp32: W + s·B·A, and what its variants make of that.

LoRA (https://arxiv.org/abs/2106.09685): s = alpha / r; rsLoRA (https://arxiv.org/abs/2312.03732): s = alpha / √r; DoRA (https://arxiv.org/abs/2402.09353):
the rows of W + s·B·A scaled to the learned lengths m. rank_pattern and alpha_pattern give single layers an r and an alpha of their own;
modules_to_save are replaced whole. What is not known here is refused: a merge that leaves something out is worse than none. peft is the oracle
in the tests, and every merge is measured against the adapter as it was trained.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open

from slmkit.errors import StepFailed

PREFIX = "base_model.model."
PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
STRANGE = {
    "use_qalora": False, "layer_replication": None, "trainable_token_indices": None, "target_parameters": None, "lora_bias": False,
    "alora_invocation_tokens": None,
}  # fmt: skip
"""Settings of peft that change what an adapter is, and the values that leave it plain LoRA."""


def scale(config: dict[str, Any], module: str, rank: int) -> float:
    """By what a layer's B·A is multiplied, as peft's config says."""
    own = config.get("alpha_pattern") or {}
    alpha = own.get(get_pattern_key(list(own), module), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


class Adapter:
    """A peft folder: which weights of the base it changes, and into what."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        self._refuse_strange()
        self.file = folder / "adapter_model.safetensors"
        if not self.file.is_file():
            raise StepFailed("this adapter has no adapter_model.safetensors", where=folder, mend="save it with peft's save_pretrained")
        self.lora: dict[str, dict[str, str]] = {}  # module → part → key in the file
        self.whole: dict[str, str] = {}  # name of a weight → key in the file of what replaces it
        self.below: dict[str, str] = {}  # the same of what it was trained on, where peft wrote that too (embeddings, perhaps resized)
        with safe_open(self.file, framework="pt") as opened:
            for key in opened.keys():
                self._sort(key)

    def _refuse_strange(self) -> None:
        said = self.config
        odd = [k for k, plain in STRANGE.items() if said.get(k, plain) not in (plain, [], {}, None)]
        if said.get("peft_type") != "LORA":
            raise StepFailed(f"an adapter of type {said.get('peft_type')} cannot be merged, only LORA", where=self.folder)
        if said.get("bias", "none") != "none":
            odd.append("bias")
        if odd:
            raise StepFailed(f"this adapter sets `{odd[0]}: {said[odd[0]]}`, which is not merged here", where=self.folder, mend="serve it unmerged")

    def _sort(self, key: str) -> None:
        if not key.startswith(PREFIX):
            raise StepFailed(f"the adapter holds `{key}`, which is no weight of an adapter", where=self.folder)
        name = key[len(PREFIX) :]
        found = re.fullmatch(rf"(.+)\.({'|'.join(PARTS)})(?:\.weight)?", name)
        if found:
            self.lora.setdefault(found[1], {})[found[2]] = key
        elif name.endswith(".base_layer.weight"):
            self.below[name.replace(".base_layer", "")] = key
        else:
            self.whole[name] = key

    def read(self, key: str) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as opened:
            return opened.get_tensor(key).float()

    @property
    def names(self) -> set[str]:
        """Weights of the base that it changes."""
        return {f"{module}.weight" for module in self.lora} | set(self.whole)

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight, fp32, where `weight` is; that as the base has it, [out, in] (or [in, out] where the config says fan_in_fan_out)."""
        if name in self.whole:
            return self.read(self.whole[name]).to(weight.device)
        parts = self.lora.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if parts is None:
            return weight
        where, module = weight.device, name.removesuffix(".weight")
        weight = self.read(self.below[name]).to(where) if name in self.below else weight.float()
        turned = bool(self.config.get("fan_in_fan_out")) and "lora_A" in parts
        merged = (weight.T if turned else weight) + self.delta(module).to(where) * self.scale(module)
        if "lora_magnitude_vector" in parts:
            lengths = self.read(parts["lora_magnitude_vector"]).to(where)
            merged = merged * (lengths / torch.linalg.norm(merged, dim=1))[:, None]
        return merged.T.contiguous() if turned else merged

    def scale(self, module: str) -> float:
        """s of a layer."""
        return scale(self.config, module, len(self.read(self.lora[module].get("lora_A") or self.lora[module]["lora_embedding_A"])))

    def delta(self, module: str) -> torch.Tensor:
        """B·A of a layer, [out, in], or that of an embedding, [tokens, width]."""
        parts = self.lora[module]
        if "lora_embedding_A" in parts:
            return (self.read(parts["lora_embedding_B"]) @ self.read(parts["lora_embedding_A"])).T
        return self.read(parts["lora_B"]) @ self.read(parts["lora_A"])

    @property
    def idle(self) -> bool:
        """Does it change nothing? All of B is zero, and nothing is replaced or rescaled."""
        if self.whole or any("lora_magnitude_vector" in p for p in self.lora.values()):
            return False
        return not any(self.read(p.get("lora_B") or p["lora_embedding_B"]).any() for p in self.lora.values())
