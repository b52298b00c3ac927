"""What a loopback teacher thinks: functions from a request and the number of the call to the assistant's message, good and bad replies alike.

Which reply is bad is decided by words in the prompt, so a test can say what must become of each.
"""

from __future__ import annotations

import json
import re

TOPICS = ("cards", "loans", "shares", "houses", "fares", "taxes", "insurance", "pensions")


def said(text: str, **more) -> dict:
    return {"role": "assistant", "content": text} | more


def reasoner(body: dict, number: int) -> dict:
    """Adds the numbers of the prompt; reasons as the built-in template asks, or thinks apart where it is not asked to."""
    prompt = body["messages"][-1]["content"]
    total = sum(map(int, re.findall(r"\d+", prompt.partition("Think it through")[0])))
    thought = f"The numbers add up to {total}."
    if "Think it through" not in prompt:
        return said(str(total), reasoning_content=thought) if "silent" not in prompt else said(str(total))
    if "blurt" in prompt:
        return said(f"It is {total}.")
    wrong = total + 1 if "wrong" in prompt else total
    return said(f"{thought}\nAnswer: is what comes next.\n**Answer:** {wrong}")


def writer(body: dict, number: int) -> dict:
    """Writes rows for mode generate: some new, one that it always writes, one that is nearly a seed, and replies that are broken. All are good."""
    text, seed = body["messages"][-1]["content"], body["seed"]
    if "Rubric:" in text:
        return said('{"reason": "so", "score": 9}')
    topic = re.search(r"Topic: (\w+)", text)[1]
    count = int(re.search(r"Write (\d+) new ones", text)[1])
    if seed % 5 == 4:
        return said("I would rather talk about the weather.")
    words = [f"{topic} {TOPICS[(seed * 7 + i * 3) % 8]} in case {seed * 31 + i * 977:05d} of {chr(97 + seed % 26) * 9}" for i in range(count - 2)]
    rows = [{"prompt": f"Tell me of {w}", "answer": f"All about {w}."} for w in words]
    rows += [{"prompt": "What is the same question every time?", "answer": "this one"}, {"question": "no answer here"}]
    return said("Sure!\n```json\n" + json.dumps(rows) + "\n```")


def rewriter(body: dict, number: int) -> dict:
    """Upper case and `please` for what stands in the tags; a prompt with `stubborn` stays as it is."""
    text = body["messages"][-1]["content"]
    inner = re.search(r"<(message|answer)>\n(.*?)\n</\1>", text, re.DOTALL)[2]
    return said(inner if "stubborn" in inner else inner.upper() + " PLEASE")


def critic(body: dict, number: int) -> dict:
    """Answers `quality N` by the seed; judges such answers by their number. `garbled` is never judged, `once` at the second trial."""
    text = body["messages"][-1]["content"]
    if "Rubric:" not in text:
        if "alike" in text:
            return said("quality 5")
        return said(f"quality {1 + (body.get('seed', 0) * 3 + len(text)) % 10}" if "level" not in text else f"quality 5{'!' * body['seed']}")
    if "garbled" in text or ("once" in text and body["seed"] == 0):
        return said("They are all very good, thank you.")
    several = re.findall(r'<answer id="(\d+)">\nquality (\d+)', text)
    if several:
        scores = [{"id": int(i), "score": int(q)} for i, q in several]
        return said(json.dumps(scores[:-1] if "short" in text else scores))
    found = re.search(r"<answer>\nquality (\d+)", text)
    return said(json.dumps({"reason": "by its number", "score": int(found[1]) if found else 1}))


def caller(body: dict, number: int) -> dict:
    """Calls the weather of the place in the prompt; in other ways where the prompt says so."""
    text = body["messages"][-1]["content"]
    place = {"city": text.rpartition(" ")[2], "days": 2}
    call = {"id": "call_9", "type": "function", "function": {"name": "weather", "arguments": json.dumps(place)}}
    if "hello" in text:
        return said("Hello to you.")
    if "written" in text:
        return said("<tool_call>\n" + json.dumps({"name": "weather", "arguments": place}) + "\n</tool_call>")
    if "unknown" in text:
        call["function"]["name"] = "launch"
    if "broken" in text:
        call["function"]["arguments"] = '{"city": '
    if "unfit" in text:
        call["function"]["arguments"] = '{"city": "Rome", "days": "two"}'
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def pupil(body: dict, number: int) -> dict:
    """Knows where most parcels go; after `odd:` it does what models should not."""
    text = body["messages"][-1]["content"]
    if "Rubric:" in text:
        return said(_verdict(text))
    if "odd:" in text:
        odd = {"nothing": "", "loop": "again " * body["max_tokens"], "json": '{"n": ', "surrogate": "\ud83d half", "fine": '{"n": 1}'}
        return said(odd[text.rpartition(" ")[2]])
    found = re.search(r"parcel (\d) goes to (\w+)", text)
    return said(f"{found[2]} {found[1]}" if found[1] != "3" else f"{found[2]} perhaps")


def _verdict(text: str) -> str:
    """8 points for the right answer, 2 for others, 1 more for what is shown first; of parcel 5 to Steyr it says nothing that can be read."""
    if "parcel 5 goes to Steyr" in text:
        return "Hard to say."
    shown = re.search(r"<reference>\n(.*?)\n</reference>", text, re.DOTALL)
    group = re.findall(r'<answer id="(\d+)">\n(.*?)\n</answer>', text, re.DOTALL)
    if not group:
        return json.dumps({"score": 2 if shown else 8, "reason": "so"})  # an answer that is the reference is shown once
    return json.dumps([{"id": int(n), "score": (8 if t == shown[1] else 2) + (n == "1"), "reason": "so"} for n, t in group])
