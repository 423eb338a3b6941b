"""The sampler over HTTP, against a server in this process: what is sent, what is understood, and every way to fail."""

import json
import math
import socket
from collections import Counter

import pytest
from fake_server import FakeServer, chat, slow, text

from fiducial.cli.main import main
from fiducial.core.types import Decoding, Request
from fiducial.sampling.endpoint import Endpoint, HTTPSampler, is_endpoint, open_policy
from fiducial.sampling.http import EndpointError, Server

TWO = [{"role": "user", "content": "2 + 2?"}]


def quick(fake, **settings):
    return Server(fake.url, **{"backoff": 0.01, "timeout": 5.0, **settings})


def draw(fake, requests, decoding=None, model="tiny", **settings):
    logprobs, prompts = settings.pop("logprobs", True), settings.pop("prompts", "text")
    sampler = HTTPSampler(quick(fake, **settings), model, logprobs=logprobs, prompts=prompts)
    return sampler.sample(requests, decoding or Decoding(max_new_tokens=8))


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_text_messages_and_ids_go_where_they_belong():
    with FakeServer(lambda path, body: chat("4") if "messages" in body else text("4")) as fake:
        draw(fake, [Request([5, 6], 3, "2 + 2?"), Request([5], 3, TWO)], parallel=1)
        draw(fake, [Request([5, 6], 3, "2 + 2?")], prompts="ids", parallel=1)
        paths = [path for path, _, _ in fake.sent]
        assert paths == ["/v1/completions", "/v1/chat/completions", "/v1/completions"]
        plain, chatted, ids = (body for _, body, _ in fake.sent)
    # What is off is not sent: some servers refuse settings that they do not know.
    shared = {"model": "tiny", "max_tokens": 8, "temperature": 1.0, "seed": 3}
    assert plain == {**shared, "prompt": "2 + 2?", "logprobs": 1}
    assert chatted == {**shared, "messages": TWO, "logprobs": True}
    assert ids == {**shared, "prompt": [5, 6], "logprobs": 1, "return_token_ids": True}


def test_decoding_and_seeds_are_passed_on():
    decoding = Decoding(max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, stop=("\n", "END"))
    with FakeServer(lambda path, body: text("4")) as fake:
        draw(fake, [Request([], 2**40 + 7, "a")], decoding, logprobs=False)
        draw(fake, [Request([], 7, "a")], Decoding(temperature=0.0), logprobs=False)
        first, greedy = (body for _, body, _ in fake.sent)
    assert first == {"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": 0.5, "seed": 7, "top_k": 4,
                     "top_p": 0.9, "min_p": 0.1, "stop": ["\n", "END"]}  # fmt: skip
    assert "seed" not in greedy and greedy["temperature"] == 0.0


def test_n_completions_have_n_seeds_and_come_in_order():
    def answer(path, body):
        # The first ones answer last, and still come first.
        return slow(0.03 if body["prompt"] == "a" else 0.0, text(f"{body['prompt']}{body['seed']}"))

    with FakeServer(answer) as fake:
        found = Endpoint(quick(fake), "tiny").sample(["a", "b"], n=3, seed=1, temperature=0.7)
        seeds = [body["seed"] for _, body, _ in fake.sent]
        again = Endpoint(quick(fake), "tiny").sample(["a", "b"], n=3, seed=1, temperature=0.7)
    assert len(set(seeds)) == 6
    assert [r.completion[0] for r in found] == ["a"] * 3 + ["b"] * 3 and [r.group for r in found] == [0, 0, 0, 1, 1, 1]
    assert [r.completion for r in found] == [f"{r.prompt}{r.seed % 2**31}" for r in found]
    assert [r.completion for r in again] == [r.completion for r in found]


def test_as_many_at_once_as_asked_for():
    with FakeServer(lambda path, body: slow(0.05, text("4"))) as fake:
        draw(fake, [Request([], i, "a") for i in range(8)], parallel=3)
        assert fake.most == 3 and len(fake.sent) == 8


# -- what is understood ------------------------------------------------------------------------------------------------


def test_tokens_and_logprobs_of_either_path():
    told = [("4", -0.25, [("4", -0.25)]), (".", -1.5, []), ("4", -2.0, [])]
    with FakeServer(
        lambda p, body: chat("4.4", logprobs=told) if "messages" in body else text("4.4", "length", told)
    ) as fake:
        chatted, plain = draw(fake, [Request([], 0, TWO), Request([], 0, "2 + 2?")])
    for rollout in (chatted, plain):
        assert rollout.completion == "4.4" and rollout.sampler_logprobs == [-0.25, -1.5, -2.0]
        assert rollout.token_ids == [0, 1, 0] and rollout.mask == [True] * 3  # two different texts
    assert (chatted.finish, plain.finish) == ("stop", "length")


def test_ids_that_the_server_names_are_kept_beside_those_of_the_prompt():
    told = [("4", -0.25, []), ("</s>", -0.5, [])]
    with FakeServer(lambda p, body: text("4", logprobs=told, token_ids=[44, 2])) as fake:
        [rollout] = draw(fake, [Request([7, 8], 0, "2 + 2?")], prompts="ids")
    assert rollout.token_ids == [7, 8, 44, 2] and rollout.mask == [False, False, True, True]
    assert rollout.sampler_logprobs == [0.0, 0.0, -0.25, -0.5]


def test_without_logprobs_words_are_counted_and_nothing_is_made_up():
    with FakeServer(lambda p, body: text("four is four")) as fake:
        [rollout] = draw(fake, [Request([], 0, "a")])
    assert rollout.num_tokens == 3 and all(math.isnan(p) for p in rollout.sampler_logprobs)


def test_a_server_that_refuses_logprobs_is_asked_without():
    def answer(path, body):
        refusal = json.dumps({"error": {"message": "logprobs are not supported with this model"}}).encode()
        return (400, {}, refusal) if "logprobs" in body else text("4")

    with FakeServer(answer) as fake:
        assert [r.completion for r in draw(fake, [Request([], 0, "a")])] == ["4"]


def test_the_stop_string_that_vllm_names_is_part_of_the_completion():
    with FakeServer(lambda p, body: text("4", stop_reason="END")) as fake:
        [rollout] = draw(fake, [Request([], 0, "a")], Decoding(stop=("END",)))
        [other] = draw(fake, [Request([], 0, "a")], Decoding(stop=("STOP",)))
    assert rollout.completion == "4END" and other.completion == "4"


def test_a_reasoning_model_that_only_thought_wrote_nothing():
    with FakeServer(lambda p, body: chat(None, "length")) as fake:
        [rollout] = draw(fake, [Request([], 0, TWO)])
    assert (rollout.completion, rollout.finish, rollout.num_tokens) == ("", "length", 0)


def test_option_logprobs_add_up_the_spellings_of_the_first_token():
    tops = [("Yes", math.log(0.5)), (" yes", math.log(0.125)), ("No", math.log(0.25)), ("Maybe", math.log(0.1))]
    told = [("Yes", math.log(0.5), tops)]
    with FakeServer(
        lambda p, body: chat("Yes", logprobs=told) if "messages" in body else text("Yes", "", told)
    ) as fake:
        endpoint = Endpoint(quick(fake), "tiny")
        found = endpoint.option_logprobs([TWO, "2 + 2?"], ["yes", "no", "never"])
        bodies = [body for _, body, _ in fake.sent]
    for row in found:
        assert isinstance(row, list) and [math.exp(p) for p in row] == pytest.approx([0.625, 0.25, 0.0])
    assert {body["max_tokens"] for body in bodies} == {1}
    assert [body.get("top_logprobs", body["logprobs"]) for body in bodies] == [20, 20]


def test_options_that_begin_alike_are_refused():
    with FakeServer(lambda p, body: text("1")) as fake:
        with pytest.raises(ValueError, match="options '1' and '10' not apart by their first token"):
            Endpoint(quick(fake), "tiny").option_logprobs(["a"], ["1", "2", "10"])


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    seen = Counter()

    def answer(path, body):
        seen[body["prompt"]] += 1
        return (status, {}, b"busy") if seen[body["prompt"]] < 3 else text("4")

    with FakeServer(answer) as fake:
        assert [r.completion for r in draw(fake, [Request([], 0, "a"), Request([], 0, "b")])] == ["4", "4"]
    assert seen == {"a": 3, "b": 3}


def test_waiting_as_long_as_the_server_asks():
    server = Server("http://127.0.0.1:1/v1", backoff=0.5)
    body = {"prompt": "a"}
    assert server._pause(0, 7.0, body) == 7.0 and server._pause(0, 1e6, body) == 60.0
    for attempt in range(4):  # 1/2, 1, 2, 4 seconds and up to half as much again
        assert 0.5 * 2**attempt <= server._pause(attempt, None, body) <= 0.75 * 2**attempt


def test_what_fails_for_itself_says_why_and_the_others_go_on():
    def answer(path, body):
        refusals = {
            "long": (400, {}, b'{"message": "maximum context length is 8 tokens"}'),
            "odd": (422, {}, b'{"detail": "odd"}'),
            "down": (502, {}, b""),
            "cut": text("ha", "content_filter"),
        }
        return refusals.get(body["prompt"]) or text("4")

    with FakeServer(answer) as fake:
        names = ["fine", "long", "odd", "down", "cut"]
        found = dict(zip(names, draw(fake, [Request([], 0, name) for name in names], retries=1), strict=True))
        assert fake.url in found["long"].score.why
    assert found["fine"].finish == "stop" and found["fine"].score is None
    verdicts = {name: (r.finish, r.score.verdict) for name, r in found.items() if r.score}
    assert verdicts == {"long": ("error", "skipped"), "odd": ("error", "crashed"), "down": ("error", "crashed"),
                        "cut": ("error", "crashed")}  # fmt: skip
    assert "status 502: nothing (2 attempts)" in found["down"].score.why and "odd" in found["odd"].score.why
    assert all(r.completion == "" for name, r in found.items() if name != "fine")


def test_slow_replies_end_and_are_told_as_such():
    with FakeServer(lambda path, body: slow(0.3 if body["prompt"] == "a" else 0.0, text("4"))) as fake:
        late, fine = draw(fake, [Request([], 0, "a"), Request([], 0, "b")], timeout=0.1, retries=1)
    assert late.score and late.score.verdict == "timeout" and "no answer within 0.1 s" in late.score.why
    assert fine.completion == "4"


def test_when_everything_fails_the_call_does():
    with FakeServer(lambda path, body: (503, {}, b'{"error": "overloaded"}')) as fake:
        with pytest.raises(EndpointError, match=r"/v1/completions answered with status 503: overloaded \(2 attempts\)"):
            draw(fake, [Request([], 0, "a"), Request([], 0, "b")], retries=1)
        assert len(fake.sent) == 4


@pytest.mark.parametrize(
    "reply, told",
    [
        ((200, {}, b"<html>hello</html>"), "no JSON: '<html>hello</html>'; is the address right"),
        ((200, {}, b'{"choices": []}'), "answered without choices"),
        ((200, {}, b'{"choices": [{"finish_reason": "stop"}]}'), "holds no text"),
        ((200, {}, json.dumps(text("4") | {"choices": [{"text": "4", "logprobs": {"content": [{}]}}]}).encode()),
         "log-probabilities in an unknown form"),
        ((404, {}, b'{"error": {"message": "no model other"}}'), "status 404: no model other"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "status 302"),
    ],
)  # fmt: skip
def test_a_wrong_address_or_server_stops_at_once(reply, told):
    with FakeServer(lambda path, body: reply) as fake:
        with pytest.raises(EndpointError, match=told) as raised:
            draw(fake, [Request([], 0, "a")])
        assert str(raised.value).startswith("http://127.0.0.1:") and len(fake.sent) == 1


@pytest.mark.parametrize("status, cut", [(None, {}), (200, {"Content-Length": "5000"})])
def test_a_connection_that_breaks_is_tried_again(status, cut):
    replies = [(status, cut, b'{"choi'), text("4")]
    with FakeServer(lambda path, body: replies.pop(0)) as fake:
        assert draw(fake, [Request([], 0, "a")])[0].completion == "4"


def test_no_logprobs_where_a_verdict_is_read_from_them():
    with FakeServer(lambda path, body: text("yes")) as fake:
        with pytest.raises(EndpointError, match="gives no log-probabilities of the likeliest tokens of tiny"):
            Endpoint(quick(fake), "tiny").option_logprobs(["a"], ["yes", "no"])


# -- addresses and keys ------------------------------------------------------------------------------------------------


def test_names():
    assert is_endpoint("http://h:1/v1#m") and is_endpoint("https://h/v1") and not is_endpoint("runs/sft/model")
    with FakeServer(lambda path, body: text("4"), models=["only"]) as fake:
        opened = open_policy(fake.url)
        assert isinstance(opened, Endpoint) and opened.model == "only"
        assert open_policy(f"{fake.url}#org/other").model == "org/other"  # type: ignore[union-attr]
        assert opened.sample("a")[0].completion == "4"
    with FakeServer(lambda path, body: text("4"), models=["a", "b"]) as fake:
        with pytest.raises(ValueError, match="#MODEL; it has a, b"):
            open_policy(fake.url)


@pytest.mark.parametrize("name", ["http:///v1", "http://me:secret@host/v1#m", "http://host/v1?key=secret#m"])
def test_addresses_that_are_none_or_hold_secrets(name):
    with pytest.raises(ValueError, match="http://") as raised:
        open_policy(name)
    assert "secret" not in str(raised.value)


def test_nobody_there_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match=f"http://127.0.0.1:{port}/v1/models cannot be reached: Connection refused"):
        open_policy(f"http://127.0.0.1:{port}/v1#m")


def test_the_key_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv("FIDUCIAL_API_KEY", "sk-hidden")
    monkeypatch.setenv("MINE", "sk-mine")
    refusal = (401, {}, b'{"error": {"message": "wrong key sk-hidden"}}')
    with FakeServer(lambda path, body: refusal if body["prompt"] == "b" else text("4")) as fake:
        draw(fake, [Request([], 0, "a")])
        with pytest.raises(EndpointError, match=r"wrong key \*\*\*; a key is read from .* FIDUCIAL_API_KEY") as raised:
            draw(fake, [Request([], 0, "b")])
        draw(fake, [Request([], 0, "a")], key_from="MINE")
        keys = [headers["Authorization"] for _, _, headers in fake.sent]
    assert keys == ["Bearer sk-hidden", "Bearer sk-hidden", "Bearer sk-mine"] and "sk-" not in str(raised.value)
    monkeypatch.setenv("MINE", "sk-\nmine")
    with pytest.raises(ValueError, match="MINE holds characters that no header can carry"):
        Server("http://h/v1", key_from="MINE")


def test_weights_are_not_sent():
    sampler = HTTPSampler(Server("http://127.0.0.1:1/v1"), "m")
    sampler.update(None, 3)
    assert sampler.version == 3
    with pytest.raises(ValueError, match="takes no weights"):
        sampler.update({}, 4)


# -- wherever a model is named -----------------------------------------------------------------------------------------


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return code, (json.loads(out) if code == 0 else out), err


def solver(path, body):
    """Answers sums of two numbers; those above 99 it gets wrong by one."""
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    total = sum(int(number) for number in asked.split("is ")[1].rstrip("?").split(" + "))
    said = f"<answer>{total + (total > 99)}</answer>"
    return chat(said) if "messages" in body else text(said)


def test_verbs_take_a_server(capsys, tmp_path):
    rows = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in ((1, 2), (30, 4), (70, 40))]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeServer(solver) as fake:
        for more in ((), ("--chat",)):
            code, found, _ = run(capsys, "eval", fake.url, file, "--reward", "numeric", "--k", "2", "--json", *more)
            assert code == 0 and found["metrics"]["pass@1"] == pytest.approx(2 / 3)
            assert "entropy" not in found["metrics"] and found["metrics"]["completions/mean_length"] == 1
        assert {path for path, _, _ in fake.sent} == {"/v1/completions", "/v1/chat/completions"}
        code, found, _ = run(capsys, "sample", fake.url, "--prompt", "What is 2 + 2?", "--json")
        assert code == 0 and found[0]["completion"] == "<answer>4</answer>" and found[0]["logprobs"] == [None]
        code, _, err = run(capsys, "sample", fake.url, "--prompt", "What is 2 + 2?", "--trace")
        assert code == 2 and "--trace reads all probabilities" in err
        out = tmp_path / "pairs.jsonl"
        code, _, err = run(capsys, "data", "pairs", fake.url, file, "--reward", "numeric", "--out", out)
        assert code == 2 and "no row was made" in err  # the same answer every time


def test_a_server_that_fails_is_an_exit_code_and_a_sentence(capsys, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    with FakeServer(lambda path, body: (404, {}, b'{"message": "no such path"}')) as fake:
        code, _, err = run(capsys, "eval", fake.url, file, "--reward", "numeric", "--json")
    assert code == 1 and err == f"fiducial eval: {fake.url}/completions answered with status 404: no such path\n"


def test_a_server_judges(capsys, tmp_path):
    """As a reward by a rating in text, and of two by the probabilities of A and B."""

    def answer(path, body):
        said = body["messages"][-1]["content"]
        if "Rate it" in said:
            return chat("Rating: 10" if "[Response]\nkind" in said else "Rating: 1")
        first = said.split("[Response A]\n")[1].startswith("kind")
        tops = [("A", math.log(0.9 if first else 0.3)), ("B", math.log(0.1 if first else 0.7))]
        return chat("A", logprobs=[(*tops[0], tops)])

    rows = [{"prompt": "hello", "completion": "kind words"}, {"prompt": "hello", "completion": "go away"}]
    file, pairs, out = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs.write_text('{"prompt": "hello", "chosen": "kind words", "rejected": "go away"}\n')
    with FakeServer(answer) as fake:
        code, found, _ = run(capsys, "score", f"ai:{fake.url}", file, "--json")
        assert code == 0 and [row["value"] for row in found] == [1.0, -1.0]
        code, found, _ = run(capsys, "data", "ai_feedback", fake.url, pairs, "--out", out, "--json")
    # 0.9 with the kind one first, 1 - 0.3 with it second: (0.9 + 0.7) / 2.
    assert code == 0 and json.loads(out.read_text())["pref_prob"] == pytest.approx(0.8)
    assert found["metrics"]["judge/position_bias"] == pytest.approx(0.2)
