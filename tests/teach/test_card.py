"""The dataset's card: each request counts once, and what the teacher was asked with stands there with its hash."""

from __future__ import annotations

import hashlib

from slmkit.teach.templates import FOLDER
from tests.teach.test_batches import card
from tests.teach.test_distill import result, teach  # noqa: F401  a fixture
from tests.teach.test_modes import GENERATE, school  # noqa: F401  a fixture


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def built_in(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text()


def test_a_request_that_several_stages_need_counts_once(school):  # noqa: F811
    one = school("writer")
    one.rows("seeds.jsonl", [{"prompt": "seed question", "completion": "answer"}])
    said = {"mode": "generate", "prompts": "seeds.jsonl", "generate": GENERATE, "judge": {"rubric": "new"}, "filters": {"min_score": 5}}
    found = one.run(**said)
    assert len(one.bodies()) == len(one.teacher.answered()) > 6 and found["rows"] == 12
    assert (found["requests"], found["answered"], found["from_ledger"]) == (len(one.bodies()), len(one.bodies()), 0)
    text = card(one.cli)
    assert f"was asked {found['requests']} times" in text and f"{found['answered']} of the requests were answered for this dataset, 0 were" in text
    assert f"| template `generate.jinja` of slmkit | `{sha256(built_in('generate'))}` |" in text
    assert f"| judge's template `judge.jinja` of slmkit | `{sha256(built_in('judge'))}` |" in text
    again = one.again("--set", "steps.teach.filters.refusals=false")
    assert (again["requests"], again["answered"], again["from_ledger"]) == (found["requests"], 0, found["requests"])


def test_the_card_holds_the_hash_of_what_was_asked(cli, teach):  # noqa: F811
    teach(4)
    asked = (cli.folder / "prompts.jsonl").read_text()
    (cli.folder / "prompts.jsonl").write_text(asked + asked)  # twice the same: four requests
    (cli.folder / "more.jsonl").write_text('{"prompt": "refuse me"}\n')
    found = result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.prompts=[prompts.jsonl, more.jsonl]"))
    assert (found["requests"], found["answered"], found["from_ledger"]) == (5, 5, 0)
    text = card(cli)
    assert f"| prompts `prompts.jsonl` | `{sha256(asked + asked)}` |" in text
    assert f"| prompts `more.jsonl` | `{sha256((cli.folder / 'more.jsonl').read_text())}` |" in text
    assert "Prompts went to the teacher as they are" in text and sha256("")[:16] not in text and "template" not in text.split("asked with")[1]
    assert str(cli.folder) not in text
    (cli.folder / "own.jinja").write_text("### user\nSay of it: {{ prompt }}\n")
    result(cli("distill", "r.yaml", "--json", "--set", "steps.teach.system=Be brief.", "--set", "steps.teach.template=own.jinja"))
    text = card(cli)
    assert f"| system message | `{sha256('Be brief.')}` |" in text and "as they are" not in text
    assert f"| template `own.jinja` | `{sha256((cli.folder / 'own.jinja').read_text())}` |" in text


def test_what_got_no_answer_is_on_the_card(cli, teach):  # noqa: F811
    teach(6, refuse="question 3")
    found = result(cli("distill", "r.yaml", "--json"))
    assert found["requests"] == 6 and "5 of the requests were answered for this dataset, 0 were answered before, 1 got no answer." in card(cli)
