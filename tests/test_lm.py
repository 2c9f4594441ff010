"An `LM` against real HTTP faults: what is tried again, what each failure says, what is kept secret, and whose event loop may call it."
import asyncio, contextvars, json, logging, os, signal, subprocess, sys, textwrap, threading, time, traceback, types
from concurrent.futures import CancelledError as Cancelled
from email.utils import formatdate

import pytest

from rlm import io as io_module, lm as lm_module
from rlm.events import (InputError, LimitExceeded, LMAuthError, LMConnectionError, LMContextLengthError, LMError,
    LMNotFoundError, LMRateLimitError, LMRequestError, LMServerError, LMTimeoutError)
from rlm.io import Scope, run_async, run_sync, submit
from rlm.lm import LM, as_message, as_usage, litellm_module
from rlm.model import RLM
from rlm.offline import Fault, ScriptedLM, Slow, serve, tool_call, tool_calls

pytestmark = [pytest.mark.filterwarnings(f"ignore:{o}") for o in ("Accessing the 'model_", "Item.*ReadOnly")] # LiteLLM's, with the newest pydantic
KEY = "sk-Zq7-this-must-not-be-seen"
NOW = {"retry-after": "0.01"}
JSON = {"content-type": "application/json"}

def at(srv, model="openai/scripted", **kw): return LM(model, base_url=srv.base_url, **dict(dict(timeout=5), **kw))
def error(status, message, type="", code=None, **kw):
    return Fault(status, headers=JSON | kw, body=json.dumps(dict(error=dict(message=message, type=type, param=None, code=code))))
def fails(lm, cls=LMError, prompt="Hi", **kw):
    with pytest.raises(LMError) as e: lm.complete(prompt, **kw)
    assert type(e.value) is cls or cls is LMError, e.value
    return e.value
def until(condition, seconds=3):
    "Wait for what another thread is about to do"
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.005)
    assert condition()

@pytest.fixture(autouse=True)
def quick(monkeypatch): monkeypatch.setattr(lm_module, "first_pause", 0.01)

# ---- what is tried again

@pytest.mark.parametrize("fault", [
    Fault(429, headers=NOW), Fault(408), Fault(500), Fault(502), Fault(503, headers=NOW), Fault(504), Fault(529), Fault("drop"),
    Fault(200, headers=JSON, body="{'not': json"), Fault(200, body="<html>Welcome!</html>"), Fault(200, body=""), Fault(200, headers=JSON, body="null"),
    Fault(200, headers=JSON, body='{"choices": [{"nothing": 1}]}'), dict(id="x", object="chat.completion", created=0, model="m", choices=[]),
    error(200, "overloaded, come back later")], ids=lambda o: str(getattr(o, "body", None) or getattr(o, "status", "no choices"))[:20])
def test_tried_again(fault):
    with serve([fault, fault, "Here I am."]) as srv:
        assert at(srv).complete("Hello?").text == "Here I am."
        assert len(srv.requests) == 3

REFUSED = [
    (400, LMRequestError, "does not accept"), (401, LMAuthError, "key"), (402, LMRequestError, "does not accept"), (403, LMAuthError, "key"),
    (404, LMNotFoundError, "name"), (413, LMContextLengthError, "less text"), (422, LMRequestError, "does not accept"),
    (error(400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."), LMContextLengthError, "less text"),
    (error(400, "too much", code="context_length_exceeded"), LMContextLengthError, "less text"),
    (error(400, "prompt is too long: 210000 tokens > 200000 maximum"), LMContextLengthError, "less text"),
    (error(400, "Invalid model name passed in model=x. Call `/v1/models`"), LMNotFoundError, "model's name"),
    (error(429, "You exceeded your current quota", type="insufficient_quota", code="insufficient_quota"), LMRateLimitError, "quota"),
    (Fault(429, headers={"retry-after": "3600"}), LMRateLimitError, "try again in 3600 s")]

@pytest.mark.parametrize("fault,cls,words", REFUSED, ids=[str(o[0] if isinstance(o[0], int) else o[0].body or o[0].headers)[:40] for o in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_told_at_once(fault, cls, words, stream):
    with serve([Fault(fault) if isinstance(fault, int) else fault, "not asked for"]) as srv:
        lm = at(srv, api_key=KEY)
        with pytest.raises(LMError) as e: list(lm.stream("Hi")) if stream else lm.complete("Hi")
        assert len(srv.requests) == 1
    e = e.value
    assert type(e) is cls and words in str(e) and (e.model, e.endpoint) == (lm.model, lm.endpoint)
    assert_sentence(e, lm)

def assert_sentence(e, lm):
    said = str(e)
    assert said.startswith(f"{lm.model} at {lm.endpoint} failed: ") and said.endswith(").") and "\n" not in said and len(said) < 600
    for noise in ("litellm", "Traceback", "Exception", "object at 0x", "..", " ("*2): assert noise not in said.replace(lm.endpoint, "")

@pytest.mark.parametrize("fault,cls,words", [(Fault(429, headers=NOW), LMRateLimitError, "try again in 1 s"), (Fault(503), LMServerError, "try again later"),
    (Fault("drop"), LMConnectionError, "server is running"), (Fault(200, body="<html>Welcome!"), LMServerError, "no chat completion: '<html>Welcome!'"),
    (Fault(200, body="{", headers=JSON), LMServerError, "not JSON"), (error(500, "a\nb"), LMServerError, "a b")], ids=str)
def test_told_in_the_end(fault, cls, words):
    with serve([fault]*3) as srv:
        lm = at(srv, retries=2)
        e = fails(lm, cls)
        assert len(srv.requests) == 3 and words in str(e)
    assert_sentence(e, lm)

def test_no_retries():
    with serve([Fault(500), "ok"]) as srv:
        fails(at(srv, retries=0), LMServerError)
        assert len(srv.requests) == 1

def test_pauses_grow_and_differ():
    lm = LM("m", retries=9)
    e = litellm_module().APIConnectionError("x", llm_provider="p", model="m")
    pauses = [lm._pause(e, i) for i in range(9)]
    assert all(0.5 <= p/(lm_module.first_pause * 2**i) <= 1 for i,p in enumerate(pauses)) and lm._pause(e, 9) is None
    assert lm._pause(e, 3) != lm._pause(e, 3)
    lm_module.first_pause = 1000
    assert lm._pause(e, 5) <= 60

def test_retry_after():
    def asked(value):
        e = Exception()
        e.response = types.SimpleNamespace(headers={"Retry-After": value})
        return lm_module._retry_after(e)
    assert [asked(o) for o in ("1.5", "0", "-3", "soon", "nan", "")] == [1.5] + [None]*5
    assert asked(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2) and asked(formatdate(time.time() - 100)) is None

@pytest.mark.parametrize("model", ["openai/scripted", "hosted_vllm/scripted"]) # by OpenAI's client, by LiteLLM's own
def test_retry_after_is_waited_out(model):
    litellm_module()
    date = formatdate(time.time() + 2, usegmt=True) # in one to two seconds
    asked,least = ("0.3", 0.3) if model.startswith("hosted_vllm") else (date, 0.9)
    with serve([Fault(429, headers={"Retry-After": asked}), "ok"]) as srv:
        start = time.monotonic()
        assert at(srv, model).complete("Hi").text == "ok" and least <= time.monotonic() - start < 3
    with serve([Fault(429, headers={"Retry-After": "6"}), "ok"]) as srv:
        fails(at(srv, model, timeout=5), LMRateLimitError)
        assert len(srv.requests) == 1

def test_refused():
    with serve("ok") as srv: url = srv.base_url
    lm = LM("openai/scripted", base_url=url, retries=1)
    assert_sentence(fails(lm, LMConnectionError), lm)

    assert "Connect call failed" in str(fails(lm))
    lm = LM("openai/scripted", base_url="http://nowhere.invalid/v1", retries=0)
    assert "check that the server is running and that the URL is right" in str(fails(lm))
    assert "not known" in str(fails(lm, LMConnectionError)) or "resol" in str(fails(lm))

@pytest.mark.parametrize("url", ["localhost:1/v1", "http://", "http://[bad/v1", "ftp://host/v1", "http://localhost:99999/v1", "http://localhost:port/v1", 8000, "not a url"])
def test_impossible_urls(url):
    with pytest.raises(InputError, match="base_url must be a URL such as") as e: LM("openai/scripted", base_url=url)
    assert str(url) in str(e.value)

@pytest.mark.parametrize("fault", [Fault("hang"), Slow(0.02, "x"*4000, drip=True), Slow(9, "late")], ids=["hang", "drip", "late"])
def test_no_answer(fault):
    with serve([fault, fault]) as srv:
        lm,start = at(srv, timeout=0.25, retries=1),time.monotonic()
        e = fails(lm, LMTimeoutError)
        assert len(srv.requests) == 2 and 0.5 <= time.monotonic() - start < 2
        assert "no reply in time" in str(e) and "`timeout`" in str(e)
        assert_sentence(e, lm)

def test_timeout_of_one_request():
    with serve([Fault("hang"), "ok"]) as srv: fails(at(srv, timeout=60, retries=0), LMTimeoutError, timeout=0.1)
    with serve("ok") as srv: assert LM("m", base_url=srv.base_url, timeout=None).complete("Hi").text == "ok"

def test_parameters():
    with serve("ok") as srv:
        at(srv, temperature=0.5, top_p=0.5).complete("Hi", temperature=0.1, max_retries=0, num_retries=0)
        body = srv.requests[0]["body"]
        assert (body["temperature"], body["top_p"], body["model"]) == (0.1, 0.5, "scripted") and body["messages"] == [dict(role="user", content="Hi")]

def test_messages_are_left_alone():
    messages = [dict(role="system", content="s"), dict(role="user", content=[dict(type="text", text="u")]), tool_call("1"),
                dict(role="tool", tool_call_id="call_1", content="1")]
    before = json.dumps(messages)
    with serve("ok") as srv: at(srv).complete(messages)
    assert json.dumps(messages) == before

# ---- names, providers, keys that are missing

@pytest.fixture
def no_keys(monkeypatch):
    for k in [o for o in os.environ if lm_module._secret_names.search(o)]: monkeypatch.delenv(k)

@pytest.mark.parametrize("model,env", [("gpt-4o-mini", "OPENAI_API_KEY"), ("openai/gpt-5", "OPENAI_API_KEY"), ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY"),
    ("gemini/gemini-2.5-flash", "GEMINI_API_KEY"), ("azure/x", "AZURE_API_BASE and AZURE_API_VERSION and AZURE_API_KEY")])
def test_missing_key(model, env, no_keys):
    lm_module.litellm_module()
    lm,start = LM(model, timeout=5, retries=4),time.monotonic()
    lm_module.first_pause = 5 # a second try would be noticed
    e = fails(lm, LMAuthError)
    assert time.monotonic() - start < 4 and env in str(e) and "no key" in str(e) and "pass api_key" in str(e)
    assert_sentence(e, lm)

def test_several_variables(no_keys):
    lm = LM("bedrock/anthropic.claude-3-sonnet-20240229-v1:0")
    assert lm._advise(LMAuthError, None, lm._missing_keys()) == "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass api_key"

def test_missing_key_at_a_server(no_keys):
    with serve("ok", api_key="sk-right") as srv:
        e = fails(LM("my-alias", base_url=srv.base_url), LMAuthError)
        assert "set OPENAI_API_KEY, or pass api_key" in str(e) and len(srv.requests) == 1

def test_missing_settings(no_keys):
    e = fails(LM("azure_ai/x", retries=4), LMRequestError)
    assert "api_base" in str(e) and "set up what is missing" in str(e)

@pytest.mark.parametrize("model", ["nosuch/model", "nosuch"])
def test_unknown_provider(model, capfd):
    lm = LM(model)
    e = fails(lm, LMNotFoundError)
    assert "no provider is known" in str(e) and "provider/model" in str(e)
    assert_sentence(e, lm)
    assert capfd.readouterr() == ("", "")

def test_unknown_model():
    with serve("ok", models=["known"]) as srv:
        lm = at(srv, "openai/unknown")
        e = fails(lm, LMNotFoundError)
        assert "unknown" in str(e) and "/v1" in str(e) and len(srv.requests) == 1
        assert LM("known", base_url=srv.base_url).complete("Hi").text == "ok"

@pytest.mark.parametrize("model,sent", [("my-model", "my-model"), ("org/my-model", "org/my-model"), ("gpt-4o-mini", "gpt-4o-mini"), ("claude-sonnet-4-5", "claude-sonnet-4-5"),
                                        ("gemini-2.5-pro", "gemini-2.5-pro"), ("openai/openai/gpt-oss-20b", "openai/gpt-oss-20b")])
def test_names_at_a_server(model, sent):
    with serve("ok") as srv:
        assert LM(model, base_url=srv.base_url).complete("Hi").text == "ok"
        assert srv.requests[0]["body"]["model"] == sent and srv.requests[0]["path"] == "/v1/chat/completions"

def test_whose_key(monkeypatch, no_keys):
    def sent(model, **kw):
        with serve([Fault(400)]) as srv:
            fails(LM(model, base_url=srv.base_url, **kw))
            h = {k.lower(): v for k,v in srv.requests[0]["headers"].items()}
            return h.get("x-api-key") or h.get("authorization")
    assert sent("m") == "Bearer none" and sent("m", api_key="sk-given") == "Bearer sk-given"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    assert sent("m") == "Bearer sk-from-the-environment" and sent("m", api_key="sk-given") == "Bearer sk-given"
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-env")
    assert sent("anthropic/claude-sonnet-4-5") == "sk-ant-env" # a server of one's own does not make it "none"

def test_not_a_model():
    for o in ("", None, 3, ["m"]):
        with pytest.raises(InputError): LM(o)

def test_endpoint(monkeypatch):
    assert LM("openai/gpt-5").endpoint == "openai's default endpoint" and LM("gpt-5").endpoint == "the provider's default endpoint"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:pass-word@localhost:1/v1")
    assert LM("openai/gpt-5").endpoint == "http://***@localhost:1/v1"

# ---- secrets

def held(e):
    "All that can be read off an exception without looking for it"
    seen,res,todo = set(),[],[e]
    while todo:
        o = todo.pop()
        if o is None or id(o) in seen: continue
        seen.add(id(o))
        res += [repr(o), str(o), repr(o.args), repr(vars(o)), *traceback.format_exception(o), repr(getattr(o, "__notes__", None))]
        todo += [o.__cause__, o.__context__, *(a for a in o.args if isinstance(a, BaseException))]
        for frame,_ in traceback.walk_tb(o.__traceback__):
            if frame.f_code.co_filename == __file__: continue
            for v in frame.f_locals.values():
                res += [repr(v), repr(getattr(v, "__dict__", None))]
                if isinstance(v, BaseException): todo.append(v)
    return "\n".join(res)

def quoted(status, secret): return error(status, f"Incorrect API key provided: {secret}. Sent: Bearer {secret}, x-api-key={secret}")

def leaky(case, srv, monkeypatch):
    "An `LM` that has the key from somewhere"
    if case == "argument": return at(srv, api_key=KEY)
    if case == "plain word": return at(srv, api_key=KEY[3:])
    if case == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        return at(srv)
    if case == "header": return at(srv, extra_headers={"Authorization": f"Bearer {KEY}", "X-Api-Key": KEY[3:]})
    if case == "URL": return LM("openai/scripted", base_url=srv.base_url.replace("://", f"://me:{KEY[3:]}@"), timeout=5)
    return LM("openai/scripted", base_url=f"{srv.base_url}?api_key={KEY[3:]}", timeout=5)

@pytest.mark.parametrize("case", ["argument", "plain word", "environment", "header", "URL", "query"])
def test_keys_are_not_seen(case, monkeypatch, caplog, capfd):
    litellm_module()
    for name in ("LiteLLM", "LiteLLM Router", "asyncio", "aiohttp", "httpx", "openai"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, caplog.handler])
        monkeypatch.setattr(logger, "level", logging.WARNING if name.startswith("LiteLLM") else logging.INFO)
    secret = KEY if case in ("argument", "environment") else KEY[3:]
    for reply in (quoted(401, secret), quoted(500, secret), Fault("hang"), Fault("drop"), Fault(200, body=f"<html>{secret}")):
        with serve(lambda messages, tools: reply) as srv:
            lm = leaky(case, srv, monkeypatch)
            lm.retries,lm.timeout = 0,0.1
            for stream in (False, True):
                with pytest.raises(LMError) as e: list(lm.stream("Hi")) if stream else lm.complete("Hi")
                everything = held(e.value) + repr(lm) + str(lm) + lm.endpoint + repr(vars(lm)) + repr([lm])
                assert KEY[3:] not in everything
                assert e.value.__cause__ is None and e.value.__context__ is None
    out,err = capfd.readouterr()
    assert KEY[3:] not in caplog.text and (out, err) == ("", "")

def test_secrets_of_a_url():
    lm = LM("m", base_url="http://team:pass%20word@localhost:8000/v1?key=AIza-1234&alt=json", api_key=KEY, extra_headers={"X-Auth-Token": "Basic dGVhbQ"})
    said = str(lm._explain(ValueError(f"http://localhost:8000 refused 'pass word', AIza-1234, dGVhbQ and {KEY}")))
    assert said.startswith("m at http://***@localhost:8000/v1?key=***&alt=json failed: http://localhost:8000 refused '***', ***, *** and *** (")

def test_no_key_in_a_completion():
    with serve("ok") as srv: r = at(srv, api_key=KEY).complete("Hi")
    assert KEY not in repr(vars(r)) + repr(r.response.__dict__) + repr(r.response._hidden_params) + r._repr_markdown_()

def test_scrub(monkeypatch):
    scrub = lm_module.scrub
    assert scrub("Wrong key: sk-ABCDE****wxyz.") == "Wrong key: ***."
    assert scrub("http://me:p@ss@host:8/v1?x=1 and http://a/b@c") == "http://***@host:8/v1?x=1 and http://a/b@c"
    assert scrub("https://host/v1?alt=json&key=AIzaXYZ&b=1") == "https://host/v1?alt=json&key=***&b=1"
    assert scrub("abcd abc", "abcd", "abc") == "*** abc" # what is too short would eat words
    monkeypatch.setenv("MY_SERVICE_TOKEN", "tok-12345678")
    monkeypatch.setenv("KEYBOARD", "us")
    assert scrub("tok-12345678 is us") == "*** is us"

# ---- what comes back

def odd(**message): return dict(id="x", object="chat.completion", created=0, model="m", usage=dict(prompt_tokens=1, completion_tokens=1, total_tokens=2),
                                choices=[dict(index=0, finish_reason="stop", message=dict(role="assistant", **message))])
def call(id="a", name="run_repl", arguments="{}", **kw): return dict(id=id, type="function", function=dict(name=name, arguments=arguments), **kw)
def arguments(raw): return as_message(dict(tool_calls=[call(arguments=raw)]))["tool_calls"][0]["function"]["arguments"]

@pytest.mark.parametrize("message,content", [(dict(content=None), None), (dict(content=""), ""), (dict(), None), (dict(content="Hi"), "Hi")], ids=str)
def test_odd_content(message, content):
    assert as_message(message)["content"] == content
    with serve([odd(**message)]) as srv: c = at(srv, retries=0).complete("Hi")
    assert c.text == (content or "") and c.message["role"] == "assistant" and c.tool_calls == []

def test_content_in_parts():
    parts = [dict(type="text", text="a"), "b", dict(type="image_url", image_url={}), dict(type="text", text=None)]
    assert as_message(dict(content=parts))["content"] == "ab"
    assert as_message(dict(content=[]))["content"] == ""

def test_reasoning_is_kept_apart():
    with serve([odd(content="four", reasoning_content="2 and 2")]) as srv: c = at(srv).complete("Hi")
    assert (c.text, c.message["reasoning_content"]) == ("four", "2 and 2")

@pytest.mark.parametrize("raw,kept", [('{"a": 1}', '{"a": 1}'), ("", None), (None, None), ("print(1", None), ("[1]", None), ('"x"', None), ("3", None), ("null", None),
                                      ('{"a": 1', None), ({"a": 1}, '{"a": 1}')], ids=str)
def test_odd_arguments(raw, kept):
    assert arguments(raw) == (kept or json.dumps(dict(invalid_json=raw or "")))
    assert isinstance(json.loads(arguments(raw)), dict)

@pytest.mark.parametrize("calls", [[call(arguments="print(1")], [call(id=None), call(id=None)], [call(), call()], [call(name=None)], [call(arguments=None)], [call(name="no_such")],
                                   [dict(function=dict(name="f"))], [call(), call(), call(id="a_")]], ids=str)
def test_odd_calls(calls):
    with serve([odd(content=None, tool_calls=calls), "ok"]) as srv:
        lm = at(srv, retries=0)
        c = lm.complete("Hi")
        ids = [o["id"] for o in c.tool_calls]
        assert len(c.tool_calls) == len(calls) == len(set(ids)) and all(isinstance(o, str) and o for o in ids)
        for o in c.tool_calls:
            assert o["type"] == "function" and isinstance(o["function"]["name"], str) and isinstance(json.loads(o["function"]["arguments"]), dict)
        answers = [dict(role="tool", tool_call_id=i, content="1") for i in ids]
        assert lm.complete([dict(role="user", content="Hi"), c.message, *answers]).text == "ok" # it can be sent back

def test_usage():
    used = dict(prompt_tokens=1000, completion_tokens=200, total_tokens=1200, prompt_tokens_details=dict(cached_tokens=800),
                completion_tokens_details=dict(reasoning_tokens=150))
    with serve([odd(content="a") | dict(usage=used)]*2 + [odd(content="a") | dict(usage=None), odd(content="a") | dict(usage=used)]) as srv:
        u = at(srv, "openai/gpt-4o-mini").complete("Hi").usage
        assert (u.prompt_tokens, u.completion_tokens, u.cached_tokens, u.reasoning_tokens, u.calls) == (1000, 200, 800, 150, 1)
        assert u.cost == pytest.approx(200*0.15e-6 + 800*0.075e-6 + 200*0.6e-6)
        assert at(srv, "openai/nobody-knows-this").complete("Hi").usage.cost is None
        assert at(srv, "openai/gpt-4o-mini").complete("Hi").usage.calls == 1 # without usage
        assert at(srv, "gpt-4o-mini").complete("Hi").usage.cost == u.cost # that did not spoil the price

def test_price():
    litellm = litellm_module()
    def cost(model): return as_usage(litellm.ModelResponse(usage=dict(prompt_tokens=1000, completion_tokens=100, total_tokens=1100)), model).cost
    assert cost("openai/gpt-4o-mini") == pytest.approx(0.00021) and cost("nobody/knows") is None
    assert cost("ollama/llama3") == 0 and cost("offline/extractive") == 0 # listed as free
    unpriced = [k for k,v in litellm.model_cost.items() if v.get("mode") == "chat" and not any("per_token" in o or "tier" in o for o in v)]
    assert unpriced and cost(unpriced[0]) is None # LiteLLM says that it costs nothing

# ---- many at once

def test_batch():
    def reply(messages, tools): return Fault(400, message="unacceptable") if messages[-1]["content"] == "bad" else messages[-1]["content"].upper()
    started,ended = [],{}
    def before(i):
        if i == 3: raise LimitExceeded("max_sub_calls", 4, 3)
        started.append(i)
    with serve(reply, latency=0.01) as srv:
        res = at(srv, max_concurrency=2).batch(["a", "bad", "b", "c", [dict(role="user", content="d")]], before, ended.__setitem__, temperature=0)
        assert srv.in_flight_max == 2 and len(srv.requests) == 4 and srv.requests[0]["body"]["temperature"] == 0
    assert [getattr(o, "text", type(o)) for o in res] == ["A", LMRequestError, "B", LimitExceeded, "D"]
    assert started == [0, 1, 2, 4] and ended == dict(enumerate(res))
    assert LM("m").batch([]) == []

def test_batch_that_cannot_go_on():
    def after(i, res): raise OSError("disk full")
    with serve(lambda messages, tools: "ok" if messages[-1]["content"] == "0" else Fault("hang")) as srv:
        with pytest.raises(OSError, match="disk full"): at(srv).batch([str(i) for i in range(5)], after=after)
        until(lambda: srv.in_flight == 0) # the others are not paid for

# ---- streams

def test_stream():
    with serve(["One, two, three.", tool_calls(tool_call("print(1)", "Look:"), tool_call("print(2)" * 20))]) as srv:
        lm = at(srv)
        s = lm.stream("Count.")
        assert s.completion is None or s.completion.text
        assert list(s) == ["One,", " two,", " three."] and list(s) == []
        c = s.completion
        assert (c.text, c.finish_reason, c.model) == ("One, two, three.", "stop", lm.model) and c.usage.completion_tokens and c.usage.calls == 1
        s = lm.stream("Look.")
        assert "".join(s) == "Look:"
        sent = [tool_call("print(1)"), tool_call("print(2)" * 20)]
        assert [o["function"] for o in s.completion.tool_calls] == [o["tool_calls"][0]["function"] for o in sent]
        assert srv.requests[0]["body"]["stream_options"] == dict(include_usage=True)

def test_stream_is_tried_again_until_there_is_text():
    with serve([Fault(503), Fault("drop"), "Here I am."]) as srv:
        s = at(srv).stream("Hi")
        assert "".join(s) == s.completion.text == "Here I am." and len(srv.requests) == 3
    events = dict(choices=[dict(delta=dict(role="assistant", content="One,"))]), dict(error=dict(message="overloaded", code=503))
    broken = Fault(200, headers={"content-type": "text/event-stream"}, body="".join(f"data: {json.dumps(o)}\n\n" for o in events))
    with serve([broken, "not asked for"]) as srv:
        s,pieces = at(srv).stream("Hi"),[]
        with pytest.raises(LMError, match="overloaded") as e:
            for o in s: pieces.append(o)
        assert pieces == ["One,"] and s.completion is None and len(srv.requests) == 1
        assert_sentence(e.value, at(srv))
        with pytest.raises(LMError): list(s)
    with serve([Fault("drop", body="One, two,")]*2) as srv:
        with pytest.raises(LMConnectionError): list(at(srv, retries=1).stream("Hi"))

@pytest.mark.parametrize("body", ["", "data: [DONE]\n\n", "data: {bad\n\n", "<html>"])
def test_stream_without_content(body):
    with serve([Fault(200, headers={"content-type": "text/event-stream"}, body=body)]*2) as srv:
        s = at(srv, retries=1).stream("Hi")
        with pytest.raises(LMError) as e: list(s)
        assert_sentence(e.value, at(srv))

def test_stream_left_early():
    with serve([Slow(0.02, "word " * 1000, drip=True), Fault("hang"), "next"]) as srv:
        lm = at(srv, max_concurrency=1)
        for piece in lm.stream("Hi"): break
        until(lambda: srv.in_flight == 0)
        s = lm.stream("Hi")
        until(lambda: srv.in_flight == 1)
        s.close()
        assert list(s) == []
        until(lambda: srv.in_flight == 0)
        assert lm.complete("Hi").text == "next" # the slot is free again

def test_stream_too_slow():
    with serve([Slow(0.05, "word " * 1000, drip=True)]) as srv:
        with pytest.raises(LMTimeoutError): list(at(srv, timeout=0.3).stream("Hi"))
        until(lambda: srv.in_flight == 0)

# ---- whose thread, whose loop

def test_max_concurrency():
    with serve("ok", latency=0.02) as srv:
        lm = at(srv, max_concurrency=3)
        async def many(): return await asyncio.gather(*(lm.acomplete(str(i)) for i in range(15)))
        assert [c.text for c in asyncio.run(many())] == ["ok"]*15 and srv.in_flight_max == 3

def test_sixteen_threads():
    def reply(messages, tools): return messages[-1]["content"].upper()
    with serve(reply) as srv:
        lm,got = at(srv),{}
        def work(i): got[i] = [lm.complete(f"word {i} {j}").text for j in range(3)]
        threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert got == {i: [f"WORD {i} {j}" for j in range(3)] for i in range(16)}

def test_many_loops():
    with serve("ok", latency=0.01) as srv:
        lm,got = at(srv),[]
        async def some(): return [c.text for c in await asyncio.gather(*(lm.acomplete("Hi") for _ in range(5)))]
        for _ in range(3): assert asyncio.run(some()) == ["ok"]*5 # one after the other
        threads = [threading.Thread(target=lambda: got.append(asyncio.run(some()))) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert got == [["ok"]*5]*4 # and at once

def test_inside_a_running_loop():
    with serve("ok") as srv:
        lm = at(srv)
        async def main(): return lm.complete("Hi").text, "".join(lm.stream("Hi")), (await lm.acomplete("Hi")).text
        assert asyncio.run(main()) == ("ok",)*3

def test_not_on_the_io_loop_itself():
    lm = ScriptedLM(lambda messages, tools: inner.complete("Hi").text, retries=0)
    inner = ScriptedLM(["never"])
    assert "await the asynchronous form" in str(fails(lm))
    async def nested(): return (await inner.acomplete("Hi")).text
    assert run_sync(nested()) == "never"

def test_cancelled():
    with serve([Fault("hang"), "next"]) as srv:
        lm = at(srv, max_concurrency=1)
        async def main():
            task = asyncio.create_task(lm.acomplete("Hi"))
            while not srv.in_flight: await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError): await task
            while srv.in_flight: await asyncio.sleep(0.005)
            return await lm.acomplete("Hi")
        assert asyncio.run(asyncio.wait_for(main(), 5)).text == "next"

def test_cancelled_in_a_pause():
    with serve([Fault(429, headers={"retry-after": "4"}), "next"]) as srv:
        lm = at(srv, max_concurrency=1)
        async def main():
            with pytest.raises(TimeoutError): await asyncio.wait_for(lm.acomplete("Hi"), 0.2)
            return await lm.acomplete("Hi")
        assert asyncio.run(main()).text == "next" and len(srv.requests) == 2

@pytest.mark.filterwarnings("error")
def test_cancelled_anywhere():
    "In whatever phase a call is cancelled, nothing is left behind"
    with serve("ok", latency=0.005) as srv:
        lm = at(srv, max_concurrency=8)
        async def main():
            for i in range(12):
                tasks = asyncio.gather(*(lm._complete("Hi") for _ in range(8)))
                await asyncio.sleep(0.003 * i)
                tasks.cancel()
                await asyncio.gather(tasks, return_exceptions=True)
        run_sync(main())
        until(lambda: srv.in_flight == 0)
        assert lm.complete("Hi").text == "ok" and not io_module._pending

def test_errors_are_let_go():
    "No circle of error, traceback and frame keeps the messages of a failed call in memory"
    import gc, weakref
    errors = []
    class Message(dict): pass
    class Refusing(LM):
        async def _request(self, messages, **params): raise litellm_module().BadRequestError("No.", llm_provider="p", model="m")
    litellm_module()
    for ask in (LM.complete, lambda lm, messages: errors.extend(lm.batch([messages]))):
        message = Message(role="user", content="Hi")
        gone = weakref.ref(message)
        gc.disable()
        try:
            try: ask(Refusing("m"), [message])
            except LMError: pass
            del message
            until(lambda: gone() is None)
        finally: gc.enable()

def test_a_fault_of_the_program_is_not_tried_again():
    tries = []
    def broken(messages, tools): tries.append(1); return 1/0
    assert "division by zero" in str(fails(ScriptedLM(broken), LMServerError)) and len(tries) == 1

# ---- shown while it is written

def test_on_text(recwarn):
    with serve(["One, two, three.", tool_call("print(1)", "Look:"), "a b c", Fault(503), "again", "plain"]) as srv:
        lm,seen,threads = at(srv),[],set()
        def show(text):
            seen.append(text)
            threads.add(threading.current_thread().name)
        assert lm.complete("Hi", on_text=show).text == "".join(seen) == "One, two, three." and threads == {"rlm-io"}
        c = asyncio.run(lm.acomplete("Hi", on_text=show))
        assert c.text == seen[-1] == "Look:" and c.tool_calls[0]["function"]["name"] == "run_repl"
        def broken(text): raise OSError("No screen")
        assert lm.complete("Hi", on_text=broken).text == "a b c" # what was paid for arrives
        assert [str(o.message) for o in recwarn if "on_text" in str(o.message)] == ["on_text failed, the reply is not shown any further: OSError: No screen"]
        assert lm.complete("Hi", on_text=show).text == seen[-1] == "again" and lm.complete("Hi").text == "plain"

# ---- cancelled together

def test_scope_of_threads():
    "Everything begun in a scope goes with it, in other threads too; what is outside goes on"
    with serve(lambda messages, tools: Fault("hang") if messages[-1]["content"] == "hang" else "ok") as srv:
        lm,ended = at(srv, max_concurrency=4),[]
        def work(ask):
            try: ask()
            except Cancelled: ended.append(True)
        with Scope() as run:
            asks = [lambda: lm.complete("hang"), lambda: lm.batch(["hang"]*5), lambda: list(lm.stream("hang")) or ended.append(True)]
            threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, o)) for o in asks]
        for t in threads: t.start()
        until(lambda: srv.in_flight == 4)
        start = time.monotonic()
        run.cancel()
        for t in threads: t.join(2)
        assert time.monotonic() - start < 1 and len(ended) == 3 and run.wait(1)
        until(lambda: srv.in_flight == 0 and not io_module._pending)
        with pytest.raises(Cancelled), run: lm.complete("ok") # no call begins any more
        assert lm.complete("ok").text == "ok"
        run.cancel()

def test_scope_from_the_loop_itself():
    async def main():
        with Scope() as run: task = asyncio.create_task(run_async(asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        return run.wait(0)
    assert run_sync(main()) and asyncio.run(main())

def test_nested_scopes():
    with Scope() as outer:
        with Scope() as inner: a = submit(asyncio.sleep(60))
        b = submit(asyncio.sleep(60))
    inner.cancel()
    assert inner.wait(1) and a.cancelled() and not outer.wait(0.01) and not b.done()
    outer.cancel()
    assert outer.wait(1) and b.cancelled()

def test_nothing_is_said_about_what_was_cancelled():
    code = """
        import gc, time
        from rlm.io import Scope
        from rlm.lm import LM
        from rlm.offline import Slow, serve
        with serve(lambda m, tools: Slow(0.02, "a b c d e f", drip=True)) as srv:
            lm = LM("openai/x", base_url=srv.base_url, max_concurrency=4)
            lm.complete("Hi")
            for i in range(5):
                with Scope() as run: streams = [lm.stream("Hi") for _ in range(8)]
                time.sleep(0.02 * i)
                run.cancel()
                assert run.wait(1)
                gc.collect()
            assert lm.complete("Hi").text == "a b c d e f" and srv.in_flight == 0
        """
    p = python(code, "-W", "ignore")
    assert (p.communicate(), p.returncode) == (("", ""), 0)

def test_reply_that_arrives_while_it_is_cancelled():
    with serve([Slow(0.1, "just in time"), Slow(5, "too late")]) as srv:
        lm,got = at(srv),[]
        async def main():
            for _ in range(2):
                task = asyncio.create_task(lm.acomplete("Hi", after=got.append))
                while not srv.in_flight: await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError): await task
        asyncio.run(main())
        assert [o.text for o in got] == ["just in time"]
        until(lambda: srv.in_flight == 0)

def test_after_is_told_once_and_of_everything():
    def before(i):
        if i == 1: raise ZeroDivisionError
    told = {}
    with pytest.raises(ZeroDivisionError): ScriptedLM(["a"]*3, max_concurrency=1).batch(["Hi"]*3, before, told.__setitem__)
    assert sorted(told) == [0, 1, 2] and told[0].text == "a" and isinstance(told[1], asyncio.CancelledError)
    with Scope() as run: run.cancel()
    told.clear()
    with pytest.raises(Cancelled), run: ScriptedLM(["a"]).batch(["Hi"]*3, after=told.__setitem__)
    assert [type(o) for o in told.values()] == [asyncio.CancelledError]*3

def test_a_client_of_the_callers(tmp_path):
    "It is used as it is, and its key does not come into the log"
    import openai
    with serve(lambda m, tools: tool_call("FINAL(llm_query('Who?'))") if tools else "Acme", api_key="sk-of-the-client") as srv:
        client = openai.AsyncOpenAI(base_url=srv.base_url, api_key="sk-of-the-client")
        r = RLM("openai/gpt-5-mini", client=client, seed=3).completion("Who?", "text", log=tmp_path/"l.jsonl")
        assert r.answer == "Acme" and [o["body"]["seed"] for o in srv.requests] == [3, 3]
        assert "sk-of" not in (tmp_path/"l.jsonl").read_text()
        with pytest.raises(InputError, match=r"openai.AsyncOpenAI\(...\)"):
            LM("openai/gpt-5-mini", client=openai.OpenAI(base_url=srv.base_url, api_key="sk-of-the-client"))

# ---- what is known about a model

def test_prompt_cache_marks():
    messages = [dict(role="system", content="You are."), dict(role="user", content=[dict(type="text", text="Hi")]), tool_call("1", id="a"), dict(role="tool", tool_call_id="a", content="1")]
    before = json.dumps(messages)
    def sent(model, **kw):
        with serve("ok") as srv:
            lm = LM(model, base_url=srv.base_url, api_key="sk-1", retries=0, **kw)
            try: lm.complete(messages)
            except LMError: pass # the server does not speak Anthropic's protocol
            return json.dumps(srv.requests[0]["body"])
    marked = sent("anthropic/claude-sonnet-4-5")
    assert marked.count("cache_control") == 2 and sent("openrouter/anthropic/claude-sonnet-4.5").count("cache_control") == 2
    assert json.loads(marked)["system"][-1]["cache_control"] and json.loads(marked)["messages"][-1]["content"][-1]["cache_control"]
    assert "cache_control" not in sent("anthropic/claude-sonnet-4-5", cache_prompts=False) + sent("openai/gpt-4o") + sent("openai/claude-sonnet-4-5")
    assert json.dumps(messages) == before
    odd = [dict(role="user", content=None)], [dict(role="user", content="")], [dict(role="user", content=[])], [dict(role="user", content=["Hi"])], []
    for o in odd: assert lm_module._marked(o) == o
    own = [dict(role="system", content="s"), dict(role="user", content=[dict(type="text", text="u", cache_control={})])]
    assert lm_module._marked(own) is own

def test_window_count_price(monkeypatch):
    import socket
    def no_network(*args, **kw): raise AssertionError("asks the network")
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert LM("anthropic/claude-sonnet-4-5").window == 200_000 and LM("ollama/no-such").window is None and LM("nosuch").window is None and LM("x", window=7).window == 7
    assert LM("my-own", base_url="http://localhost:1/v1").window is None and LM("my-own").price(1) is None
    start = time.monotonic()
    for model in ("openai/gpt-5", "meta-llama/llama-3-8b", "anthropic/claude-2", "nosuch"):
        lm = LM(model)
        assert 2 <= lm.count("one two") <= 15 and 1900 < lm.count("hello world " * 1000) < 2200 and lm.count("") < 12 and lm.count([]) < 8
        for text in ("a" * 3_000_000, "é中" * 1_000_000, " " * 2_000_000): assert lm.count(text) > 0
    image = dict(type="image_url", image_url=dict(url="data:image/png;base64," + "A" * 2_000_000))
    odd = [dict(role="user", content=[dict(type="text", text="look"), image]), dict(role="assistant", content=None, tool_calls=tool_call("1")["tool_calls"]), dict(role="tool", content=[{}])]
    assert LM("openai/gpt-4o").count(odd) < 5000 and time.monotonic() - start < 20
    lm = LM("openai/gpt-4o-mini")
    assert lm.price(1_000_000) == pytest.approx(0.15) and lm.price(0, 1_000_000) == pytest.approx(0.6)

def test_pickled():
    import pickle
    with serve("ok", api_key=KEY) as srv:
        lm = at(srv, api_key=KEY, window=9, extra_headers={"X-Token": "t"})
        assert lm.complete("Hi").text == "ok"
        other = pickle.loads(pickle.dumps(lm))
        assert other.complete("Hi").text == "ok" and KEY not in repr(vars(other)) and other.window == 9

# ---- processes of their own

def python(code, *flags, **kw):
    env = dict(os.environ, LITELLM_LOCAL_MODEL_COST_MAP="True")
    return subprocess.Popen([sys.executable, *flags, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **kw)

def test_import_changes_nothing(tmp_path):
    (tmp_path/".env").write_text("FROM_DOT_ENV=1\n")
    code = """
        import fastcore.basics, asyncio, concurrent.futures.thread
        import logging, os, sys, threading, warnings
        def state(): return (dict(os.environ), list(warnings.filters), threading.active_count(), logging.root.handlers[:], sys.excepthook, sys.path[:])
        before = state()
        import rlm.lm
        assert state() == before
        heavy = {"litellm", "openai", "aiohttp", "httpx", "IPython", "pydantic", "tenacity", "rich"} & set(sys.modules)
        assert not heavy, heavy
        rlm.lm.LM("openai/gpt-5", api_key="sk-x")
        assert state() == before and "litellm" not in sys.modules
        """
    p = python(code, cwd=tmp_path)
    assert (p.communicate(), p.returncode) == (("", ""), 0)

def test_exit_is_quick_and_silent(tmp_path):
    (tmp_path/".env").write_text("FROM_DOT_ENV=1\n")
    code = """
        import atexit, time
        ended = 0
        atexit.register(lambda: print(f"{time.monotonic() - ended:.3f}")) # runs last
        import asyncio, os, sys, warnings
        from rlm.lm import LM
        from rlm.offline import Fault, serve
        from rlm.events import LMError
        with serve(lambda m, tools: Fault("hang") if m[-1]["content"] == "hang" else Fault(500) if m[-1]["content"] == "fail" else "a b c") as srv:
            lm = LM("openai/x", base_url=srv.base_url, retries=0)
            lm.complete("Hi")
            async def many(): return await asyncio.gather(*(lm.acomplete("Hi") for _ in range(10)))
            for _ in range(2): asyncio.run(many())
            list(lm.stream("Hi"))
            for o in lm.stream("Hi"): break
            try: lm.complete("fail")
            except LMError: pass
            try: asyncio.run(asyncio.wait_for(lm.acomplete("hang"), 0.2))
            except TimeoutError: pass
            assert "FROM_DOT_ENV" not in os.environ and "LITELLM_MODE" not in os.environ
        print("done")
        ended = time.monotonic()
        """
    p = python(code, "-W", "error::ResourceWarning", cwd=tmp_path)
    (done, seconds),err = (o.split() if i == 0 else o for i,o in enumerate(p.communicate()))
    assert (p.returncode, done, err) == (0, "done", "") and float(seconds) < 0.3

@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
def test_fork_and_interrupt():
    "A forked child talks over connections of its own, and Ctrl-C ends a call at once"
    code = """
        import os, sys, time
        from rlm.lm import LM, litellm_module
        from rlm.offline import Fault, serve
        from rlm.events import LMError
        litellm_module()
        def reply(messages, tools): return Fault("hang") if messages[-1]["content"] == "hang" else messages[-1]["content"]
        with serve(reply) as srv:
            lm = LM("openai/x", base_url=srv.base_url, timeout=20)
            assert lm.complete("before").text == "before"
            time.sleep(0.1) # LiteLLM would carry its unfinished logging over to the child, and say so
            children = []
            for i in range(2):
                pid = os.fork()
                if not pid:
                    ok = [lm.complete(f"child {i} {j}").text for j in range(3)] == [f"child {i} {j}" for j in range(3)]
                    os._exit(0 if ok else 1)
                children.append(pid)
            assert [lm.complete(f"parent {j}").text for j in range(3)] == [f"parent {j}" for j in range(3)]
            assert [os.waitpid(o, 0)[1] for o in children] == [0, 0]
            print("ready", flush=True)
            try: lm.complete("hang")
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                end = time.monotonic() + 3
                while srv.in_flight and time.monotonic() < end: time.sleep(0.01)
                assert not srv.in_flight
                assert lm.complete("after").text == "after"
        print("end", flush=True)
        """
    p = python(code, "-W", "ignore::DeprecationWarning")
    assert p.stdout.readline() == "ready\n", p.stderr.read()
    time.sleep(0.3)
    start = time.monotonic()
    p.send_signal(signal.SIGINT)
    assert p.stdout.readline() == "interrupted\n"
    assert time.monotonic() - start < 0.5
    assert p.communicate() == ("end\n", "") and p.returncode == 0
