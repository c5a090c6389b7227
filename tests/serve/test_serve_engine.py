"""The whole way with nothing scripted: a tiny random decoder, the real engine, HTTP, the client."""

from __future__ import annotations

import concurrent.futures
import signal
import subprocess
import sys
import urllib.request

import openai
import pytest
from running_server import USER, get, running_server, wait_until

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import ModelFileMissingError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.reason.loop import answer_batch
from ayllu.reason.transcript import Chat
from ayllu.serve.app import listen, serve
from ayllu.serve.service import SamplingDefaults
from ayllu.tools.tool import Toolbox


@pytest.fixture(scope="module")
def decoder(tokenizer):
    settings = ModelSettings(width=32, layers=2, head_dim=16, context=256)
    return Decoder(settings.config(tokenizer.vocab_size)).initialise(3).eval()


@pytest.fixture(scope="module")
def live(tokenizer, decoder):
    def open_engine():
        return Engine(decoder, tokenizer=tokenizer, max_sequences=33)

    with running_server(tokenizer, open_engine, defaults=SamplingDefaults(temperature=1.0)) as running:
        yield running


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number}? " * (1 + number % 4)}]


def test_ready_and_an_answer(live):
    assert get(live, "/readyz")[0] == 200
    done = live.client().chat.completions.create(model="tiny", messages=USER, max_tokens=8, logprobs=True)
    assert done.choices[0].finish_reason in ("stop", "length") and 1 <= done.usage.completion_tokens <= 8
    assert all(token.logprob <= 0 for token in done.choices[0].logprobs.content)


def test_http_says_what_the_loop_says(live, decoder, tokenizer):
    chat = Chat(tokenizer)
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=11)
    with Engine(decoder, tokenizer=tokenizer, max_sequences=1) as engine:
        (alone,) = answer_batch(
            engine, chat, [chat.start(USER[0]["content"])], Toolbox(), params, constrain=True
        )
    said = [chat.text(span) for span in alone.transcript.spans[1:] if span.kind == "say"]
    create = live.client().chat.completions.create
    done = create(model="tiny", messages=USER, temperature=1, seed=11, max_tokens=24, logprobs=True)
    assert done.choices[0].message.content == "".join(said) != ""
    assert done.usage.completion_tokens == alone.tokens
    assert done.usage.prompt_tokens == len(chat.start(USER[0]["content"]).ids())
    wanted = set(alone.logprobs)
    shown = [token.logprob for token in done.choices[0].logprobs.content]
    assert shown and all(min(abs(one - other) for other in wanted) < 1e-4 for one in shown)


def test_alone_and_in_company_the_same(live):
    create = live.client().chat.completions.create

    def whole(number: int) -> str:
        sampling = {"temperature": 1, "seed": number, "max_tokens": 24}
        message = create(model="tiny", messages=asked(number), **sampling).choices[0].message
        return f"{getattr(message, 'reasoning_content', '')}|{message.content}"

    alone = [whole(number) for number in range(16)]
    assert len(set(alone)) > 8
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(whole, range(16))) == alone


def test_a_seed_gives_the_same_again(live):
    create = live.client().chat.completions.create

    def answers(seed: int) -> list[str]:
        done = create(model="tiny", messages=USER, max_tokens=24, temperature=1, seed=seed, n=2)
        return [choice.message.content for choice in done.choices]

    assert answers(7) == answers(7)
    assert len({*answers(7), *answers(8)}) > 2


def test_a_stream_ends_at_the_contexts_end_or_stop(live):
    chunks = list(
        live.client().chat.completions.create(
            model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.total_tokens <= 256


def test_a_client_that_goes_away_frees_its_place(live):
    stream = live.client().chat.completions.create(model="tiny", messages=USER, stream=True, n=16)
    next(iter(stream))
    stream.close()
    assert wait_until(lambda: live.service._open_answers == 0)
    assert wait_until(lambda: not live.service.engine._running)
    with pytest.raises(openai.BadRequestError):
        live.client().chat.completions.create(model="tiny", messages=USER, max_tokens=256)


def test_a_folder_without_weights_is_refused_and_the_port_is_free_again(tmp_path, tokenizer):
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    tokenizer.save(tmp_path)
    with pytest.raises(ModelFileMissingError, match=r"config\.json"):
        serve(tmp_path, port=port)
    listen("127.0.0.1", port).close()


def test_the_process(tmp_path, tokenizer, decoder):
    """`serve` in a process of its own, from a saved folder, ended by SIGTERM."""
    folder = tmp_path / "runs" / "tiny-run" / "model"
    folder.mkdir(parents=True)
    control = tokenizer.control
    save_model(decoder, folder, bos=control["<|bos|>"], eos=control["<|end|>"], pad=control["<|pad|>"])
    tokenizer.save(folder)
    program = (
        "import sys; from pathlib import Path; from ayllu.serve.app import serve\n"
        "serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny-run"]
        done = client.chat.completions.create(model="tiny-run", messages=USER, max_tokens=4)
        assert done.usage.completion_tokens >= 1
        with urllib.request.urlopen(url.replace("/v1", "/readyz")) as answer:
            assert answer.status == 200
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
