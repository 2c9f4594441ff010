"The stand-ins for a model: what the extractor answers, what a script gives, what the server does to its clients."
import asyncio, json, subprocess, sys, threading, time, warnings

import aiohttp, httpx, pytest
from pydoc_data.topics import topics

from rlm.events import (InputError, LMAuthError, LMConnectionError, LMContextLengthError, LMError, LMNotFoundError,
    LMRateLimitError, LMRequestError, LMServerError, LMTimeoutError)
from rlm.lm import LM, litellm_module
from rlm.offline import (Fault, Script, ScriptedLM, ScriptExhausted, Slow, _history, extract, extractive, register, sentences, serve, split_prompt,
                         tool_call, tool_calls)

tools = [dict(type="function", function=dict(name="run_repl", parameters=dict(type="object", properties=dict(python_code=dict(type="string")))))]
fenced = dict(role="system", content="Write code like this:\n```repl\nprint(1)\n```")
walrus = '''Assignment expressions
**********************

   assignment_expression ::= [identifier ":="] expression

An assignment expression, known to many as the walrus, binds a name to a
value and is itself that value, so that it can stand inside another
expression.

Parentheses are needed around assignment expressions where they would
otherwise be expression statements.
'''

def play(question, context, native=True, system=None, max_turns=8, batch=None):
    "A run in a namespace that is a dict; gives what was finalised or said last, and the messages"
    from contextlib import redirect_stdout
    from io import StringIO
    def sub(prompt): return extractive([dict(role="user", content=prompt)])["content"]
    final = []
    ns = dict(context=context, llm_query=sub, llm_query_batched=batch or (lambda prompts: [sub(o) for o in prompts]),
              FINAL_VAR=lambda name: final.append(ns[name]))
    messages = [system or (dict(role="system", content="Use the tool.") if native else fenced), dict(role="user", content=f"Question: {question}\n\nThe context is long.")]
    for _ in range(max_turns):
        messages.append(msg := extractive(messages, tools if native else None))
        if native and "tool_calls" in msg: code = json.loads(msg["tool_calls"][0]["function"]["arguments"])["python_code"]
        elif "```repl\n" in msg["content"]: code = msg["content"].split("```repl\n")[1].split("```")[0]
        else: return msg["content"], messages
        out = StringIO()
        try:
            with redirect_stdout(out): exec(code, ns)
        except Exception as e: out.write(f"{type(e).__name__}: {e}")
        if final: return final[0], messages
        messages.append(dict(role="tool", tool_call_id=msg["tool_calls"][0]["id"], content=out.getvalue()) if native
                        else dict(role="user", content=f"Output:\n{out.getvalue()}"))
    raise AssertionError("no end")

facts = [
    ("What does an assignment expression do?", ["binds a name to a value and is itself that value"]),
    ("Which method is called when the default attribute access fails with an AttributeError?", ["object.__getattr__(self, name)"]),
    ("What happens when a break statement is executed inside a loop with an else clause?", ["terminates the loop without executing the \"else\" clause"]),
    ("What does the global statement do?", ["listed identifiers are to be interpreted as globals"]),
    ("What is a formatted string literal?", ["\"'f'\" or \"'F'\" in its prefix"]),
    ("What is an f-string?", ["\"'f'\" or \"'F'\" in its prefix"]),
    ("What is a lambda expression?", ["used to create anonymous functions"]),
    ("What does the pass statement do?", ["null operation"]),
    ("What does the continue statement do?", ["skips the rest of the suite", "continues with the next cycle"]),
    ("What is a context manager?", ["an object that defines the runtime context"]),
    ("What is a generator function?", ["function or method which uses the \"yield\" statement"]),
    ("Which method is called to destroy an instance?", ["object.__del__(self)"]),
    ("How are default parameter values evaluated?", ["from left to right when the function definition is executed"]),
    ("What does str.partition return?", ["return a 3-tuple"]),
    ("What does the // operator do?", ["floor division"]),
    ("What exception is raised when a local variable is used before it is bound?", ["UnboundLocalError"]),
    ("What happens if the step of a slice is zero?", ["ValueError"]),
    ("Who wrote Hamlet?", ["not found"]),
    ("What is the capital of France?", ["not found"]),
]
manual = dict(topics) if "assignment-expressions" in topics else {**topics, "assignment-expressions": walrus}

@pytest.mark.parametrize("question,expected", facts, ids=[o[0] for o in facts])
def test_facts_of_the_language_reference(question, expected):
    if question == facts[0][0]: expected = expected + ["while also returning the value"]
    answer,_ = play(question, manual)
    assert any(o in answer for o in expected), answer
    assert len(answer) < 1500

def test_whatever_the_shape_of_the_context():
    question,expected = "What does the pass statement do?", "null operation"
    for context in (topics, "\n\n".join(topics.values()), list(topics.values()), [dict(title=k, text=v) for k,v in topics.items()], tuple(topics.values())):
        answer,_ = play(question, context)
        assert expected in answer, type(context)

def test_lines_that_are_data():
    log = [f"2024-01-{i%28+1:02} INFO job {i} finished" for i in range(3000)]
    log[1234] = "2024-03-01 ERROR job 1234 failed with code 77"
    for context in (log, "\n".join(log)): assert play("Which job failed with an error?", context)[0] == log[1234]
    hay = "It was a quiet day. "*5000
    assert "4711" in play("What is the secret code of the zebra?", hay + "The secret code of the zebra is 4711. " + hay)[0]

def test_both_dialects_run_the_same_code():
    native,m1 = play(facts[1][0], topics)
    text,m2 = play(facts[1][0], topics, native=False)
    assert native == text
    codes1 = [json.loads(o["tool_calls"][0]["function"]["arguments"])["python_code"] for o in m1 if "tool_calls" in o]
    codes2 = [o["content"].split("```repl\n")[1][:-3] for o in m2 if o["role"] == "assistant"]
    assert codes1 == codes2 and len(codes1) == 5
    assert len({o["tool_calls"][0]["id"] for o in m1 if "tool_calls" in o}) == 5

def test_a_cell_that_fails_does_not_go_on_for_ever():
    def broken(prompts): raise RuntimeError("no model")
    answer,messages = play(facts[1][0], topics, batch=broken)
    assert answer == "FINAL(No answer was found in the steps there were.)" or "not found" in answer
    assert sum(o["role"] == "assistant" for o in messages) <= 6
    calls = []
    def once(prompts):
        calls.append(1)
        if len(calls) == 1: raise RuntimeError("busy")
        return [extractive([dict(role="user", content=o)])["content"] for o in prompts]
    assert "__getattr__" in play(facts[1][0], topics, batch=once)[0]
    def some_fail(prompts): return ["ERROR: busy" if i == 3 else extract(*split_prompt(o)) for i,o in enumerate(prompts)]
    assert "__getattr__" in play(facts[1][0], topics, batch=some_fail)[0]
    answer,_ = play("What is it?", None)
    assert answer.startswith("FINAL(")

def test_the_last_step_is_answered_in_words():
    _,messages = play(facts[7][0], topics)
    for n,said in ((2, "No answer was found"), (8, "null operation"), (10, "null operation")):
        for kw in (dict(tools=tools, tool_choice="none"), dict()):
            if n == 2 and not kw: continue
            msg = extractive(messages[:n], **kw)
            assert "tool_calls" not in msg and msg["content"].startswith("FINAL(") and said in msg["content"]
    _,messages = play(facts[7][0], topics, native=False)
    last = dict(role="user", content="This was the last step: tools are off and no more code will run.")
    assert extractive(messages[:8] + [last])["content"].startswith('FINAL("pass" is a null operation')

def test_a_second_question_in_the_same_conversation():
    answer,messages = play(facts[7][0], topics)
    messages += [dict(role="tool", tool_call_id="x", content=""), dict(role="assistant", content=answer), dict(role="user", content="Question: What is a lambda expression?")]
    assert _history(messages) == ("What is a lambda expression?", [])
    assert "# Look before" in extractive(messages, tools)["tool_calls"][0]["function"]["arguments"]

def test_history_survives_malformed_calls():
    bad = tool_call(arguments="{not json")
    messages = [dict(role="user", content="Question: What is it?"), bad, dict(role="tool", tool_call_id="a", content="The arguments cannot be used")]
    assert "tool_calls" in extractive(messages, tools)

def test_the_question_in_a_prompt():
    for prompt,expected in [("Question: Who?\n\nText:\nA.", ("Who?", "A.")), ("Context:\nA. B.\n\nQuestion: Who?", ("Who?", "A. B.")), ("A.\nB.\n\nWho is it?", ("Who is it?", "A.\nB.")),
                            ("List the complaints in this text.\n\nA.", ("List the complaints in this text.", "A.")), ("A is B. Who is B?", ("Who is B?", "A is B.")), ("", ("", ""))]:
        assert split_prompt(prompt) == expected
    parts = [dict(type="text", text="Question: Whose cat?"), dict(type="text", text="\nText:\nThe cat is Anna's.")]
    assert extractive([dict(role="user", content=parts)])["content"] == "The cat is Anna's."
    assert extractive([dict(role="system", content="The cat is grey."), dict(role="user", content="What is the cat?")])["content"] == "The cat is grey."
    for nothing in ([dict(role="user", content="")], [dict(role="user", content=None)]): assert extractive(nothing)["content"] == "NOT FOUND"

def test_time_grows_with_length_only():
    text = topics["specialnames"] * 3
    extract("What does __getitem__ do?", text[:1000])
    def seconds(question, text):
        start = time.thread_time()
        extract(question, text)
        return time.thread_time() - start
    assert seconds("What does __getitem__ do?", text[:160_000]) < 20 * max(seconds("What does __getitem__ do?", text[:20_000]), 0.005)
    for c in ("a", ".", "?", "*", "A. ", "(", "- ", "\n\n  x", "=\n"):
        for prompt in (c*(60_000//len(c)), "Question: what is a word?\n\n" + c*(60_000//len(c))): assert seconds(*split_prompt(prompt)) < 2, repr(c)

def test_provider_beside_others(capfd):
    litellm = litellm_module()
    before = litellm.custom_provider_map
    try:
        litellm.custom_provider_map = [dict(provider="mine", custom_handler=None)]
        register(litellm)
        register(litellm)
        assert [o["provider"] for o in litellm.custom_provider_map] == ["mine", "offline"]
        assert capfd.readouterr() == ("", "")
        res = litellm.completion("offline/extractive", [dict(role="user", content="Question: What is red?\n\nThe rose is red.")])
        assert res.choices[0].message.content == "The rose is red." and res.usage.total_tokens == res.usage.prompt_tokens + 4
        assert litellm.completion_cost(res, model="offline/extractive") == 0
        kw = dict(model="offline/extractive", messages=[dict(role="user", content="Question: What is red?")], tools=tools)
        one,two = litellm.completion(**kw),litellm.completion(**kw)
        assert one.choices[0].message.model_dump() == two.choices[0].message.model_dump() and one.choices[0].finish_reason == "tool_calls"
        built = litellm.stream_chunk_builder(list(litellm.completion(**kw, stream=True, stream_options=dict(include_usage=True))))
        assert built.choices[0].message.tool_calls[0].function.arguments == one.choices[0].message.tool_calls[0].function.arguments
        assert built.usage.total_tokens == one.usage.total_tokens
    finally: litellm.custom_provider_map = [*before, *(o for o in litellm.custom_provider_map if o["provider"] == "offline" and o not in before)]

def test_import_is_light():
    code = "import sys, rlm.offline; print([o for o in ('litellm', 'aiohttp', 'httpx', 'IPython', 'pydantic') if o in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

statuses = [(400, LMRequestError), (401, LMAuthError), (403, LMAuthError), (404, LMNotFoundError), (408, LMTimeoutError), (418, LMRequestError), (422, LMRequestError),
            (429, LMRateLimitError), (500, LMServerError), (502, LMServerError), (503, LMServerError), (529, LMServerError), ("drop", LMConnectionError)]

@pytest.mark.parametrize("status,error", statuses, ids=[str(o[0]) for o in statuses])
def test_a_fault_is_the_same_scripted_and_over_http(status, error):
    fault = Fault(status, "it failed")
    with pytest.raises(error) as scripted: ScriptedLM([fault], retries=0).complete("hi")
    with serve([fault]) as srv:
        with pytest.raises(error): LM("openai/any", base_url=srv.base_url, retries=0).complete("hi")
    assert status == "drop" or "it failed" in str(scripted.value)

def test_context_length_fault():
    fault = Fault(400, "This model's maximum context length is 8192 tokens")
    with pytest.raises(LMContextLengthError): ScriptedLM([fault]).complete("hi")
    with serve([fault]) as srv, pytest.raises(LMContextLengthError): LM("openai/any", base_url=srv.base_url).complete("hi")

def test_scripted_replies_of_every_kind():
    litellm = litellm_module()
    lm = ScriptedLM(["text", tool_call("1"), tool_calls(tool_call("1"), tool_call("2")), dict(role="assistant", content=None), None,
                     dict(role="assistant", content=[dict(type="text", text="a"), dict(type="text", text="b")]), tool_call(arguments="{oops"),
                     dict(choices=[dict(message=dict(role="assistant", content="whole"))], usage=dict(prompt_tokens=7, completion_tokens=1, total_tokens=8)),
                     litellm.ModelResponse(choices=[dict(message=dict(role="assistant", content="object"))])])
    got = [lm.complete("hi") for _ in range(9)]
    assert [o.text for o in got] == ["text", "", "", "", "", "ab", "", "whole", "object"]
    assert [len(o.tool_calls) for o in got] == [0, 1, 2, 0, 0, 0, 1, 0, 0]
    assert got[6].tool_calls[0]["function"]["arguments"] == '{"invalid_json": "{oops"}' and got[7].usage.prompt_tokens == 7
    with pytest.raises(ScriptExhausted, match="9 replies, and this is request 10"): lm.complete("hi")
    for wrong in ("text", dict(), Fault(500)):
        with pytest.raises(InputError): ScriptedLM(wrong)

def test_scripted_stream_and_pauses():
    lm = ScriptedLM([tool_call("x = 1\n" * 30, "I set it."), Slow(0.001, "a b c", drip=True), Slow(0.02, "late")])
    s = lm.stream("hi")
    assert list(s) == ["I", " set", " it."] and s.completion.tool_calls[0]["function"]["arguments"] == json.dumps(dict(python_code="x = 1\n" * 30))
    assert list(lm.stream("hi")) == ["a", " b", " c"]
    assert lm.complete("hi").seconds >= 0.02
    with pytest.raises(LMTimeoutError): ScriptedLM([Fault("hang")], timeout=0.05, retries=0).complete("hi")

def test_script_is_safe_for_threads_and_keeps_its_own_copies():
    lm,said = ScriptedLM([str(i) for i in range(200)], max_concurrency=64),[]
    threads = [threading.Thread(target=lambda: said.extend(lm.complete("hi").text for _ in range(20))) for _ in range(10)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert sorted(map(int, said)) == list(range(200))
    messages = [dict(role="user", content="one")]
    lm = ScriptedLM(["1"])
    lm.complete(messages, tools=tools, temperature=0.5)
    messages[0]["content"] = "two"
    assert lm.requests == [dict(messages=[dict(role="user", content="one")], tools=tools, params=dict(temperature=0.5))]

def test_functions_as_scripts():
    async def slow(messages, tools): return f"{messages[-1]['content']}!"
    async def many():
        lm = ScriptedLM(slow)
        return [o.text for o in await asyncio.gather(*(lm.acomplete(str(i)) for i in range(20)))]
    assert asyncio.run(many()) == [f"{i}!" for i in range(20)]
    lm = ScriptedLM(lambda messages, tools, temperature=1.0, tool_choice=None: f"{temperature} {tool_choice}")
    assert lm.complete("hi", tool_choice="none", seed=1).text == "1.0 none"
    assert ScriptedLM(extractive).complete([dict(role="user", content="Question: What is it?")], tools=tools).tool_calls

def post(srv, path="/chat/completions", **kw): return httpx.post(srv.base_url + path, timeout=5, **kw)
hi = dict(model="m", messages=[dict(role="user", content="hi")])

def test_server_refuses_what_a_provider_refuses():
    with serve("fine", models=["m"], api_key="right") as srv:
        key = {"Authorization": "Bearer right"}
        assert post(srv, json=hi).status_code == 401 and post(srv, json=hi, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert post(srv, json=dict(hi, model="other"), headers=key).status_code == 404
        assert post(srv, json=dict(hi, messages=[]), headers=key).status_code == 400 and post(srv, content=b"{", headers=key).status_code == 400
        assert post(srv, "/nothing", json=hi, headers=key).status_code == 404
        assert post(srv, json=hi, headers=key).json()["choices"][0]["message"]["content"] == "fine"
        assert [o["id"] for o in httpx.get(srv.base_url + "/models", headers=key).json()["data"]] == ["m"]

def test_server_faults_on_the_wire():
    with serve([Fault(429, "slow down", {"Retry-After": "7"}), Fault(200, body="<html>"), Fault("drop"), Fault("hang"), Slow(0.001, "in drops", drip=True), ValueError("bug"), Slow(0.05, "late")]) as srv:
        res = post(srv, json=hi)
        assert (res.status_code, res.headers["retry-after"], res.json()["error"]["message"]) == (429, "7", "slow down")
        assert post(srv, json=hi).text == "<html>"
        with pytest.raises(httpx.RemoteProtocolError): post(srv, json=hi)
        with pytest.raises(httpx.ReadTimeout): httpx.post(srv.base_url + "/chat/completions", json=hi, timeout=0.1)
        assert post(srv, json=hi).json()["choices"][0]["message"]["content"] == "in drops"
        assert post(srv, json=hi).json()["error"]["message"] == "bug"
        assert post(srv, json=hi).elapsed.total_seconds() > 0.05
        res = post(srv, json=hi)
        assert res.status_code == 410 and "7 replies" in res.json()["error"]["message"]
        assert [o["body"] for o in srv.requests] == [hi]*8 and srv.in_flight == 0

def test_server_streams_as_openai_does():
    with serve("one two") as srv:
        lines = [o.removeprefix("data: ") for o in post(srv, json=dict(hi, stream=True)).text.split("\n\n") if o]
        assert lines[-1] == "[DONE]" and all(json.loads(o)["choices"] for o in lines[:-1])
        lines = post(srv, json=dict(hi, stream=True, stream_options=dict(include_usage=True))).text.split("\n\n")
        assert json.loads(lines[-3].removeprefix("data: "))["usage"]["total_tokens"] > 0

def test_server_in_front_of_an_lm():
    with serve(LM("offline/extractive")) as srv:
        lm = LM("openai/any", base_url=srv.base_url)
        assert lm.complete("Question: What is red?\n\nThe rose is red.").text == "The rose is red."
        assert lm.complete("Question: What is red?", tools=tools).tool_calls
        with pytest.raises(LMContextLengthError): lm.complete("word " * 60_000)

def test_server_holds_many_connections_and_closes_at_once():
    async def many(n):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=n)) as client:
            async def one():
                async with client.post(srv.base_url + "/chat/completions", json=hi) as res: return res.status
            return await asyncio.gather(*(one() for _ in range(n)))
    with serve("ok", latency=0.4) as srv: assert asyncio.run(many(300)) == [200]*300
    assert srv.in_flight_max > 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with serve([Fault("hang")]) as srv:
            client = threading.Thread(target=lambda: pytest.raises(httpx.HTTPError, post, srv, json=hi))
            client.start()
            while not srv.in_flight: time.sleep(0.005)
            start = time.perf_counter()
        assert time.perf_counter() - start < 0.5
        client.join()
    with serve("a") as one, pytest.raises(OSError): serve("b", port=one.port)

def test_server_as_a_process():
    p = subprocess.Popen([sys.executable, "-W", "error", "-m", "rlm.offline", "--reply", "from elsewhere"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = p.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), p.stderr.read()
        assert httpx.post(url + "/chat/completions", json=hi, timeout=5).json()["choices"][0]["message"]["content"] == "from elsewhere"
        p.send_signal(2)
        assert (p.wait(5), p.stderr.read()) == (0, "")
    finally: p.kill()
