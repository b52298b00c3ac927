"""The verb `serve`: an OpenAI-compatible server over a model, on this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from slmkit.cli import out
from slmkit.cli.given import model_given
from slmkit.cli.verbs import STORE, JsonOpt, LockedOpt, StoreOpt, quiet_libraries
from slmkit.errors import CannotRun, UsageError

ModelArg = Annotated[
    str, typer.Argument(metavar="MODEL", show_default=False, help="A folder, recipe/step, an artifact, hf:OWNER/NAME, or demo:teacher.")
]
AdapterOpt = Annotated[
    list[str] | None, typer.Option("--adapter", metavar="NAME=REF", help="Serve this adapter on the model too, as NAME. May be repeated.")
]


def serve(
    model: ModelArg, adapter: AdapterOpt = None,
    name: Annotated[str | None, typer.Option("--name", help="What clients call the model. [default: MODEL as given]")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    batch: Annotated[int, typer.Option("--batch", help="Answers that are written at once, at most.", min=1, max=1024)] = 32,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto (the model's own), fp32, bf16 or fp16.")] = "auto",
    api_key_env: Annotated[str | None, typer.Option("--api-key-env", metavar="NAME", help="Variable with a key that clients must send.")] = None,
    store: StoreOpt = STORE, json: JsonOpt = False, locked: LockedOpt = None,
) -> None:
    """Serve a model over OpenAI's interface (chat, completions, streaming, logprobs), until it is told to stop.

    \b
      slmkit serve demo:teacher --port 8000
      slmkit serve support/tuned --adapter v2=support/sft --api-key-env SERVE_KEY
      url=$(slmkit serve demo:teacher --port 0 | head -1)      # the URL is printed when it answers

    SIGTERM and Ctrl-C let running requests finish.
    """
    stdout = out.Stdout()
    quiet_libraries()
    screen = out.Terminal(False, False)
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise CannotRun(f"the environment variable {api_key_env} is not set", mend=f"export {api_key_env}=… before serving")
    if dtype not in ("auto", "fp32", "bf16", "fp16"):
        raise UsageError(f"--dtype {dtype}: no such number format", mend="auto, fp32, bf16 or fp16")
    given = {name or model: model_given(model, store, locked)}
    for text in adapter or []:
        label, equals, reference = text.partition("=")
        if not equals or not label or not reference:
            raise UsageError(f"--adapter {text}: not of the form NAME=REF", mend="for example --adapter v2=support/sft")
        if label in given:
            raise UsageError(f"--adapter {text}: the name `{label}` is taken", mend="choose another")
        given[label] = model_given(reference, store, locked)
    from slmkit.serve import server

    def ready(url: str) -> None:
        screen.say(f"serving {', '.join(given)} at {url}")
        if json:
            stdout.object({"url": url, "models": list(given)})
        else:
            stdout.line(url)

    server.run(given, server.Place(host, port, device, dtype), batch, key, ready)


COMMANDS = {"serve": serve}
