"""The scorer: an oracle gets everything, chance gets nothing, the counts are what happened."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import ignorant, oracle
from scripted_engine import Params, ScriptedEngine

from ayllu.evals.metrics import wilson
from ayllu.evals.runner import SAMPLES, evaluate
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import distinct_problems, split_of
from ayllu.reason.tasks.arithmetic import Arithmetic
from ayllu.reason.tasks.calculator import Calculator
from ayllu.reason.tasks.countdown import Countdown
from ayllu.reason.tasks.dialogue import Dialogue
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

CHAT = Chat(train_tokenizer(iter(['What is 12 + 3? calculator {"expression":"12+3"}']), 300))
BOX = Toolbox([CALCULATOR])
TASKS = [Arithmetic(), Calculator(), Countdown(), Dialogue()]
N = 40


def run(task, reply, n=N, **options):
    engine = ScriptedEngine(reply, context_length=4096)
    problems = distinct_problems(task, n, levels(task), "test", 3)
    return evaluate(engine, CHAT, task, problems, params=Params(), toolbox=BOX, **options)


def levels(task):
    return range(1, task.levels + 1)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.family)
def test_the_oracle_is_right(task):
    problems = distinct_problems(task, N, levels(task), "test", 3)
    result = run(task, oracle(CHAT, task, problems))
    # A bounded search honestly says "no" to some Countdown problems; everything else has to be right.
    rng = np.random.default_rng(0)
    said_no = sum(task.trace(problem, rng)[-1].text == "no" for problem in problems)
    assert result.n == N and result.correct == result.lenient == N - said_no
    assert said_no <= N // 2  # the expert gives up by lot, sometimes soon
    assert result.truncated == 0 and sum(result.rights) == result.correct
    assert (result.low, result.high) == wilson(result.correct, N)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.family)
def test_chance_is_wrong(task):
    result = run(task, ignorant(CHAT, 1))
    assert result.n == N and result.correct <= 1


def test_calls_are_counted():
    task = Calculator()
    result = run(task, oracle(CHAT, task, distinct_problems(task, N, levels(task), "test", 3)))
    assert (result.calls, result.valid_calls) == (N, N)
    bad_call = [*CHAT.span(Kind.CALL, "calculator 12").ids]
    answer = list(CHAT.span(Kind.SAY, "7").ids)
    wrong = run(task, lambda prompt: answer if CHAT.tokenizer.control["<|result|>"] in prompt else bad_call)
    assert (wrong.calls, wrong.valid_calls) == (N, 0)


def test_a_tool_that_the_problem_does_not_offer_is_not_there():
    task = Dialogue()  # never offers a tool
    call = list(CHAT.span(Kind.CALL, 'calculator {"expression":"1+1"}').ids)
    answer = list(CHAT.span(Kind.SAY, "7").ids)
    result = run(task, lambda prompt: answer if CHAT.tokenizer.control["<|result|>"] in prompt else call)
    assert (result.calls, result.valid_calls) == (N, 0)


def test_truncated_answers_are_wrong_even_when_they_begin_right():
    task = Arithmetic()
    problems = distinct_problems(task, N, levels(task), "test", 3)
    engine = ScriptedEngine(oracle(CHAT, task, problems), context_length=4096)
    shortest = min(len(engine.reply(CHAT.start(p.prompt, tools=p.tools).ids())) for p in problems)
    result = evaluate(engine, CHAT, task, problems, params=Params(max_tokens=shortest - 1), toolbox=BOX)
    assert (result.correct, result.truncated, result.mean_tokens) == (0, N, shortest - 1)


def test_max_tokens_beyond_the_context_is_the_room_there_is():
    task = Dialogue()
    engine = ScriptedEngine(ignorant(CHAT, 1), context_length=700)
    problems = distinct_problems(task, 5, [1], "test", 0)
    result = evaluate(engine, CHAT, task, problems, params=Params(max_tokens=10_000), toolbox=BOX)
    assert result.n == 5 and all(len(s.prompt) + s.params.max_tokens == 700 for s in engine.submitted)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.family)
def test_problems_are_distinct_held_out_and_repeatable(task):
    problems = distinct_problems(task, N, levels(task), "test", 3)
    assert len({problem.key for problem in problems}) == N
    assert problems == distinct_problems(task, N, levels(task), "test", 3)
    assert problems != distinct_problems(task, N, levels(task), "test", 4)
    assert problems[: N // 2] == distinct_problems(task, N // 2, levels(task), "test", 3)
    rng = np.random.default_rng(0)
    training = {task.problem(rng, level, "train").key for level in levels(task) for _ in range(500)}
    assert not training & {problem.key for problem in problems}


def test_a_small_split_is_used_whole():
    from ayllu.reason.tasks.dialogue import phrasings

    held_out = {p.key for p in phrasings() if split_of(p.key) == "test"}
    problems = distinct_problems(Dialogue(), 10_000, [1], "test", 0)
    assert {problem.key for problem in problems} == held_out
    result = run(Dialogue(), ignorant(CHAT, 1), n=10_000)
    assert result.n == len(held_out)


def test_samples_show_wrong_and_right():
    task = Calculator()
    problems = distinct_problems(task, N, levels(task), "test", 3)
    half = run(task, oracle(CHAT, task, problems[: N // 2]))
    assert half.correct == N // 2
    shown = [sample["correct"] for sample in half.samples]
    assert shown.count(True) == shown.count(False) == SAMPLES // 2
    right = next(sample for sample in half.samples if sample["correct"])
    assert [kind for kind, _ in right["spans"]] == ["system", "user", "call", "result", "say"]
    assert right["spans"][-1][1] == right["wanted"]
    everything = half.to_dict()
    assert everything["n"] == N and 0 < everything["low"] < everything["accuracy"] < everything["high"] < 1


def test_progress_counts_up():
    seen = []
    run(Dialogue(), ignorant(CHAT, 1), on_answer=seen.append)
    assert seen == list(range(1, N + 1))


def test_a_prompt_that_fills_the_context_is_an_answer_cut_off():
    """It counts as wrong and the others are asked; where the engine refuses it, everything would end."""
    task = Arithmetic()
    problems = [task.problem(np.random.default_rng(0), 1, "test") for _ in range(3)]
    problems[1] = replace(problems[1], prompt=problems[1].prompt + " please" * 60)
    longest = max(len(CHAT.start(p.prompt, tools=p.tools).ids()) for p in (problems[0], problems[2]))
    engine = ScriptedEngine(lambda _: list(CHAT.span(Kind.SAY, "7").ids), context_length=longest + 40)
    seen = []
    answers = answer_problems(
        engine, CHAT, problems, BOX, Params(), on_answer=lambda index, answer: seen.append(index)
    )
    assert [a.finish_reason for a in answers] == ["stop", "length", "stop"]
    assert answers[1].tokens == 0 and sorted(seen) == [0, 2]
    assert [a.transcript.ids()[: len(p)] for a, p in zip(answers, prompts(problems), strict=True)] == prompts(
        problems
    )


def prompts(problems):
    return [CHAT.start(p.prompt, tools=p.tools).ids() for p in problems]
