"""Other toolkits that ask a teacher: how each is installed into an environment of its own, and the program that it runs there.

Each is written as its own documentation does it, with the concurrency that it takes as a setting, and no cache of an earlier run.

    python peers.py distilabel|curator URL PROMPTS.jsonl OUT.jsonl CONCURRENCY      # inside that environment
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PACKAGE = {"distilabel": ["distilabel[openai]", "requests"], "curator": ["bespokelabs-curator"]}  # distilabel 1.5 imports requests, and asks for none
QUIET = {
    "distilabel": {"HF_HUB_OFFLINE": "1"},
    "curator": {"TELEMETRY_ENABLED": "0", "CURATOR_DISABLE_CACHE": "1", "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
}


def python(cache: Path, name: str) -> Path:
    return cache / name / "bin/python"


def setup(cache: Path, name: str) -> None:
    """Make the environment; what fails says so in pip's words."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", cache / name], check=True)
    subprocess.run([python(cache, name), "-m", "pip", "install", "--quiet", *PACKAGE[name]], check=True)


def distilabel(url: str, rows: list[dict], concurrency: int) -> list[str]:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="bench") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": r["prompt"]} for r in rows], batch_size=concurrency)
        llm = OpenAILLM(model="bench", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 64})
        load >> TextGeneration(llm=llm, input_batch_size=concurrency)
    return list(pipeline.run(use_cache=False)["default"]["train"]["generation"])


def curator(url: str, rows: list[dict], concurrency: int) -> list[str]:
    import importlib.util
    import os

    # it counts with cl100k_base, which tiktoken would fetch; its dependency litellm has the file in tiktoken's own form
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(importlib.util.find_spec("litellm").origin).parent / "litellm_core_utils/tokenizers")
    from bespokelabs.curator import LLM

    class Label(LLM):
        def prompt(self, row: dict) -> str:
            return row["prompt"]

        def parse(self, row: dict, response: str) -> dict:
            return {"answer": response}

    limits = {"max_concurrent_requests": concurrency, "max_requests_per_minute": 10**9, "max_tokens_per_minute": 10**12}
    where = {"base_url": url, "api_key": "none"}
    llm = Label(model_name="bench", backend="openai", backend_params=where | limits, generation_params={"max_tokens": 64})
    found = llm([{"prompt": r["prompt"]} for r in rows])
    return list(getattr(found, "dataset", found)["answer"])


if __name__ == "__main__":
    name, url, prompts, out, concurrency = sys.argv[1:]
    rows = [json.loads(line) for line in Path(prompts).read_text().splitlines()]
    said = {"distilabel": distilabel, "curator": curator}[name](url, rows, int(concurrency))
    Path(out).write_text("".join(json.dumps({"prompt": r["prompt"], "answer": a}) + "\n" for r, a in zip(rows, said, strict=True)))
