"""An exported model in the runtime that will serve it: llama.cpp for a GGUF file, onnxruntime for an ONNX folder. One request after another.

Texts are read, and conversations rendered, by what is in the export, as its users will have it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from slmkit.errors import UsageError
from slmkit.ml.subjects import talk

LENGTH = 2048  # tokens of context, unless the model has less


class Engine(Protocol):
    """What a runtime does. length: its longest context; ends: ids that end an answer; template: the chat template's text."""

    name: str
    length: int
    ends: set[int]
    template: str | None

    def ids(self, text: str, special: bool = False) -> list[int]: ...
    def text(self, ids: list[int]) -> str: ...
    def logits(self, ids: list[int]) -> torch.Tensor: ...
    def written(self, prompt: list[int], most: int, ends: frozenset[int], enough: Callable[[list[int]], bool]) -> list[int]: ...
    def render(self, messages: list[dict]) -> str | None: ...


class Runtime(TemplateLM):
    """One engine, as lm-eval wants a model. report(tokens, tokens per second)."""

    def __init__(self, engine: Engine, report: Callable[[float, float], None]):
        super().__init__()
        self.engine, self.report = engine, report
        self.seconds, self.tokens, self.batch_size = 0.0, 0, 1

    @property
    def eot_token_id(self) -> int:
        return min(self.engine.ends)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: BOS where the export has one."""
        around = self.engine.ids("a", True)
        return around[0] if around[0] != self.engine.ids("a")[0] else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self.engine.length

    @property
    def tokenizer_name(self) -> str:
        return self.engine.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = self.engine.ids(string)
        if add_special_tokens is False:
            return ids
        whole = self.engine.ids(string, True)
        return ids if ids[:1] == whole[:1] == whole[1:2] else whole  # a rendered conversation may bring its own BOS

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        messages, tools = talk.unfolded(chat_history)
        if tools:
            raise UsageError(f"{self.engine.name} is not asked with tools here", mend="evaluate the model before its export on this task")
        return self.engine.render(messages)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.engine.template if chat_template else None

    def _timed(self, call: Callable[[], Any], count: Callable[[Any], int]) -> Any:
        if hasattr(self.cache_hook, "flush"):
            self.cache_hook.flush()
        started = time.perf_counter()
        out = call()
        self.seconds += time.perf_counter() - started
        self.tokens += count(out)
        self.report(self.tokens, self.tokens / max(self.seconds, 1e-9))
        return out

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        out = []
        for key, context, continuation in requests:
            ids = (context + continuation)[-(self.engine.length + 1) :]
            logits = self._timed(lambda ids=ids: self.engine.logits(ids[:-1]), lambda _, ids=ids: len(ids))
            rows = torch.log_softmax(logits[-len(continuation) :].float(), -1)
            target = torch.tensor(continuation)
            answer = (float(rows.gather(1, target[:, None]).sum()), bool((rows.argmax(-1) == target).all()))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", list(key), answer)
            out.append(answer)
        return out

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        out = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text, False), self.prefix_token_id, self.engine.length, 1)
            total = sum(one[0] for one in self._loglikelihood_tokens([(None, *make_disjoint_window(w)) for w in windows]))
            self.cache_hook.add_partial("loglikelihood_rolling", [text], total)
            out.append(total)
        return out

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        return [self._generated(*request.args) for request in requests]

    def _generated(self, context: str, settings: dict) -> str:
        kwargs = normalize_gen_kwargs(dict(settings), 256)
        stops = [s for s in handle_stop_sequences(kwargs.pop("until", None), eos=None) if s]
        most = kwargs.pop("max_gen_toks")
        if kwargs.get("do_sample") or kwargs.get("temperature"):
            raise UsageError(f"{self.engine.name} answers greedily here, and a task wants samples", mend="set `do_sample: false` in the task")
        prompt = self.tok_encode(context)[-max(1, self.engine.length - most) :]
        enough = lambda ids: any(s in self.engine.text(ids) for s in stops)  # noqa: E731
        ids = self._timed(lambda: self.engine.written(prompt, most, frozenset(self.engine.ends), enough), len)
        said = [i for i in ids if i not in self.engine.ends]
        answer = postprocess_generated_text(generation=self.engine.text(said), stop=stops, think_end_token=None)
        self.cache_hook.add_partial("generate_until", [context, settings], answer)
        return answer


def engine_of(folder: Path, type_: str, threads: int | None) -> Engine:
    """The engine of an export: a folder that slmkit wrote, or a GGUF file."""
    if type_ == "gguf":
        from slmkit.ml.export.llama import Llama

        return Llama(gguf_file(folder), LENGTH, threads)
    from slmkit.ml.export.onnx import Onnx

    return Onnx(folder, LENGTH, threads)


def gguf_file(path: Path) -> Path:
    """The one GGUF file that a path is or holds."""
    found = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise UsageError(f"{path} holds {len(found)} GGUF files, and one is evaluated", mend="name the file")
    return found[0]
