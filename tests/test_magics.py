"`%load_ext rlm` in a real kernel: a cell is a question, its options complete, and what goes wrong is one sentence."
import json, os, re
from pathlib import Path

import pytest
from kernel import Kernel

from rlm.trajectory import Trajectory

setup = """%load_ext rlm
from rlm import LM, RLM, Trajectory
from rlm.offline import ScriptedLM, tool_call
notes = {"monday.txt": "Anna comes at nine.\\nBen comes at ten.", "tuesday.txt": "Ben is ill."}
prices = [1, 2, 3]
nothing = None
names = tool_call("FINAL([o for o in ('context', 'prices', 'notes') if o in globals()])")
def says(*codes): return ScriptedLM([tool_call(o) for o in codes])
"""

@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    with Kernel() as k:
        k.logs = logs
        k.run(f"import os\nos.environ['RLM_LOG_DIR'] = {str(logs)!r}")
        assert k.run(setup).error is None
        yield k

def one_sentence(got, words):
    "A cell that stopped the notebook with a sentence"
    assert got.text.startswith("UsageError: ") and words in got.text and "Traceback" not in got.text and got.result is None, got.text

def test_a_cell_is_a_question(kernel):
    got = kernel.run("%%rlm -c notes -m offline/extractive\nWho is ill?")
    assert got.result.startswith("Result('Ben is ill.', done")
    [page] = got.last.values()
    assert "done · 5 steps" in page and "Who is ill?" in page
    assert kernel.run("_rlm.answer, type(_rlm.ns['docs']).__name__").result == "('Ben is ill.', 'dict')"
    log = next(kernel.logs.glob("*-who-is-ill-*.jsonl"))
    assert Trajectory.load(log).answer == "Ben is ill."

def test_several_variables_an_answer_type_and_a_name(kernel):
    kernel.run("lm = ScriptedLM([names])")
    got = kernel.run("%%rlm -c notes -c prices -m lm -t list[str] -o found --no-log --quiet\nWhat is there?")
    assert got.error is None and got.frames == [] and kernel.run("found.parsed").result == "['context', 'prices']"

def test_quotes_are_no_part_of_a_value(kernel):
    kernel.run("lm = says('FINAL({\\'a\\': 1})')")
    got = kernel.run("%%rlm -c \"notes\" -m 'lm' -t \"dict[str, int]\" -o found\nHow many?")
    assert got.error is None and kernel.run("found.parsed").result == "{'a': 1}"

def test_a_question_that_follows(kernel):
    kernel.run("lm = says('n = 3\\nFINAL(n)', 'FINAL([n, prices])')")
    assert kernel.run("%%rlm -c notes -m lm\nHow many?").result.startswith("Result(3")
    assert kernel.run("%%rlm -f -c prices\nAnd now?").result.startswith("Result([3, [1, 2, 3]]")
    assert kernel.run("len(_rlm.trajectory.runs), len(Trajectory.load(_rlm.log).runs)").result == "(1, 2)"

def test_an_rlm_with_its_settings(kernel):
    kernel.run("def twice(n):\n    'Twice `n`'\n    return 2*n\nmine = RLM(says('FINAL(twice(4))'), tools=[twice])")
    assert kernel.run("%%rlm -m mine -c notes\nHow much?").result.startswith("Result(8")
    one_sentence(kernel.run("%%rlm -m mine --max-steps 3\nHow much?"), "max_steps: these are settings of mine")

def test_limits(kernel):
    kernel.run("lm = says('1', '2', '3')")
    assert "stopped at max_steps" in kernel.run("%%rlm -m lm -c notes --max-steps 1\nWho?").result

def test_a_model_from_the_environment(kernel):
    kernel.run("os.environ['RLM_MODEL'] = 'offline/extractive'")
    assert kernel.run("%%rlm -c notes\nWho is ill?").result.startswith("Result('Ben is ill.'")
    kernel.run("del os.environ['RLM_MODEL']")

@pytest.mark.parametrize("line,cell,words", [("-c notes", "Who?", "No model is named"), ("-c nots -m lm", "Who?", "is it notes?"), ("-c notes -m lm", " ", "The question is empty"),
    ("--sped 3", "Who?", "unrecognized arguments: --sped"), ("-m lm --max-cost much", "Who?", "invalid float value"), ("-m lm --max-cost -3", "Who?", "max_cost must be a number"),
    ("-m lm -o 1x", "Who?", "cannot be the name of a variable"), ("-m lm -t listt", "Who?", "name 'listt' is not defined"), ("-m nosuch/model -c notes", "Who?", "nosuch/model"),
    ("-m lm -c 'notes", "Who?", "no closing quotation"), ("-m lm -o for", "Who?", "cannot be the name"), ("-m lm -c nothing", "Who?", "this variable is None"),
    ("-m lm --shell attic -c notes", "Who?", "shell must be"), ("-f -m lm", "Who?", "model cannot change"), ("-m lm --log-dir /dev/null/x", "Who?", "no log can be written")])
def test_what_goes_wrong_is_one_sentence(kernel, line, cell, words): one_sentence(kernel.run(f"%%rlm {line}\n{cell}"), words)

def test_a_failed_run_leaves_what_there_was(kernel):
    kernel.run("lm = says(\"answer['content'] = 'a draft'\")")
    one_sentence(kernel.run("%%rlm -m lm -c notes -o partly\nWho?"), "The script had 1 replies")
    assert kernel.run("partly.answer, partly.status").result == "('a draft', 'error')"

def test_an_interrupted_run_leaves_what_there_was(kernel):
    kernel.run("lm = says(\"answer['content'] = 'a draft'\", \"print('it begins', flush=True)\\nimport time\\ntime.sleep(60)\")")
    got = kernel.run("%%rlm -m lm -c notes -o partly\nWho?", interrupt="<pre class='rlm-output'>it begins")
    assert got.error == "KeyboardInterrupt" and kernel.run("partly.answer, partly.status").result == "('a draft', 'cancelled')"

def test_logs(kernel):
    kernel.run("%%rlm -c notes -m offline/extractive\nWhere is \x1b[2J<b>Anna</b>?")
    got = kernel.run("%rlm_runs -n 2")
    [(_,c)] = got.of("execute_result")
    assert "<b>Anna" not in c["data"]["text/html"] and "\x1b" not in json.dumps(c["data"], ensure_ascii=False) and len(c["data"]["text/plain"].splitlines()) == 3
    name = c["data"]["text/plain"].splitlines()[1].split()[0]
    assert kernel.run(f"t = %rlm_load {name}\nt.run.query").result == repr("Where is \x1b[2J<b>Anna</b>?")
    assert kernel.run("r = %rlm_last\nr.query == t.run.query").result == "True"
    assert len(kernel.run("%rlm_runs -n 0").result.splitlines()) > 3
    one_sentence(kernel.run("%rlm_load nothing"), "no such file")
    assert kernel.run("%rlm_runs --log-dir /nowhere").result == "no logs"

def test_help(kernel):
    shown = kernel.help("%%rlm?")
    for o in ("Answer the question in this cell", "%%rlm [-m MODEL]", "--max-cost DOLLARS", "-c VARIABLE", "default: _rlm"): assert o in shown, shown
    assert "List what was asked" in kernel.help("%rlm_runs?")

@pytest.mark.parametrize("line,offered,not_offered", [("%%rlm --max", {"--max-cost", "--max-steps"}, set()), ("%%rlm -c no", {"notes"}, {"setup"}), ("%%rlm -m m", {"mine"}, {"names"}),
    ("%%rl", {"%%rlm"}, set()), ("%rlm_", {"%rlm_runs", "%rlm_last", "%rlm_load"}, set())])
def test_the_tab_key(kernel, line, offered, not_offered):
    kernel.run("mine = RLM(says('1'))")
    found = set(kernel.complete(line))
    assert offered <= found and not not_offered & found
