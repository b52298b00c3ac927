"""Each filter drops what it should and nothing else, in the order that is told, and says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from slmkit.data.leaks import Asked, Exam
from slmkit.errors import DataError, RecipeError, StepFailed
from slmkit.steps.distill import Config
from slmkit.teach import distill, filters, verify
from slmkit.teach.job import Made
from slmkit.teach.prompts import Prompts
from tests.support import teacher as teachers
from tests.support.cli import Cli
from tests.support.drive import given


def made(answer: str, question: str = "a question", **more) -> Made:
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    return Made(**{"place": "p:1", "row": row, "answer": answer, "question": question, "messages": tuple(row["messages"][:1])} | more)


def built(said: dict | None = None, exams: list | None = None, code: Path | None = None, **more) -> filters.Filters:
    config = Config(teacher={"model": "t"}, prompts="p", filters=said or {}, verify_code=str(code) if code else None, **more)
    return filters.build(config, exams or [], verify.of(config, given(code, "code", "verify_code") if code else None))


def names(of: filters.Filters, rows: list[Made]) -> list[str | None]:
    return [(why or (None,))[0] for why in map(of.why, rows)]


def test_the_first_that_says_no_is_named_and_counted():
    every = built({"regex": "x.*", "verify": "exact", "min_score": 5, "near_duplicates": 0.8, "personal": True}, judge={"rubric": "r"},
                  json_schema={"type": "object"}, majority=0.5, n=2)  # fmt: skip
    assert [name for name, _ in every.checks] == [n for n in filters.ORDER if n not in ("leaks", "surplus")]
    everything = made("", finish="length", why="none", by="verdict")
    assert names(every, [everything, made("", why="none"), made(""), made("no")]) == ["finished", "answered", "empty", "json_schema"]
    assert dict(every.dropped) == {"finished": 1, "answered": 1, "empty": 1, "json_schema": 1} and every.passed == 0
    assert [n for n, _ in filters.ordered(every.dropped)] == ["answered", "finished", "empty", "json_schema"]


def test_json_schema_and_regex():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert names(built(json_schema=schema), [made('{"n": 1}'), made('{"n": "1"}'), made("{}"), made("[" * 9999)]) == [None] + ["json_schema"] * 3
    assert built(json_schema=schema).why(made('{"n": "one"}'))[1] == "the answer does not satisfy the schema at n: 'one' is not of type 'integer'"
    assert names(built({"regex": "a.b"}), [made(" a\nb "), made("a-b!")]) == [None, "regex"]


def test_verifiers(tmp_path):
    exact, numeric = built({"verify": "exact"}), built({"verify": "numeric"})
    assert names(exact, [made("four ", reference="four"), made("five", reference="four"), made("four")]) == [None, "verify", "verify"]
    assert names(numeric, [made("It is 1,234.", reference="1234"), made("It is 5", reference="4")]) == [None, "verify"]
    (tmp_path / "v.py").write_text("def verify(messages, answer, reference):\n    return answer == messages[-1]['content'][::-1]\n")
    assert names(built({"verify": "python"}, code=tmp_path / "v.py"), [made("noitseuq a"), made("no")]) == [None, "verify"]


ODD = """
class Odd:
    def __bool__(self): raise ValueError("neither")
def verify(m, a, r): return Odd()
"""
DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class A:
    x: int
def verify(m, a, r): return A(1).x
"""


@pytest.mark.parametrize(("text", "kind", "told"), [
    ("def verify(answer): return True", StepFailed, "called as `verify(messages, answer, reference)`"), (ODD, StepFailed, "v.py:3: `verify` raised"),
    ("async def verify(m, a, r): return True", RecipeError, "is `async`"), (DATACLASS, None, ""),
    ("exec('1 +')", RecipeError, "v.py:1: the verifier cannot be imported: SyntaxError"), ("1 +", RecipeError, "v.py:1:4: this is no Python"),
])  # fmt: skip
def test_a_verifier_that_is_none_is_told_with_its_place(tmp_path, text, kind, told):
    (tmp_path / "v.py").write_text(text)
    if kind is None:
        assert built({"verify": "python"}, code=tmp_path / "v.py").why(made("four")) is None
        return
    with pytest.raises(kind) as e:
        built({"verify": "python"}, code=tmp_path / "v.py").why(made("four"))
    assert told in e.value.render()


def test_a_verifier_that_fails_is_told_with_its_line(tmp_path):
    file = tmp_path / "v.py"
    file.write_text("def verify(messages, answer, reference):\n    x = 1\n    return int(answer)\n")
    with pytest.raises(StepFailed) as e:
        built({"verify": "python"}, code=file).why(made("four"))
    assert e.value.render().startswith(f"{file}:3: `verify` raised ValueError") and "the answers are kept" in e.value.render()
    file.write_text("import lies_near\ndef verify(m, a, r): return True\n")
    (tmp_path / "lies_near.py").write_text("")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(RecipeError, match="the verifier imports lies_near.py beside it"):
            built({"verify": "python"}, code=file)
    finally:
        sys.path.remove(str(tmp_path))


def test_copies_and_near_copies():
    long = "How do I block my card when it was stolen on a journey abroad, and how soon will I get a new one sent to me?"
    near = long.replace("journey", "trip")
    assert names(built(), [made("x", long), made("X ", long.upper()), made("y", long), made("x", near)]) == [None, "duplicates", None, None]
    rows = [made("x", long), made("x", near), made("x", "Which fees are there for a transfer to a friend in another country?")]
    assert names(built({"near_duplicates": 0.7}), rows) == [None, "near_duplicates", None]


@pytest.mark.parametrize("threshold", [0.35, 0.5, 0.65, 0.8, 0.9])
def test_near_copies_are_found_at_every_threshold(threshold):
    """The bands of the index follow the threshold: with 16 bands, texts of likeness 0.5 meet 6 times in 100."""
    from slmkit.data import shingles

    def text(start: int) -> str:
        return " ".join(f"{start + i:04d}" for i in range(60))

    shift = round(60 * (1 - threshold - 0.07) / (1 + threshold + 0.07))  # Jaccard of two windows is (60 - s) / (60 + s)
    found = 0
    for start in range(0, 4000, 200):
        rows = [made("x", text(start)), made("x", text(start + shift))]
        assert shingles.likeness(shingles.pieces(text(start)), shingles.pieces(text(start + shift))) > threshold + 0.03
        found += names(built({"near_duplicates": threshold}), rows) == [None, "near_duplicates"]
    assert found >= 15, f"{found} of 20"


def test_leaks_against_questions():
    question = "which of the planets in our solar system has the largest number of known moons today"
    exam = Exam("task", [Asked((question,), "saturn", "t.jsonl:1")])
    rows = [made("x", question.upper()), made("x", f"Tell me: {question}, please?"), made(f"One may ask {question} and so on."), made("x", "Why?")]
    assert names(built(exams=[exam]), rows) == ["leaks", "leaks", "leaks", None]
    assert built(exams=[exam]).why(rows[0])[1] == "a question of task (question: t.jsonl:1)"
    assert names(built({"leaks": False}, exams=[exam]), rows) == [None] * 4


def test_a_turn_that_chats_share_is_nobodys_question(tmp_path):
    """A held-out chat asks all that was said before its answer, and the beginning of it; made rows that end in the same thanks are kept."""
    asked = "Which cards are there for students who travel a lot?"
    talk = [{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, (asked, "Two.", "Thank you!", "Gladly."), strict=True)]
    (tmp_path / "v.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    exam = Exam("v", [distill._asked(p) for p in Prompts((given(tmp_path / "v.jsonl", "dataset", "held_out"),))])
    other = [{"role": "user", "content": "How do I pay?"}, talk[1]]
    rows = [made("Gladly.", row={"messages": [*other, *talk[2:]]}), made("x", asked), made("Gladly.", row={"messages": talk})]
    assert names(built(exams=[exam]), rows) == [None, "leaks", "leaks"]


def test_a_rows_own_system_field_is_asked_with_it(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"system": "s"} | row) + "\n" for row in (
        {"prompt": "u"}, {"messages": [{"role": "user", "content": "u"}]}, {"instruction": "u"}, {"prompt": [{"role": "user", "content": "u"}]},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]})))
    asked = [p.messages for p in Prompts((given(tmp_path / "p.jsonl", "dataset", "prompts"),)).check()]
    assert asked == [({"role": "system", "content": "s"}, {"role": "user", "content": "u"})] * 6
    (tmp_path / "p.jsonl").write_text(json.dumps({"system": "s", "messages": [{"role": "system", "content": "t"}, {"role": "user", "content": "u"}]}))
    with pytest.raises(DataError, match="two system messages, which differ"):
        Prompts((given(tmp_path / "p.jsonl", "dataset", "prompts"),)).check()


def test_earlier_turns_of_an_alpaca_row_are_asked_with_it(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"instruction": "And Monday?", "output": "Yes.", "history": [["Open on Sunday?", "No."]]}) + "\n")
    (one,) = Prompts((given(tmp_path / "p.jsonl", "dataset", "prompts"),))
    assert [m["content"] for m in one.messages] == ["Open on Sunday?", "No.", "And Monday?"] and one.reference == "Yes." and one.text == "And Monday?"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "p", "instruction": "be brief", "history": "2020-2021"}) + "\n")
    (one,) = Prompts((given(tmp_path / "p.jsonl", "dataset", "prompts"),))
    assert [m["content"] for m in one.messages] == ["p"]


def test_personal_data_also_in_rejected_answers_and_reasoning():
    mail = "write to marie.dupont@sorbonne.fr"
    said = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "a"), ("rejected", mail))}
    pair = {"prompt": [{"role": "user", "content": "q"}]} | said
    beside = (("train", {"messages": [{"role": "assistant", "content": mail}]}),)
    rows = [made(mail), made("a", row=pair), made("a", also=beside), made("write to a@example.com")]
    assert names(built({"personal": True}), rows) == ["personal"] * 3 + [None]
    assert names(built(), rows) == [None] * 4


REFUSED = ["I'm sorry, but I can't help with that.", "I cannot assist with this request.", "I’m unable to provide that.", "As an AI model, I",
           "Sorry, I can't do that.", "Unfortunately, I am unable to help.",
           "I won't generate that.", "I apologize, but I cannot fulfil this.",
           "Es tut mir leid, aber ich kann dabei nicht helfen.", "Je suis désolé, mais je ne peux pas.", "Lo siento, pero no puedo."]  # fmt: skip
ANSWERED = ["I'm sorry to hear that your card was stolen. Block it in the app.", "Unfortunately, I can only see your last ten payments: 1, 2",
            "Sorry to hear that! Your card is on its way.", "I can help with that.", "You can't withdraw more than 500.", "I can't wait to see it!",
            "Es tut mir leid, dass Ihre Karte weg ist. Sperren Sie sie.", "The assistant said: I'm sorry, but I can't."]  # fmt: skip


def test_refusals_are_told_from_kind_words():
    assert names(built(), [made(t) for t in REFUSED]) == ["refusals"] * len(REFUSED)
    assert names(built(), [made(t) for t in ANSWERED]) == [None] * len(ANSWERED)
    assert names(built({"refusals": False}), [made(t) for t in REFUSED]) == [None] * len(REFUSED)


def test_the_recipes_own_tasks_and_validation_are_kept_out(cli: Cli, tmp_path):
    teacher = teachers.start(tmp_path / "teacher")
    try:
        asked = [f"What is the capital of {name}?" for name in ("Norway and Sweden", "the Inca empire", "Atlantis", "old Burgundy", "Wallachia")]
        for name, rows in {
            "prompts": [{"prompt": q} for q in asked], "test": [{"q": asked[1], "a": "x"}],
            "val": [{"messages": [{"role": "user", "content": asked[3]}, {"role": "assistant", "content": "y"}]}],
        }.items():  # fmt: skip
            (cli.folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        cli.write("task.yaml", """\
            task: capitals
            dataset_path: json
            dataset_kwargs: {data_files: {test: test.jsonl}}
            test_split: test
            doc_to_text: "{{q}}"
            doc_to_target: a
            """)
        steps = {
            "teach": {"kind": "distill", "teacher": {"model": "t", "base_url": teacher.url}, "prompts": "prompts.jsonl"},
            "sft": {"kind": "train", "model": "demo:student", "data": "$teach", "validation": "val.jsonl"},
            "score": {"kind": "eval", "models": ["$sft"], "tasks": ["task.yaml"]},
        }
        cli.write("r.yaml", yaml.safe_dump({"recipe": "r", "steps": steps}, sort_keys=False))
        done = cli("distill", "r.yaml", "--json")
        assert done.returncode == 0, done.stderr
        dropped = [json.loads(line) for line in (cli.folder / "artifacts/refs/r/teach/dropped.jsonl").read_text().splitlines()]
        assert {d["place"]: d["reason"] for d in dropped} == {
            "prompts.jsonl:2": "a question of capitals (question: test.jsonl:1)",
            "prompts.jsonl:4": "a question of val.jsonl (question: val.jsonl:1)",
        }
        assert dropped[0]["messages"][0]["content"] == asked[1]
    finally:
        teacher.stop()
