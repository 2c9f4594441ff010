"Everything a provider can do to us, over HTTP: the right text or a named error, in time, and accounts that balance with the server's own."
import asyncio, json, random, time, warnings

import pytest

from rlm import lm as lm_module
from rlm.events import (LMConnectionError, LMContextLengthError, LMError, LMNotFoundError, LMRateLimitError,
    LMRequestError, LMServerError, LMTimeoutError, Usage)
from rlm.io import Scope, run_sync
from rlm.lm import LM, litellm_module
from rlm.offline import Fault, Slow, serve, tool_call, tool_calls

pytestmark = [pytest.mark.filterwarnings(f"ignore:{o}") for o in ("Accessing the 'model_", "Item.*ReadOnly")] # LiteLLM's, with the newest pydantic
JSON,EVENTS = {"content-type": "application/json"},{"content-type": "text/event-stream"}

@pytest.fixture(autouse=True)
def quick(monkeypatch):
    litellm_module()
    monkeypatch.setattr(lm_module, "first_pause", 0.01)

def at(srv, **kw): return LM("openai/scripted", base_url=srv.base_url, **dict(dict(timeout=5, retries=1), **kw))
def whole(finish="stop", **message):
    return dict(id="x", object="chat.completion", created=0, model="m", usage=dict(prompt_tokens=1, completion_tokens=1, total_tokens=2),
                choices=[dict(index=0, finish_reason=finish, message=dict(role="assistant", **message))])
def call(name="run_repl", arguments="{}", id="a"): return dict(id=id, type="function", function=dict(name=name, arguments=arguments))
def until(condition, seconds=3):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.005)
    assert condition()

def answer(lm, stream):
    "What comes, as a completion or an error, and how long it took"
    start,seen = time.monotonic(),[]
    try: res = lm.complete("Hi", on_text=seen.append if stream else None)
    except LMError as e: res = e
    if stream and not isinstance(res, Exception): assert "".join(seen) == res.text
    return res,time.monotonic() - start

# ---- failures

half = json.dumps(whole(content="An answer that ends in the mid"))[:150]
long = "x" * 5000
failures = dict(
    storm=(Fault(429), LMRateLimitError), storm_with_pause=(Fault(429, headers={"Retry-After": "0.02"}), LMRateLimitError),
    storm_for_an_hour=(Fault(429, headers={"Retry-After": "3600"}), LMRateLimitError),
    error_500=(Fault(500), LMServerError), error_502_html=(Fault(502, body="<html><h1>Bad Gateway</h1>"), LMServerError), error_503=(Fault(503), LMServerError),
    error_529=(Fault(529, "Overloaded"), LMServerError), hang=(Fault("hang"), LMTimeoutError), late=(Slow(9, "late"), LMTimeoutError),
    drip=(Slow(0.05, "word " * 1000, drip=True), LMTimeoutError), drop=(Fault("drop"), LMConnectionError), reset=(Fault("reset"), LMConnectionError),
    cut=(Fault("cut", body=long), LMError), html=(Fault(200, body="<html>Welcome!", headers={"content-type": "text/html"}), LMError),
    html_called_json=(Fault(200, body="<html>Welcome!", headers=JSON), LMError), half=(Fault(200, body=half, headers=JSON), LMError),
    empty=(Fault(200, body="", headers=JSON), LMError), null=(Fault(200, body="null", headers=JSON), LMError), binary=(Fault(200, body="\0\ufffd\x07", headers=JSON), LMError),
    no_choices=(Fault(200, body=json.dumps(whole() | dict(choices=[])), headers=JSON), LMError),
    too_long=(Fault(400, "This model's maximum context length is 8192 tokens"), LMContextLengthError), refused=(Fault(400, "temperature must be 1"), LMRequestError),
    no_model=(Fault(404), LMNotFoundError))

@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", failures)
def test_failure(name, stream):
    fault,cls = failures[name]
    slow = cls is LMTimeoutError
    with serve([fault]*2) as srv:
        res,seconds = answer(at(srv, timeout=0.3 if slow else 5), stream)
        assert isinstance(res, cls) and "\n" not in str(res) and len(str(res)) < 600
        assert seconds < 5 and res.__cause__ is None and res.__context__ is None
        until(lambda: srv.in_flight == 0)
        assert srv.usage == {}

@pytest.mark.parametrize("name,cls", [("stall", LMTimeoutError), ("drop", LMConnectionError), ("reset", LMError)])
def test_in_the_middle_of_a_stream(name, cls):
    with serve([Fault(name, body="One, two,"), "not asked for"]) as srv:
        seen = []
        with pytest.raises(cls): at(srv, timeout=0.5 if name == "stall" else 5).complete("Hi", on_text=seen.append)
        assert "".join(seen) == "One, two," and len(srv.requests) == 1
        until(lambda: srv.in_flight == 0)

def test_storm_that_passes():
    storm = [Fault(429, headers={"Retry-After": "0.01"}), Fault(429), Fault(503), Fault("reset"), Fault("cut", body="x")]
    with serve([*storm, "Here I am."]) as srv:
        assert at(srv, retries=5).complete("Hi").text == "Here I am." and sum(srv.usage.values()).calls == 1

def test_batch_in_a_storm():
    rng = random.Random(7)
    def reply(messages, tools):
        if rng.random() < 0.3: return rng.choice([Fault(429, headers={"Retry-After": "0.01"}), Fault(500), Fault("drop"), Fault("reset")])
        return messages[-1]["content"].upper()
    with serve(reply) as srv:
        res = at(srv, retries=20, max_concurrency=16, timeout=30).batch([f"word {i}" for i in range(60)])
        assert [o.text for o in res] == [f"WORD {i}" for i in range(60)]
        assert sum(o.usage for o in res).total_tokens == sum(srv.usage.values()).total_tokens

# ---- odd replies

odd = dict(none=(whole(content=None), ""), nothing=(whole(), ""), blank=(whole(content=""), ""), refusal=(whole(content=None, refusal="I cannot."), "I cannot."),
    reasoning=(whole(content="four", reasoning_content="2 and 2"), "four"), only_reasoning=(whole(content=None, reasoning_content="hm"), ""),
    cut_short=(whole("length", content="An answer that"), "An answer that"), filtered=(whole("content_filter", content=None), ""), long=("word " * 2_000_000, "word " * 2_000_000),
    surrogate=("a \ud83d b", None), nul=("a\0b", "a\0b"), unicode=("é中😀\u2028", "é中😀\u2028"))

@pytest.mark.parametrize("name", odd)
def test_odd_reply(name):
    reply,text = odd[name]
    with serve([reply]*2) as srv:
        res,_ = answer(at(srv, timeout=20), False)
        assert isinstance(res, LMError) if text is None and isinstance(res, Exception) else res.text == text or text is None
        assert isinstance(res, LMError) or sum(srv.usage.values()) == Usage(res.usage.prompt_tokens, res.usage.completion_tokens, calls=1)

def test_several_text_parts():
    "LiteLLM refuses them in a whole response, which is then a named error"
    with serve([whole(content=[dict(type="text", text="a"), dict(type="text", text="b")])]) as srv:
        res,_ = answer(at(srv, retries=0), False)
        assert isinstance(res, LMServerError) or res.text == "ab"

calls = dict(not_json=[call(arguments="print(1")], unknown=[call("no_such_tool")], twice=[call(), call()], no_name=[call(None)], no_id=[call(id=None)], none=[call(arguments=None)])

@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", calls)
def test_odd_calls(name, stream):
    if stream and name == "no_name": pytest.skip("a stream has no such call")
    with serve([whole("tool_calls", content=None, tool_calls=calls[name]), "ok"]) as srv:
        lm = at(srv)
        c,_ = answer(lm, stream)
        assert len(c.tool_calls) == len(calls[name]) == len({o["id"] for o in c.tool_calls})
        assert all(isinstance(json.loads(o["function"]["arguments"]), dict) for o in c.tool_calls)
        answers = [dict(role="tool", tool_call_id=o["id"], content="1") for o in c.tool_calls]
        assert lm.complete([dict(role="user", content="Hi"), c.message, *answers]).text == "ok"

@pytest.mark.parametrize("reply", ["One, two, three.", "", tool_call("print(1)", "Look:"), tool_calls(tool_call("a = 1" * 50), tool_call("b")), whole(content="four", reasoning_content="2 and 2")], ids=str)
def test_streamed_or_not(reply):
    with serve([reply]*2) as srv:
        (a,_),(b,_) = answer(at(srv), False),answer(at(srv), True)
    assert b.message | dict(content=b.text) == a.message | dict(content=a.text) and (b.finish_reason, b.model) == (a.finish_reason, a.model)
    assert (b.usage.prompt_tokens, b.usage.completion_tokens) == (a.usage.prompt_tokens, a.usage.completion_tokens)

# ---- cancelled at any moment

@pytest.mark.parametrize("seed", range(3))
def test_accounts_balance(seed):
    "However a batch ends, every reply that the server has sent is in the accounts, every call is told once, and nothing is left"
    rng = random.Random(seed)
    def reply(messages, tools): return Slow(rng.random() * 0.1, messages[-1]["content"])
    with serve(reply) as srv:
        lm,told,started = at(srv, max_concurrency=8),{},[]
        def after(i, res):
            assert i not in told
            told[i] = res
        async def main():
            with Scope() as run: task = asyncio.create_task(lm.abatch([f"word {i}" for i in range(30)], started.append, after))
            await asyncio.sleep(rng.random() * 0.3)
            if seed == 2: task.cancel()
            else: run.cancel()
            await asyncio.gather(task, return_exceptions=True)
        begun = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - begun < 3 and sorted(told) == list(range(30)) and set(started) <= set(told)
        until(lambda: srv.in_flight == 0)
        got = [o for o in told.values() if not isinstance(o, BaseException)]
        assert len(srv.usage) <= 1 and sum((o.usage for o in got), Usage()).total_tokens == sum(srv.usage.values(), Usage()).total_tokens
        assert lm.complete("after").text == "after" # the slots are free
