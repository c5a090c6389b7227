"""Rollouts that call tools which run: model-written programs in the sandbox, rewarded by what they print."""

import numpy as np
from scripted_engine import ScriptedEngine

from ayllu.reason.practice import TASKS, practice_texts, toolbox_for
from ayllu.reason.transcript import Chat, Kind, call_text
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train.rl import RlSettings, Rollouts

CHAT = Chat(train_tokenizer(practice_texts(0), 400))
CONTROL = CHAT.tokenizer.control
WRONG = ("import os\nprint(os.listdir('/'))", "raise ValueError(3)", "while True: pass")


def test_programs_run_in_the_sandbox_and_the_right_one_is_rewarded():
    """Of four answers one writes the expert's program, the others list the root, fail and never end."""
    rng = np.random.default_rng(2)
    problems = [TASKS["programs"].problem(rng, 1, "train")]
    programs = iter([problems[0].data["code"], *WRONG])

    def reply(prompt):
        if prompt[-1] == CONTROL["<|/result|>"]:
            at = len(prompt) - prompt[::-1].index(CONTROL["<|result|>"])
            return list(CHAT.span(Kind.SAY, CHAT.tokenizer.decode(prompt[at:-1])).ids)
        code = next(programs)
        return list(CHAT.span(Kind.CALL, call_text("python", {"code": code})).ids)

    with toolbox_for(["programs"]) as box:
        settings = RlSettings(max_tokens=900, families={"programs": 1.0})
        rollouts = Rollouts(ScriptedEngine(reply, context_length=4096), CHAT, settings, 1, box)
        groups = rollouts.answer(problems, 4, 7)
    for group in groups:
        results = [answer.records[0] for answer in group.answers]
        assert group.rewards == [1.0, 0.0, 0.0, 0.0] and group.informative
        assert results[0].ok and results[0].text == group.problem.answer
        assert "etc" not in results[1].text and "ValueError: 3" in results[2].text
        assert not results[3].ok and results[3].text == "error: stopped after 3 s"
        assert all(record.valid for record in results)
