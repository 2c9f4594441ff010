"""What a shell keeps for its model, in every home: long output in variables, what they weigh, helpers for reading, and answers
that the host has to accept."""
import os, re, signal, sys

import pytest

from rlm import launch
from rlm.cell import bytes_of
from rlm.launch import ShellLimits
from rlm.sandbox import WorkerShell
from rlm.shell import InProcessShell, model_functions

no_sandbox = launch.problem("sandbox")
in_sandbox = pytest.param("sandbox", marks=pytest.mark.skipif(bool(no_sandbox), reason=str(no_sandbox)))
homes = ["inprocess", "process", in_sandbox]
others = homes[1:]

@pytest.fixture
def make():
    made = []
    def f(home, offload=None, context="the context", **names):
        sh = InProcessShell(offload=offload) if home == "inprocess" else WorkerShell(home, ShellLimits(seconds=20), offload=offload)
        sh.protect(context=context, **names)
        made.append(sh)
        return sh
    yield f
    for sh in made: sh.close()

def lines(n, word="line"): return f"print(*(f'{word} {{i}}' for i in range({n})), sep='\\n')"

# -- Long output

@pytest.mark.parametrize("home", homes)
def test_long_output_is_kept(make, home):
    sh = make(home, offload=1000)
    assert sh.run(lines(50)).kept is None and sh.variables() == {}
    r = sh.run(lines(2000))
    whole = "\n".join(f"line {i}" for i in range(2000))
    assert r.kept == "_result_1" and sh.resolve("_result_1") == whole and r.whole_text() == whole
    text = r.text(300)
    assert len(text) <= 300 and text.startswith("line 0\n") and "line 1999" in text and "elided" in text
    assert text.endswith("[18,889 characters, kept as _result_1: page(_result_1, 1), page(_result_1, 2), …]")
    assert sh.run("type(_result_1), len(_result_1.splitlines())").result == "(str, 2000)"
    assert "_result_1: str of 18,889" in sh.run("SHOW_VARS()").text()
    assert "kept output" in sh.run("memory_status()").text()
    assert sh.run("forget('_result_1')").error is None and sh.variables() == {}
    assert sh.run(lines(2000)).kept == "_result_2"

@pytest.mark.parametrize("home", homes)
def test_what_is_kept_is_not_kept_again(make, home):
    sh = make(home, offload=1000)
    sh.run(lines(2000))
    for code in ("print(_result_1)", "_result_1", "print('Here:', _result_1)", "display(_result_1)", "page(_result_1, 2)",
                 "print(page(_result_1, 3))", "print(_result_1[2000:9000])", "print(_result_1[:5000])"):
        r = sh.run(code)
        assert r.kept is None and list(sh.variables()) == ["_result_1"], code
        if code.startswith(("_", "print(_result_1)", "print('Here")): assert "page 1 of 5" in r.text(), r.text()
    assert "line 700" in sh.run("print(page(_result_1, 2))").text(10_000)
    assert sh.run(lines(3000, "other")).kept == "_result_2"

@pytest.mark.parametrize("home", homes)
def test_what_was_too_long_to_keep_whole_is_not_kept_again(make, home):
    "What was cut when it was kept can be printed without being cut once more"
    sh = make(home, offload=1000)
    sh.run("print('ab ' * 1_000_000)")
    assert "elided" in sh.resolve("_result_1")
    for code in ("print(_result_1)", "print('Here:', _result_1)", "_result_1"):
        r = sh.run(code)
        assert r.kept is None and "page 1 of" in r.text() and list(sh.variables()) == ["_result_1"], code

@pytest.mark.parametrize("home", homes)
def test_a_variable_keeps_as_much_in_every_home(make, home):
    "What comes back of a cell has its limit in another process; a variable there has the one that it has in this process"
    sh, heard = make(home, offload=1000), []
    sh.on_output = lambda stream, text: heard.append(text)
    r = sh.run(lines(20_000))
    assert sh.resolve(r.kept) == "\n".join(f"line {i}" for i in range(20_000))
    assert r.text().endswith("[208,889 characters, kept as _result_1: page(_result_1, 1), page(_result_1, 2), …]")
    assert int(re.search(r"\[([\d,]+) characters elided", r.text())[1].replace(",", "")) > 200_000 # of all, not of the rest
    if home != "inprocess": assert len(r.stdout) <= 20_100 and r.elided > 180_000 and len("".join(heard)) <= 20_000
    r = sh.run("import sys; print('a'*3_000_000); print('b'*3_000_000, file=sys.stderr)")
    n = len(sh.resolve(r.kept))
    assert 900_000 < n <= 1_000_000 and f"[{n:,} characters, kept as _result_2" in r.text()
    if home == "inprocess": return
    assert sh.run("import os; os.write(1, b'c'*60_000 + b'middle' + b'c'*60_000)").kept == "_result_3"
    assert "middle" in sh.resolve("_result_3")

@pytest.mark.parametrize("home", homes)
def test_everything_that_is_read_counts(make, home):
    sh = make(home, offload=1000)
    assert sh.run("list(range(600))").kept == "_result_1" and sh.resolve("_result_1").startswith("[0,")
    r = sh.run(lines(300) + "\nimport sys; print('e'*500, file=sys.stderr)\n1/0")
    kept = sh.resolve(r.kept)
    assert kept.startswith("line 0") and "[stderr]" in kept and kept.endswith("ZeroDivisionError: division by zero")
    assert r.text(400).find("ZeroDivisionError") > 0
    assert sh.run(lines(500) + "\nFINAL(1)").kept is None # there is nobody left to read it

@pytest.mark.parametrize("home", homes)
def test_names_never_collide(make, home):
    sh = make(home, offload=100)
    sh.run("_result_1 = 'mine'\n_result_3 = 'a'")
    assert [sh.run(f"print('{c}'*200)").kept for c in "xyz"] == ["_result_2", "_result_4", "_result_5"]
    assert sh.run("_result_1, _result_3").result == "('mine', 'a')"
    assert sh.run("_result_2 = 'a'\nprint('na'*100)").kept == "_result_6" # a short one is not looked for in the output

def test_at_most_a_million_characters(make):
    sh = make("inprocess", offload=1000)
    r = sh.run("print('x'*5_000_000)")
    assert len(sh.user_ns[r.kept]) <= 1_000_000 and "elided" in sh.user_ns[r.kept]
    assert make("inprocess").run("print('x'*9000)").kept is None # nothing is kept unless it is asked for

def test_a_cell_within_a_cell(make):
    sh = make("inprocess", offload=100)
    assert sh.run("r = get_ipython().run_cell('print(\"x\"*500)')\n5").kept == "_result_1"
    assert list(sh.variables())[-1] == "_result_1"

@pytest.mark.skipif(sys.platform != "linux", reason="snapshots: only on Linux")
@pytest.mark.parametrize("home", others)
def test_survives_a_death(make, home):
    sh = make(home, offload=1000)
    assert sh.run("print('abc '*1000)").kept == "_result_1" # a cell that only looks leaves something behind after all
    assert sh.run("import os; os._exit(1)").error.name == "ProcessDied"
    assert sh.run("len(_result_1)").result == "4000"
    assert sh.run("print('def '*1000)").kept == "_result_2"
    worker = sh.worker
    os.kill(worker.popen.pid, signal.SIGKILL) # everything is lost
    worker.thread.join(20)
    assert sh.variables() == {} and sh.run("print('ghi '*1000)").kept == "_result_3"

# -- Memory

@pytest.mark.parametrize("home", homes)
def test_memory_and_forget(make, home):
    sh = make(home)
    sh.run("big = ['x'*1000 + str(i) for i in range(2000)]\nsame = big\nsmall = 5\ndef f(): pass\nimport re")
    rows = sh.run("memory_status()").result.splitlines()
    assert rows[0].startswith("big: list of 2,000, 2.") and rows[-1].endswith("in 4 variables") and "re:" not in str(rows)
    told = sh.run("forget('big', 'small')").result
    assert told.startswith("forgot big, small, about 2.") and set(sh.variables()) == {"same", "f"}
    assert sh.run("forget(same)").result.startswith("forgot same") and set(sh.variables()) == {"f"}
    for name, error in (("'context'", "ValueError"), ("context", "ValueError"), ("'FINAL'", "ValueError"), ("find", "ValueError"), ("'nothing'", "NameError"),
                        ("'f', 'nothing'", "NameError"), ("'re'", None)):
        r = sh.run(f"forget({name})")
        assert (r.error and r.error.name) == error, r
    assert sh.variables() == {"f": "function"} and sh.run("context").result == "'the context'"

def test_forgotten_is_free(make):
    import gc, weakref
    sh = make("inprocess")
    sh.run("class Big: pass\nbig = Big()\nbig")
    ref = weakref.ref(sh.user_ns["big"])
    sh.run("forget('big')")
    gc.collect()
    assert ref() is None

class Loud:
    def __sizeof__(self): raise RuntimeError("no")

def test_bytes_of():
    import collections
    deep = []
    for _ in range(5000): deep = [deep]
    for o in (Loud(), [Loud()]*5, deep, collections.deque("ab"), {1: {2: {3: {}}}}, {"a"}, ([],)): assert bytes_of(o) >= 0
    assert .8 < bytes_of([bytes(100) + bytes([i % 256]) for i in range(100_000)])/(134*100_000 + 800_000) < 1.2
    assert bytes_of([[["x"*10_000 + str(i)] for i in range(10)] for _ in range(10)]) > 500_000

# -- Reading

@pytest.mark.parametrize("home", homes)
def test_reading(make, home):
    sh = make(home, context="Price: 5 EUR.\n"*500)
    assert sh.run("found = find('price', k=3)\nlen(found), found[0].start, found[1].start").result == "(3, 0, 14)"
    assert sh.run("''.join(page(n=n) for n in (1, 2)) == context").result == "True"
    assert sh.run("sum(map(len, chunk(size=1000)))").result == "7000"
    assert "5 EUR" in sh.run("extract_after('Price: ', n=5)").result
    assert sh.run("page = find = None").restored == ("find", "page") and sh.run("page('abc')").error is None
    assert sh.variables() == {"found": "Found of 3"}

@pytest.mark.parametrize("home", others)
def test_an_endless_pattern_is_stopped(make, home):
    sh = make(home, context="a"*50)
    sh.limits = ShellLimits(seconds=1)
    assert sh.run("kept = 1").error is None
    assert sh.run("find('(a+)+b')").error.name == "TimeoutError"
    assert sh.run("kept").result == "1"

def test_prompts_can_tell():
    told = model_functions()
    assert list(told) == ["FINAL", "FINAL_VAR", "SHOW_VARS", "memory_status", "forget"]
    assert all(f.__doc__ and len(f.__doc__) < 80 for f in told.values())

# -- Answers

seen = []

def check_answer(value):
    seen.append(value)
    if value != {"total": 3}: raise ValueError("total: must be 3")

@pytest.mark.parametrize("home", homes)
def test_an_answer_is_checked(make, home):
    sh = make(home, check_answer=check_answer)
    for code in ("FINAL({'total': 4})", "t = {'total': 4}\nFINAL_VAR('t')", "answer.update(content={'total': 4}, ready=True)",
                 "answer['content'] = 5; answer['ready'] = True"):
        r = sh.run(code)
        assert not r.ended and "total: must be 3" in r.text(), code
    r = sh.run("try: FINAL({'total': 5})\nexcept ValueError as e: print(e)\nFINAL({'total': 3})\nprint('never')")
    assert (r.stdout, r.final, r.error) == ("total: must be 3\n", {"total": 3}, None)
    assert sh.run("answer.update(content={'total': 3}, ready=True)").final == {"total": 3}
    seen.clear()
    r = sh.run("from dataclasses import dataclass\n@dataclass\nclass Total: total: int\nFINAL(Total(3))")
    assert r.ended and seen == [{"total": 3}]

@pytest.mark.parametrize("home", homes)
def test_without_a_check(make, home): assert make(home).run("FINAL({1, 2})").final == {1, 2}

# -- Types of answers, in calls of another process

def llm_query(prompt: str, images: list = (), response_format=None):
    "Ask"
    seen.append((prompt, images, response_format))
    return {"int": 3, "integer": 3, "array": ["a", "b"], "object": dict(name="Ada", year=1815)}.get((response_format or {}).get("type"), "text")

def llm_query_batched(prompts: list, response_format=None):
    "Ask"
    seen.append(response_format)
    return ["ERROR: the call failed" if p == "fail" else dict(name=p, year=1) for p in prompts]

async def allm_query(prompt: str, response_format=None):
    "Ask"
    return llm_query(prompt, (), response_format)

@pytest.mark.parametrize("home", others)
def test_types_in_calls(make, home):
    sh = make(home, llm_query=llm_query, llm_query_batched=llm_query_batched, allm_query=allm_query)
    seen.clear()
    r = sh.run("llm_query('how many?', response_format=int) + 1, llm_query('which?', response_format=list[str]), llm_query('say')")
    assert r.result == "(4, ['a', 'b'], 'text')" and seen[0][2] == {"type": "integer"}
    assert seen[1][2]["items"] == {"type": "string"} and seen[2][2] is None
    sh.run("from dataclasses import dataclass\n@dataclass\nclass Person:\n    name: str\n    year: int")
    assert sh.run("llm_query('who?', (), Person)").result == "Person(name='Ada', year=1815)"
    assert sh.run("await allm_query('who?', response_format=Person)").result == "Person(name='Ada', year=1815)"
    assert sh.run("llm_query_batched(['Bo', 'fail'], Person)").result == "[Person(name='Bo', year=1), 'ERROR: the call failed']"
    assert sh.run("llm_query('how many?', response_format={'type': 'integer'})").result == "3"
    assert sh.run("llm_query('x', response_format=5)").error
    assert sh.run("llm_query('one', [b'\\x89PNG'])").error is None and seen[-1][1] == [b"\x89PNG"]
    assert sh.run("llm_query()").error.name == "TypeError"

@pytest.mark.parametrize("home", others)
def test_pydantic_models_in_calls(make, home):
    pytest.importorskip("pydantic")
    sh = make(home, llm_query=llm_query)
    r = sh.run("from pydantic import BaseModel\nclass Person(BaseModel):\n    name: str\n    year: int\nllm_query('who?', response_format=Person)")
    assert r.result == "Person(name='Ada', year=1815)", r.text()
    r = sh.run("class Odd(BaseModel): place: str\nllm_query('who?', response_format=Odd)")
    assert r.error and "place" in r.text()
