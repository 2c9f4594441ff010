"Recorded runs in the place of models: with a server that counts, in a real pytest, and for applications of every form"
import asyncio, json, re, subprocess, sys, textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlm import LM, RLM, Limits
from rlm.events import Final, InputError, Reply, Resume, Run
from rlm.offline import ScriptedLM, serve, tool_call
from rlm.recording import Recording, join_logs, recorded
from rlm.replay import ReplayError
from rlm.trajectory import Trajectory

pytest_plugins = "pytester"
TEXT = "Harbor station was closed in 1987."

def reply(messages, tools):
    "Asks a sub-model, another one by name, and a child"
    last = str(messages[-1]["content"])
    if "Decide whether" in last: return "ACCEPT"
    if messages[0]["role"] != "system": return "1987" if "1987" in last else "no idea"
    if "child" in str(messages[1]["content"]): return tool_call("FINAL(llm_query('The year? ' + context))", id="k")
    if messages[-1]["role"] == "tool": return tool_call("FINAL((years, llm_query('Certain? ' + context, model='strong'), rlm_query('A child?', context)))", id="b")
    return tool_call("years = llm_query_batched(['When? ' + context, 'And when? ' + context])", id="a")

def app(url, **kw):
    "An `RLM` with settings and models of its own"
    def lm(name): return LM(f"openai/{name}", base_url=url, api_key="none", retries=0)
    return RLM(lm("root"), lm("sub"), choices=dict(strong=lm("strong")), verify=lm("judge"), limits=Limits(max_depth=2), dialect="tools", **kw)

def test_a_recorded_run_asks_nobody(tmp_path):
    log = tmp_path/"deep"/"log.jsonl"
    with serve(reply) as srv:
        m = app(srv.base_url)
        before = dict(vars(m))
        with recorded(m, log, record=True) as same:
            assert same is m
            first = [m.completion(q, TEXT) for q in ("When?", "When was it?")]
        n = len(srv.requests)
        with recorded(m, log): again = [m.completion(q, TEXT) for q in ("When was it?", "When?", "When was it?")]
        assert len(srv.requests) == n > 10
    for r in (*first, *again): assert (r.answer, r.status) == (("1987", "1987"), "1987", "1987") or r.answer[1:] == ("1987", "1987") and list(r.answer[0]) == ["1987"]*2, r
    assert [r.usage for r in again] == [first[1].usage, first[0].usage, first[1].usage] and again[0].sub_calls == first[1].sub_calls
    assert {k: vars(m)[k] for k in ("models", "choices", "verify", "cache")} == {k: before[k] for k in ("models", "choices", "verify", "cache")}
    with recorded(m, log): rs = list(ThreadPoolExecutor(4).map(lambda q: m.completion(q, TEXT).answer, ["When?", "When was it?"]*3)) # the server is gone
    assert len(rs) == 6 and all(o == rs[0] for o in rs)
    async def main(): return await asyncio.gather(*(m.acompletion("When?", TEXT) for _ in range(3)))
    with recorded(m, log): assert {str(r.answer) for r in asyncio.run(main())} == {str(rs[0])}
    t = Trajectory.load(log)
    assert len([o for o in t.runs if o.run is None]) == 2 and len(t.children) == 2 and "none" not in json.dumps(t.run.settings)

def test_a_session_is_recorded_as_one(tmp_path):
    root = ScriptedLM(lambda messages, tools: tool_call("FINAL(x)", id="b") if "Which?" in str(messages[-1]["content"]) else tool_call("x = len(context)\nFINAL('kept')", id="a"))
    for record in (True, False):
        with recorded(root, tmp_path/"l.jsonl", record) as lm, RLM(lm).session(TEXT) as s:
            assert s.completion("Keep it.").answer == "kept" and s.completion("Which?").answer == len(TEXT)
    assert len(root.requests) == 2 and len(Trajectory.load(tmp_path/"l.jsonl").runs) == 2

@pytest.mark.parametrize("change", ["question", "context", "code"])
def test_what_is_not_in_the_log_is_an_error_even_if_it_is_caught(change, tmp_path):
    root = ScriptedLM(lambda messages, tools: tool_call(f"try: year = llm_query('When? ' + context + suffix())\nexcept Exception as e: year = '1987'\nFINAL(year)") if tools else "1987")
    def ask(lm, question="When?", context=TEXT, suffix=""):
        def suffix_(): return suffix
        suffix_.__name__ = "suffix"
        try: return RLM(lm, tools=[suffix_]).completion(question, context).answer
        except ReplayError: return "1987"
    with recorded(root, tmp_path/"l.jsonl", record=True) as lm: assert ask(lm) == "1987"
    with recorded(root, tmp_path/"l.jsonl") as lm: assert ask(lm) == "1987"
    kw = dict(question=dict(question="When exactly?"), context=dict(context=TEXT + " It rained."), code=dict(suffix=" now"))[change]
    with pytest.raises(ReplayError, match="exactly|rained|now"):
        with recorded(root, tmp_path/"l.jsonl") as lm: assert ask(lm, **kw) == "1987"
    with pytest.raises(AssertionError) as e:
        with recorded(root, tmp_path/"l.jsonl") as lm: assert ask(lm, **kw) == "1988"
    assert any("was not in" in o for o in e.value.__notes__)

def test_a_record_is_replaced_by_a_good_one_only(tmp_path):
    log = tmp_path/"l.jsonl"
    with pytest.raises(InputError, match="no run is recorded here yet"):
        with recorded("openai/gpt-5", log): pass
    with pytest.raises(InputError, match="nothing to record"):
        with recorded("openai/gpt-5", log, record=True): pass
    with recorded(ScriptedLM([tool_call("FINAL(1)")]), log, record=True) as lm: RLM(lm).completion("One?")
    before = log.read_bytes()
    with pytest.raises(ZeroDivisionError) as e:
        with recorded(ScriptedLM([tool_call("FINAL(2)")]), log, record=True) as lm: RLM(lm).completion("Two?") and 1/0
    assert log.read_bytes() == before and str(tmp_path/"l.failed.jsonl") in e.value.__notes__[0]
    assert Trajectory.load(tmp_path/"l.failed.jsonl").answer == 2 # paid for, and perhaps only the test was wrong
    with recorded(ScriptedLM([tool_call("FINAL(2)")]), log, record=True) as lm: # what another model is asked is not its business
        RLM(ScriptedLM([tool_call("FINAL(3)")])).completion("Three?")
        RLM(lm).completion("Two?")
    assert [o.query for o in Trajectory.load(log).runs] == ["Two?"] and log.read_bytes() != before and [*tmp_path.iterdir()] == [log]
    log.write_text("no log\n")
    with pytest.raises(InputError, match="line 1"):
        with recorded("openai/gpt-5", log): pass

def test_logs_are_joined(tmp_path):
    def one(n): return Trajectory(events=[Run(id=5, query=f"q{n}"), Reply(id=9, run=5, parent=5, step=1, message=dict(content="a")), Final(id=10, run=5, answer=n), Resume(id=11, run=5, after=9), Final(id=12, run=5, answer=-n)])
    t = join_logs([one(1), one(2), Trajectory(), one(3)], tmp_path/"l.jsonl")
    tops = [o.id for o in t.runs]
    assert [t.of(o).answer for o in tops] == [-1, -2, -3] and [len(t.of(o).kept()) for o in tops] == [3, 3, 3] and len({e.id for e in t}) == len(t) == 15

APP = """
    from rlm import RLM
    rlm = RLM("openai/gpt-5", sub_model="openai/gpt-5-mini", base_url={url!r}, api_key="none", dialect="tools", retries=0)
    def closed(text, ask=rlm.completion, question="When was it closed?"): return ask(question, text).answer
    """

TESTS = """
    import pytest, app
    from rlm import LM, RLM
    TEXT = "Harbor station was closed in 1987."

    def test_rlm(replayed):
        assert replayed(app.rlm) is app.rlm
        assert app.closed(TEXT) == "1987"

    def test_restored(): assert app.rlm.models[0].model == "openai/gpt-5" and type(app.rlm.models[0]) is LM

    @pytest.mark.parametrize("place", ["Harbor", "../Mill"])
    def test_places(replayed, place): assert app.closed(TEXT.replace("Harbor", place), RLM(replayed(app.rlm.models[0])).completion) == "1987"

    def test_two(replayed):
        a,b = replayed(app.rlm.models[0]),replayed(app.rlm.models[1], "by-name")
        assert app.closed(TEXT, RLM(a).completion) == app.closed(TEXT, RLM(b).completion) == "1987"

    @pytest.fixture
    def ready(replayed):
        replayed(app.rlm)
        return app

    def test_in_a_fixture(ready): assert ready.closed(TEXT) == "1987"

    class TestClass:
        def test_method(self, replayed):
            replayed(app.rlm)
            assert app.closed(TEXT) == "1987"
    """

def test_the_plugin(pytester):
    pytester.makepyfile(test_app=textwrap.dedent(TESTS))
    def run(*args):
        res = pytester.runpytest("-q", "--tb=short", "-p", "no:cacheprovider", "-p", "rlm.testing", *args)
        return {k: v for k,v in res.parseoutcomes().items() if "warning" not in k},res.stdout.str()
    def year(messages, tools): return tool_call("FINAL(llm_query('When? ' + context))", id="a") if tools else "1987"
    with serve(year) as srv:
        pytester.makepyfile(app=textwrap.dedent(APP.format(url=srv.base_url)))
        outcomes,out = run()
        assert outcomes == dict(failed=5, passed=1, errors=1) and out.count("no run is recorded here yet") >= 6 and 'pytest --rlm-record "test_app.py::test_rlm"' in out and not srv.requests
        assert run("--rlm-record")[0] == dict(passed=7)
        assert len(srv.requests) == 2*7
    names = {re.sub("-[0-9a-f]{8}", "-#", o.stem) for o in (pytester.path/"runs").iterdir()}
    assert names == {"test-app-test-rlm", "test-app-test-places-harbor-#", "test-app-test-places-mill-#", "test-app-test-two", "by-name", "test-app-test-in-a-fixture", "test-app-testclass-test-method"}
    assert run()[0] == dict(passed=7) # the server is gone
    app = pytester.path/"app.py"
    app.write_text(app.read_text().replace("When was it", "Who"))
    outcomes,out = run()
    assert outcomes == dict(failed=6, passed=1) and "Now: 'Who closed?'. The nearest there: 'When was it closed?'" in out and "rlm/session.py" not in out

def test_the_plugin_costs_nothing_at_start():
    code = "import pytest, sys\nbefore = {*sys.modules}\nimport rlm.testing\nprint(*({*sys.modules} - before))"
    assert {*subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()} == {"rlm", "rlm.testing"}
