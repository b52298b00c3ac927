"""gkd: the divergence is the published one, its step is the same however it is cut up, and a teacher of other tokens is refused."""

import json
import shutil
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmkit.errors import RecipeError, StepFailed, UsageError
from slmkit.ml import agreement, answers, divergence, loss, teachers, vocabulary
from slmkit.ml.divergence import Target
from slmkit.ml.examples import Example
from slmkit.ml.objectives import gkd
from slmkit.steps import train as step
from slmkit.teach import logprobs
from slmkit.teach.endpoint import Route
from tests.ml.test_objectives import QUICK, Tried, data
from tests.support.drive import given

ALLOW = ["duplicates", "leaks"]
CPU = torch.device("cpu")
TINY = 260  # a vocabulary for sums by hand


def said(kind: str, beta: float = 0.5) -> SimpleNamespace:
    return SimpleNamespace(divergence=kind, beta=beta)


def logits(seed: int, places: int = 7, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(places, TINY, generator=torch.Generator().manual_seed(seed)) * scale


def named(logs: torch.Tensor, k: int) -> Target:
    best = logs.topk(k)
    return Target(best.values, best.indices)


@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3), ("jsd", 0.9)])
def test_it_is_the_generalised_divergence_of_the_paper(kind, beta):
    """TRL's own, whose beta of 0 and 1 are the two KLs."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = logits(1), logits(2)
    theirs = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    mine = divergence.summed(student, Target(teacher.log_softmax(1)), TINY, said(kind, beta or 0.5))
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5) and mine > 0.1


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_the_rest_of_a_top_k_is_one_outcome(kind):
    student, logs = logits(1).requires_grad_(), logits(2).log_softmax(1)
    full = divergence.summed(student, Target(logs), TINY, said(kind)).item()
    found = [divergence.summed(student, named(logs, k), TINY, said(kind)).item() for k in (1, 5, 50, TINY - 1)]
    assert found == sorted(found) and 0 < found[0] < found[1] < full  # a lower bound, nearer with every name
    assert found[-1] == pytest.approx(full, rel=1e-3)  # all but one are named: the rest is that one
    by_hand = []
    for mine, theirs in zip(student.detach().softmax(1), logs.exp(), strict=True):
        best = theirs.topk(5).indices
        p, q = (torch.cat([one[best], 1 - one[best].sum(0, keepdim=True)]) for one in (theirs, mine))
        m = (p + q) / 2
        kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
        by_hand.append({"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[kind])
    assert found[1] == pytest.approx(sum(by_hand).item(), rel=1e-4)


def test_a_teacher_who_is_sure_or_rounds_up_gives_numbers():
    sure = Target(torch.tensor([[0.0, -30.0], [-1e-9, -17.0]]), torch.tensor([[3, 4], [0, 1]]))
    student = logits(1, 2).requires_grad_()
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        found = divergence.summed(student, sure, TINY, said(kind))
        (gradient,) = torch.autograd.grad(found, student)
        assert found.isfinite() and found > 0 and gradient.isfinite().all()
    fewer = Target(torch.tensor([[-0.5, -2.0], [-0.5, divergence.NOTHING]]), torch.tensor([[3, 4], [5, -1]]))
    one = Target(fewer.logs[1:, :1], fewer.ids[1:, :1])
    for kind in ("forward_kl", "reverse_kl", "jsd"):  # a place with fewer names is as if no more had been asked for
        parts = [divergence.summed(student[i : i + 1], t, TINY, said(kind)) for i, t in ((0, Target(fewer.logs[:1], fewer.ids[:1])), (1, one))]
        assert divergence.summed(student, fewer, TINY, said(kind)).item() == pytest.approx(sum(parts).item(), rel=1e-5)
    alike = logits(3)
    assert divergence.summed(alike, named(alike.log_softmax(1), 8), TINY, said("forward_kl")).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("deep", [-120.0, -9999.0, -torch.inf])
def test_a_token_that_the_teacher_rules_out_gives_numbers(kind, deep):
    """exp(-120) is 0 in single precision. What little is left makes no difference to the divergence from a student who gives it little, too."""
    student = logits(1, 2)
    student[:, 9] = -60
    student.requires_grad_()
    target = Target(torch.tensor([[-0.2, -3.0, deep], [-0.1, deep, deep]]), torch.tensor([[3, 4, 9], [0, 1, 9]]))
    found = divergence.summed(student, target, TINY, said(kind))
    (gradient,) = torch.autograd.grad(found, student)
    assert found.isfinite() and gradient.isfinite().all()
    q = torch.cat([student.detach()[:1].double().softmax(1)[0, [3, 4]], torch.zeros(1)])
    p = torch.tensor([-0.2, -3.0]).double().exp()
    p, q[2] = torch.cat([p, 1 - p.sum()[None]]), 1 - q.sum()
    kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
    by_hand = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2}[kind]
    alone = divergence.summed(student[:1], Target(target.logs[:1], target.ids[:1]), TINY, said(kind))
    assert alone.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_rows_that_pad_an_embedding_take_no_part():
    student, logs = logits(1), logits(2).log_softmax(1)
    wider = torch.cat([student, torch.full((7, 60), 9.0)], 1)
    one, other = (divergence.summed(x, Target(logs), TINY, said("jsd")).item() for x in (student, wider))
    assert one == other


@pytest.mark.parametrize(("on_policy", "kind"), [(0, "reverse_kl"), (1, "jsd")])
def test_however_a_step_is_cut_up_it_is_the_same(tmp_path, tiny, other, on_policy, kind):
    """20 rows in steps of 8: padded or packed, micro batches of 1 or 8, and a last step of 4 rows that some micro batches get nothing of."""
    block = {"on_policy": on_policy, "divergence": kind} | ({"max_new_tokens": 6} if on_policy else {})
    more = {"batch_size": 8, "max_steps": 4, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, "gkd": block, "teacher": other}
    ways = [{"micro_batch": 1, "packing": "off"}, {"micro_batch": 8, "packing": "off"}, {"micro_batch": 4, "packing": "on"}]
    some = [Tried(tmp_path / str(i), tiny, "gkd", way | {"allow": ALLOW}, **more) for i, way in enumerate(ways)]
    assert some[0].values["steps"] == 4 and some[0].values["first_loss"] > 0.05
    weights = [load_file(next(t.out.glob("*.safetensors"))) for t in some]
    for one in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=2e-5)


def test_it_learns_what_the_teacher_says_and_tells_how_far(tmp_path, tiny, other):
    """The rows' answers are of no account: a teacher with random weights, near certain of nothing, is imitated all the same."""
    more = {"method": "full", "lora": None, "max_steps": 100, "batch_size": 8, "learning_rate": 3e-3, "gkd": {"on_policy": 0.5, "max_new_tokens": 6}}
    tried = Tried(tmp_path, tiny, "gkd", {"allow": ALLOW}, given_rows=data("messages", 60), validation=data("messages", 20), teacher=other, **more)
    values = tried.values
    assert values["agreement_before"] < 0.1 and values["agreement"] > 0.35 and values["agreement_on"] == "validation"
    assert values["agreement_low"] <= values["agreement"] <= values["agreement_high"] and values["agreement_gain_low"] > 0.2
    assert values["validation_loss"] < 0.7 * tried.named("validation")[0]["loss"] and values["agreement_rows"] == 20
    assert 1 <= values["completion_tokens"] <= 6 and 0 <= values["ended"] <= 1
    assert tried.result.determinism == "exact"


def test_agreement_is_counted_place_by_place(tiny, other):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    teacher = teachers.Local(given(other, "model", "teacher", digest="0" * 64), CPU, 384)
    ids = [list(range(10, 30)), list(range(40, 47)), list(range(300, 330))]
    rows = [Example(i, array("i", one), ((2, 4), (5, len(one)))) for i, one in enumerate(ids)]
    found = agreement.measure(model, teacher, rows, CPU, torch.float32, 384)
    for row, one in enumerate(ids):
        mine, theirs = (m(torch.tensor([one])).logits[0].argmax(1) for m in (model, teacher.model))
        places = [2 - 1, 3 - 1, *range(4, len(one) - 1)]
        assert found.same[row] == sum(int(mine[p] == theirs[p]) for p in places) and found.places[row] == len(places)
    itself = agreement.measure(teacher.model, teacher, rows, CPU, torch.float32, 384)
    told = agreement.told(found, itself, 0)
    assert told["agreement"] == told["agreement_low"] == told["agreement_high"] == 1
    assert told["agreement_before_low"] <= told["agreement_before"] <= told["agreement_before_high"] < 1
    assert told["agreement_gain"] == pytest.approx(1 - told["agreement_before"])


def test_a_teacher_whose_numbers_are_none_is_told_with_the_row(other):
    teacher = teachers.Local(given(other, "model", "teacher", digest="0" * 64), CPU, 384)
    teacher.model.lm_head.weight = torch.nn.Parameter(teacher.model.lm_head.weight.clone())  # tied to the embedding, it would break all rows
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[299] = torch.nan
    rows = [Example(k, array("i", [10, 11, 12]), ((0, 3),), "rows.jsonl") for k in range(1, 19)]
    rows.append(Example(19, array("i", [20, 299, 22, 23]), ((2, 4),), "rows.jsonl"))
    with pytest.raises(StepFailed, match="no numbers at 2 places of 3 rows, first in rows.jsonl:19") as e:
        teacher(rows)
    assert e.value.key == "teacher"


def test_rows_are_held_out_where_no_others_are_given(tmp_path, tiny, other):
    rows = [Example(i, array("i", [1, 2, 3]), ((1, 3),)) for i in range(100)]
    (learned, held), again = gkd.hold_out(rows, 3), gkd.hold_out(rows, 3)
    assert (len(learned), len(held)) == (95, 5) and again == (learned, held)
    assert {e.line for e in learned} | {e.line for e in held} == set(range(100)) and gkd.hold_out(rows, 4)[1] != held
    tried = Tried(tmp_path, tiny, "gkd", {"allow": ALLOW}, given_rows=data("messages", 40), teacher=other, max_steps=1)
    assert tried.values["rows"] == 38 and tried.values["agreement_rows"] == 2 and "held out" in tried.values["agreement_on"]


@pytest.mark.parametrize(("share", "wanted"), [
    (0.0, []), (1.0, [0, 1, 2, 3, 4, 5, 6, 7]), (0.5, [1, 3, 5, 7]), (0.25, [3, 7]), (0.75, [1, 2, 3, 5, 6, 7]),
])  # fmt: skip
def test_the_students_own_steps_are_spread_evenly(share, wanted):
    assert [s for s in range(8) if gkd.turns(s, share)] == wanted
    assert sum(gkd.turns(s, 0.1) for s in range(1000)) == 100


def test_a_students_own_answer_has_the_token_that_ended_it(tiny):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    asked = ([[10, 11, 12], [30, 31]], frozenset(), 8, 1.0, [1, 2], CPU)
    whole = answers.sampled(model, tokenizer, *asked)
    end = whole[0][3]
    found = answers.sampled(model, tokenizer, asked[0], frozenset([end]), *asked[2:])
    assert found == [one[: one.index(end) + 1] if end in one else one for one in whole] and len(found[0]) < 8 == len(whole[0])


@pytest.mark.parametrize(("method", "precision"), [("qlora", "fp32"), ("qlora", "bf16"), ("full", "bf16")])
def test_it_runs_on_4_bits_and_in_bf16(tmp_path, tiny, other, method, precision):
    more = {"method": method, "precision": precision, "max_steps": 3, "batch_size": 2, "validate_every": 1,
            "gkd": {"on_policy": 1, "max_new_tokens": 4}}  # fmt: skip
    more |= {"lora": None, "learning_rate": 1e-4} if method == "full" else {}
    tried = Tried(tmp_path, tiny, "gkd", {"allow": ALLOW}, validation=data("messages", 4), teacher=other, **more)
    assert tried.values["precision"] == precision and tried.values["steps"] == 3 and len(tried.named("validation")) == 3


def swapped(folder: Path, source: Path) -> Path:
    """A model whose tokenizer is of the same size, and gives two tokens each other's ids."""
    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    body = json.loads(file.read_text())
    vocabulary_ = body["model"]["vocab"]
    vocabulary_["a"], vocabulary_["b"] = vocabulary_["b"], vocabulary_["a"]
    file.write_text(json.dumps(body))
    return folder


def test_a_teacher_of_other_tokens_is_refused_before_its_weights_are_looked_at(tmp_path, tiny, other):
    teacher = swapped(tmp_path / "other", other)
    (teacher / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RecipeError, match=r"different vocabularies: 2 of \d+ ids stand for other tokens .*'a' here and 'b' there") as error:
        Tried(tmp_path / "run", tiny, "gkd", {"allow": ALLOW}, teacher=teacher)
    assert error.value.problems[0].what.startswith("teacher: "), "the engine finds its place in the recipe by that"
    assert "distill" in str(error.value.problems[0].mend) and not (tmp_path / "run/state/checkpoints").exists()


def test_padded_rows_of_an_embedding_are_no_other_tokens(tmp_path, tiny, other):
    model = AutoModelForCausalLM.from_pretrained(other)
    model.resize_token_embeddings(448)
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(other).save_pretrained(tmp_path / "padded")
    tried = Tried(tmp_path / "run", tiny, "gkd", {"allow": ALLOW}, teacher=tmp_path / "padded", max_steps=2)
    alone = Tried(tmp_path / "alone", tiny, "gkd", {"allow": ALLOW}, teacher=other, max_steps=2)
    assert tried.values["first_loss"] == pytest.approx(alone.values["first_loss"], rel=1e-4)


@pytest.fixture(scope="module")
def served(other) -> Iterator[str]:
    command = [sys.executable, "-m", "slmkit", "serve", str(other), "--name", "t", "--port", "0", "--dtype", "fp32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(20)


def test_an_endpoint_says_what_the_model_says(served, other, tiny):
    rows = [Example(0, array("i", range(10, 40)), ((5, 9), (12, 30))), Example(1, array("i", [7, 8, 9, 200]), ((0, 4),))]
    remote = teachers.Remote(Route(served, None, None, 60), "t", 20, CPU, 384)
    local = teachers.Local(given(other, "model", "teacher", digest="0" * 64), CPU, 384)(rows)
    found = remote(rows, keep=True)
    torch.testing.assert_close(found.logs, local.logs.gather(1, found.ids), atol=1e-4, rtol=1e-4)
    assert (found.best == local.best).all() and found.logs.shape == (22 + 3, 20)
    assert len(remote.said) == 2
    remote.route = Route("http://127.0.0.1:9/v1", None, None, 1)  # nobody is there: rows that were kept are not asked about again
    assert torch.equal(remote(rows[::-1]).ids, torch.cat([found.ids[22:], found.ids[:22]]))


def test_a_student_of_a_served_teacher_learns_nearly_the_same(tmp_path, tiny, other, served):
    more = {"max_steps": 12, "learning_rate": 1e-2, "gkd": {"on_policy": 0.5, "max_new_tokens": 4}}
    remote = Tried(tmp_path / "r", tiny, "gkd", {"allow": ALLOW}, teacher={"model": "t", "base_url": served}, **more)
    local = Tried(tmp_path / "l", tiny, "gkd", {"allow": ALLOW}, teacher=other, **more)
    assert remote.values["agreement_before"] == local.values["agreement_before"]
    assert 0 < remote.values["first_loss"] < local.values["first_loss"] and remote.values["train_loss"] < 0.9 * remote.values["first_loss"]
    assert remote.result.determinism == "none"


def test_a_served_teacher_of_other_tokens_is_refused(tmp_path, tiny, served):
    student = AutoTokenizer.from_pretrained(swapped(tmp_path / "s", tiny))
    route, count = Route(served, None, None, 60), vocabulary.known(student)
    vocabulary.probe(AutoTokenizer.from_pretrained(tiny), route, "t", range(count))
    with pytest.raises(RecipeError, match="2 of 323 ids that it was asked about stand for other tokens"):
        vocabulary.probe(student, route, "t", range(count))


def test_a_served_teacher_of_fewer_tokens_is_refused_as_a_clash(tiny, served):
    student = AutoTokenizer.from_pretrained(tiny)
    student.add_tokens([f"x{i}" for i in range(200)])
    with pytest.raises(RecipeError, match="its vocabulary is another") as e:
        vocabulary.probe(student, Route(served, None, None, 60), "t", range(vocabulary.known(student)))
    assert "objective: sft" in e.value.problems[0].mend and e.value.problems[0].what.startswith("teacher: ")
    with pytest.raises(UsageError, match="no URL of an endpoint") as wrong:
        vocabulary.probe(student, Route("nowhere://x/v1", None, None, 60), "t", [1])
    assert wrong.value.key == "teacher.base_url"


def test_what_a_teacher_cannot_say_is_told(served):
    route = Route(served, None, None, 60)
    with pytest.raises(UsageError, match="from 0 to 20, this is 50") as e:
        logprobs.of(route, "t", [[1, 2, 3]], 50, ["a"])
    assert e.value.key == "gkd.top_k" and "lower" in e.value.mend


def test_a_batch_of_nothing_has_a_gradient(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "labels": torch.full((1, 2), -100)}
    found, zero = loss.logits_of(model, batch, True)
    assert not len(found) and zero.requires_grad and zero.item() == 0


@pytest.mark.parametrize(("more", "told"), [
    ({"objective": "sft", "teacher": "t"}, "`teacher` is not read by objective sft"),
    ({"objective": "gkd"}, "objective gkd needs `teacher`"),
    ({"objective": "sft", "gkd": {}}, "`gkd` is not read by objective sft"),
    ({"objective": "gkd", "teacher": "t", "gkd": {"beta": 0.3}}, "`beta` is not read by divergence forward_kl"),
    ({"objective": "gkd", "teacher": "t", "gkd": {"on_policy": 0, "max_new_tokens": 9}}, "not read with `on_policy: 0`"),
    ({"objective": "gkd", "teacher": "t", "gkd": {"on_policy": 0.0, "temperature": 0.9}}, "not read with `on_policy: 0`"),
    ({"objective": "gkd", "teacher": "t", "gkd": {"top_k": 5}}, "`gkd.top_k` is read for a teacher behind an endpoint only"),
    ({"objective": "gkd", "teacher": "t", "loss_on": "all"}, "`loss_on` is not read by objective gkd"),
])  # fmt: skip
def test_what_is_not_read_is_refused(more, told):
    with pytest.raises(ValidationError, match=told):
        step.Config(**QUICK | more)
