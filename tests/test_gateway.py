"A LiteLLM proxy, as many a company runs one, between an `LM` and a server: names, keys and prices are the gateway's."
import importlib.util, json, os, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

from rlm.events import LMAuthError, LMError, LMNotFoundError, LMServerError
from rlm.lm import LM
from rlm.offline import Fault, serve, tool_call

MASTER,UPSTREAM = "sk-master-of-the-gateway","sk-of-the-server-behind-it"
missing = [o for o in ("fastapi", "uvicorn", "backoff", "websockets", "apscheduler") if not importlib.util.find_spec(o)]
tools = [dict(type="function", function=dict(name="run_repl", description="Run code",
                                             parameters=dict(type="object", properties=dict(python_code=dict(type="string")), required=["python_code"])))]

def reply(messages, tools):
    last = messages[-1]["content"]
    if last == "fail": return Fault(503, message="scripted failure")
    return tool_call("print(len(context))") if tools else f"You said: {last}"

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def alive(url):
    try: return urllib.request.urlopen(f"{url}/health/liveliness", timeout=2).status == 200
    except OSError: return False

@pytest.fixture
def gateway(tmp_path):
    "A running proxy's URL, and the server behind it"
    with serve(reply, api_key=UPSTREAM) as srv:
        behind = dict(model="openai/scripted", api_base=srv.base_url, api_key=UPSTREAM)
        config = dict(model_list=[dict(model_name="my-alias", litellm_params=behind | dict(input_cost_per_token=0.001, output_cost_per_token=0.002)),
                                  dict(model_name="claude-sonnet-4-5", litellm_params=behind)],
                      router_settings=dict(num_retries=0), general_settings=dict(master_key=MASTER))
        (tmp_path/"config.yaml").write_text(json.dumps(config)) # which is YAML too
        url,log = f"http://127.0.0.1:{(port := free_port())}",tmp_path/"log"
        env = {k: v for k,v in os.environ.items() if k != "DATABASE_URL"} | dict(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MODE="PRODUCTION")
        command = [str(Path(sys.executable).with_name("litellm")), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
        with log.open("w") as f: proxy = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 90
            while not alive(url):
                assert proxy.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.1)
            yield url, srv
        finally:
            proxy.terminate()
            try: proxy.wait(10)
            except subprocess.TimeoutExpired: proxy.kill()

@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the 'model_") # LiteLLM's, with the newest pydantic
@pytest.mark.skipif(bool(missing), reason=f"litellm[proxy] is not installed: no {', '.join(missing)}")
def test_gateway(gateway, monkeypatch):
    url,srv = gateway
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    lm = LM("my-alias", base_url=url, api_key=MASTER, retries=0, timeout=30)

    c = lm.complete("Hello")
    assert c.text == "You said: Hello" and c.model == "my-alias"
    assert c.usage.cost == pytest.approx(0.001*c.usage.prompt_tokens + 0.002*c.usage.completion_tokens) and c.usage.cost > 0 # the gateway's price
    sent = {k.lower(): v for k,v in srv.requests[-1]["headers"].items()}
    assert sent["authorization"] == f"Bearer {UPSTREAM}" and srv.requests[-1]["body"]["model"] == "scripted"

    c = lm.complete("How long is it?", tools=tools, tool_choice="auto")
    function = c.tool_calls[0]["function"]
    assert function["name"] == "run_repl" and json.loads(function["arguments"]) == dict(python_code="print(len(context))")
    assert srv.requests[-1]["body"]["tools"] == tools
    answered = [dict(role="user", content="How long is it?"), c.message, dict(role="tool", tool_call_id=c.tool_calls[0]["id"], content="5")]
    assert lm.complete(answered).text == "You said: 5"

    stream = lm.stream("Hello")
    assert "".join(stream) == stream.completion.text == "You said: Hello" and stream.completion.usage.completion_tokens

    for name,base_url in [("my-alias", url + "/v1"), ("openai/my-alias", url), ("litellm_proxy/my-alias", url), ("claude-sonnet-4-5", url)]:
        assert LM(name, base_url=base_url, api_key=MASTER).complete("Hi").text == "You said: Hi" # OpenAI's protocol whatever the alias is called

    def fails(cls, *words, prompt="Hi", **kw):
        before = len(srv.requests)
        with pytest.raises(LMError) as e: LM(**dict(dict(model="my-alias", base_url=url, api_key=MASTER, retries=0), **kw)).complete(prompt)
        said = str(e.value)
        assert type(e.value) is cls and all(o in said for o in (url, *words)) and MASTER not in said and UPSTREAM not in said, said
        return len(srv.requests) - before

    assert fails(LMAuthError, "my-alias", "check the key", api_key="sk-a-wrong-one", retries=4) == 0
    assert fails(LMAuthError, "no key", "OPENAI_API_KEY", api_key=None, retries=4) == 0
    assert fails(LMNotFoundError, "no-such-model", "check the model's name", model="no-such-model", retries=4) == 0
    assert fails(LMServerError, "scripted failure", prompt="fail") == 1
