"""An ONNX folder as onnxruntime-genai runs it on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from slmkit.errors import StepFailed


class Onnx:
    """A folder with a genai_config.json. length: the most tokens of a prompt and its answer."""

    def __init__(self, folder: Path, length: int, threads: int | None = None):
        import onnxruntime_genai as genai

        self.genai, self.length = genai, length
        self.name = f"onnxruntime-genai {genai.__version__}"
        config = genai.Config(str(folder))
        if threads:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        try:
            self.model = genai.Model(config)
        except RuntimeError as e:
            raise StepFailed(f"onnxruntime cannot read what was written: {e}", where=folder) from None
        self.tokenizer = genai.Tokenizer(self.model)

    def _begun(self, ids: list[int]):
        settings = self.genai.GeneratorParams(self.model)
        settings.set_search_options(max_length=self.length, do_sample=False)
        try:
            generator = self.genai.Generator(self.model, settings)
            generator.append_tokens(ids)
        except RuntimeError as e:
            raise StepFailed(f"onnxruntime cannot run what was written: {e}", mend="write `format: gguf`, if llama.cpp runs it") from None
        return generator

    def logits(self, ids: list[int]) -> torch.Tensor:
        return torch.from_numpy(self._begun(ids).get_output("logits")[0].astype("float32"))

    def greedy(self, prompts: list[list[int]], most: int, ends: frozenset[int]) -> list[list[int]]:
        return [self._answer(p, min(most, self.length - len(p)), ends) for p in prompts]

    def _answer(self, prompt: list[int], most: int, ends: frozenset[int]) -> list[int]:
        written: list[int] = []
        generator = self._begun(prompt)
        while len(written) < most and not generator.is_done():
            generator.generate_next_token()
            written.append(int(generator.get_next_tokens()[0]))
            if written[-1] in ends:
                break
        return written

    def render(self, messages: list[dict]) -> str | None:
        """By the template in the folder, as onnxruntime-genai renders it; None where it cannot."""
        try:
            return self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        except RuntimeError:
            return None

    def ids(self, text: str, special: bool = False) -> list[int]:
        """This runtime puts nothing around a text of its own accord, so `special` says nothing: a prompt is written out whole."""
        return [int(i) for i in self.tokenizer.encode(text)]
