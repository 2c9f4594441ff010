"What a terminal is sent: nothing that a model wrote may act on it, and everything fits."
import io, json, os, re, threading, time

import pytest
from rich.cells import cell_len
from rich.console import Console

from rlm.events import Cell, End, Final, Reply, Resume, Run, Subcall, SubcallStart, Usage
from rlm.trajectory import Trajectory
from rlm.view import TerminalView, answer_text, caveat, parts, split_output, stats, visible

evil = "\x1b]0;title\x07\x1b[2J\x1b[1;1H\x9b31m\x1b]8;;http://x\x1b\\link\r\b\x00 [bold red]markup[/] [link=http://x]y[/link] :smile: \u202eabc \ud800"
acts = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\x1b(?!\\[[\\d;]*m)")

def call(code, i=0): return dict(id=f"c{i}", type="function", function=dict(name="run_repl", arguments=json.dumps(dict(python_code=code))))

def reply(step=1, content=None, *codes, **kw):
    message = dict(role="assistant", content=content, tool_calls=[call(o, i) for i,o in enumerate(codes)])
    return Reply(step=step, model="openai/gpt-5", message=message, usage=Usage(1000, 50, calls=1, cost=0.002), seconds=1.5, **kw)

def show(events, width=100, tty=True, **kw):
    "What is written for `events`"
    out = io.StringIO()
    console = Console(file=out, force_terminal=tty, width=width, force_jupyter=False, color_system="truecolor" if tty else None, _environ={})
    view = TerminalView(console, **kw)
    for e in events: view(e)
    return out.getvalue()

def plain(text): return re.sub(r"\x1b\[[\d;]*m", "", text)

def everywhere(text):
    "A run in which `text` is in every place where a model or a provider can put one"
    code = f"print({text!r})\n# {text}"
    return [Run(query=text, model=text, context=dict(type="str", chars=3)),
        reply(1, f"<think>{text}</think>{text} `{text}` **{text}**", code),
        Subcall(batch=1, model=text, prompt=text, error=text), Cell(step=1, code=code, output=f"{text}\nTraceback (most recent call last):\n{text}", error=text),
        Cell(step=1, code=None, output=text), reply(2, f"```repl\n{text}\n```"), Final(answer=text), End(status="limit", limit="max_steps")]

@pytest.mark.parametrize("tty", [True, False])
def test_nothing_a_model_writes_acts_on_the_terminal(tty):
    shown = show(everywhere(evil), tty=tty, log=evil)
    assert not acts.search(shown)
    assert "\x1b]" not in shown and "\x1b[2J" not in shown

def test_markup_and_emoji_codes_are_text():
    shown = plain(show(everywhere(evil), width=300))
    assert shown.count("[bold red]markup[/]") >= 7 and ":smile:" in shown

def test_visible_keeps_what_is_harmless():
    text = "Zoë 你好 👍 – “quoted”\n\tand"
    assert visible(text) == text.replace("\t", "    ")
    assert visible("a\r\nb\rc") == "a\nb␍c"

@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    long = "x = " + " + ".join(f"variable_{i}" for i in range(40)) + "\n" + "你好"*80
    events = [Run(query="Why? "*40, model="openai/gpt-5-with-a-long-name", context=dict(chars=10**9)), reply(1, "word "*60, long),
        Subcall(batch=1, error="e"*300, model="m"), Cell(step=1, code=long, output="y"*700 + "\n[step 1/30]", error=None), Final(answer="word "*50), End()]
    for line in plain(show(events, width)).splitlines(): assert cell_len(line) <= width, line

def test_long_things_are_clipped_and_counted():
    shown = plain(show([reply(1, "\n".join(["text"]*50), "\n".join(["code = 1"]*100)), Cell(step=1, code="", output="\n".join(f"out {i}" for i in range(500)))]))
    assert shown.count("text") == TerminalView.max_text and "… 38 more lines" in shown
    assert shown.count("code = 1") == TerminalView.max_code and "… 60 more lines" in shown
    assert "out 0\n" in shown and "out 499\n" in shown and "… 488 more lines" in shown

def test_code_stands_before_its_own_output():
    events = [reply(1, "Two cells.", "first = 1", "second = 2"), Cell(step=1, code="first = 1", output="out of first"), Cell(step=1, code="second = 2", output="out of second"),
              reply(2, "Then:\n```repl\nthird = 3\n```\nand\n```python\nfourth = 4\n```\nAll run."), Cell(step=2, code="third = 3", output="out of third"),
              Cell(step=2, code="fourth = 4", output="out of fourth"), Final(answer="the end"), End()]
    order = ["first =", "out of first", "second =", "out of second", "third =", "out of third", "fourth =", "out of fourth", "All run.", "the end"]
    shown = plain(show(events))
    places = [shown.index(o) for o in order]
    assert places == sorted(places)
    assert all(shown.count(o) == 1 for o in order)

def test_code_that_was_not_run_is_shown_too():
    shown = plain(show([reply(1, None, "a = 1", "b = 2"), Cell(step=1, code=None, output="Not run."), Cell(step=1, code="b = 2", output="2"), End()]))
    assert [shown.count(o) for o in ("a = 1", "b = 2", "Not run.")] == [1, 1, 1]

def test_colours_only_where_there_are_any():
    events = everywhere("text")
    assert "\x1b" not in show(events, tty=False, steps=True)
    out = io.StringIO()
    view = TerminalView(Console(file=out, force_terminal=True, width=80, force_jupyter=False, _environ=dict(NO_COLOR="1", TERM="xterm-256color")))
    for e in events: view(e)
    assert not re.search(r"\x1b\[[\d;]*\b(3[0-7]|38|9[0-7])\b[\d;]*m", out.getvalue())

def test_a_terminal_that_cannot_move_its_cursor():
    out = io.StringIO()
    view = TerminalView(Console(file=out, force_terminal=True, force_interactive=True, width=80, force_jupyter=False, _environ=dict(TERM="dumb")))
    with view:
        assert view._live is None
        for e in everywhere("text"): view(e)
    assert "\x1b" not in out.getvalue() and "step 1" in out.getvalue()

def test_encodings_that_lack_the_lines():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    view = TerminalView(Console(file=out, width=60, force_jupyter=False), steps=True)
    for e in everywhere("text"): view(e)
    out.flush()
    assert b"-- step 1 ---" in raw.getvalue() and b"| print" in raw.getvalue()

def test_quiet_says_nothing_and_keeps_everything():
    out = io.StringIO()
    with TerminalView(Console(file=out, force_terminal=True), quiet=True) as view:
        for e in everywhere("text"): view(e)
    assert out.getvalue() == "" and view.trajectory.answer == "text"

def test_lines():
    events = [Run(model="m", context=dict(type="str", chars=5)), reply(1, None, "a", "b"), Subcall(batch=1, of=2, usage=Usage(10, cost=0.01)),
        Subcall(batch=1, of=2, error="bad"), Cell(step=1, code="a", output=""), Cell(step=1, code="b", output="", error="NameError"),
        Cell(step=2, code=None, output="The last step."), reply(2, "FINAL(3)"), Final(answer="3", how="text"), End(seconds=2)]
    assert show(events, tty=False, log="x.jsonl").splitlines() == ["m on 5 characters", "step 1: 2 cells (NameError), 2 sub-calls (1 failed), 1,060 tokens, $0.0120",
        "step 2: no code, 1,050 tokens, $0.0020", "done: 2 steps, 2 sub-calls, 2,110 tokens, $0.0140, 2.0 s", "log: x.jsonl"]

def test_a_run_that_never_began_has_no_end_to_show():
    for tty in (True, False): assert "log" not in show([Run(model="m", context={}), End(status="error", error="No.")], tty=tty, log="x.jsonl")

def test_a_reader_who_went_away_does_not_stop_the_run():
    r,w = os.pipe()
    os.close(r)
    with open(w, "w") as gone:
        view = TerminalView(Console(file=gone, force_jupyter=False))
        for e in everywhere("text"): view(e)
        assert view.quiet and view.trajectory.status == "limit"
        os.dup2(os.open(os.devnull, os.O_WRONLY), w)

def test_what_is_waited_for():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, force_jupyter=False)
    def waiting(view):
        with console.capture() as c: console.print(view._waiting())
        return plain(c.get())
    view = TerminalView(console)
    assert "starting · 0 s" in waiting(view)
    view(Run(model="openai/gpt-5"))
    assert "step 1 · waiting for openai/gpt-5 · 0 s" in waiting(view)
    view(reply(1, None, "a", "b"))
    assert "step 1 · running code" in waiting(view)
    for i in range(3): view(Subcall(batch=1, index=i, of=8, usage=Usage(100, cost=None)))
    assert "3 of 8 sub-calls · 300 tokens · cost unknown" in waiting(view)
    view(Cell(step=1, code="a", output=""))
    assert "running code" in waiting(view) and "sub-calls" not in waiting(view)
    view(Cell(step=1, code="b", output=""))
    assert "step 2 · waiting for openai/gpt-5" in waiting(view)

def test_live_display_comes_and_goes():
    out = io.StringIO()
    with TerminalView(Console(file=out, force_terminal=True, width=80, force_jupyter=False, _environ=dict(TERM="xterm"))) as view:
        for e in everywhere("text")[:2]: view(e)
        threads = [threading.Thread(target=lambda i=i: view(Subcall(batch=1, index=i, of=20))) for i in range(20)]
        for o in threads: o.start()
        for o in threads: o.join()
        deadline = time.monotonic() + 5
        while "20 of 20 sub-calls" not in out.getvalue() and time.monotonic() < deadline: time.sleep(0.02)
        for e in everywhere("text")[3:]: view(e)
    shown = out.getvalue()
    assert "20 of 20 sub-calls" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "answer · stopped at max_steps" in plain(shown.rpartition("\x1b[?25h")[2])

def test_replies_of_any_shape():
    assert parts({}) == parts(dict(content=None)) == parts(dict(content="", tool_calls=[])) == []
    assert parts(dict(content="<think>never closed")) == [("thought", "never closed")]
    assert parts(dict(content="```repl\nopen")) == [("code", "open")]
    assert parts(dict(content="See:\n```json\n{}\n```")) == [("text", "See:\n```json\n{}\n```")]
    assert parts(dict(tool_calls=[dict(function=dict(name="f", arguments='{"a": 1, "b": 2}'))])) == [("code", '{"a": 1, "b": 2}')]
    assert parts(dict(tool_calls=[dict(function=dict(name="f", arguments="[not json"))])) == [("code", "[not json")]
    assert parts(dict(tool_calls=[dict(function=dict(name="f", arguments="{}"))])) == [("code", "{}")]

def test_outputs_of_any_shape():
    assert split_output(Cell(output="a\n[step 1/3 · 0 sub-calls]")) == ("a", "")
    assert split_output(Cell(output="[step 1/3]")) == ("", "")
    assert split_output(Cell(output="no traceback", error="InputError")) == ("", "no traceback")
    assert split_output(Cell(output="Traceback (most recent call last):\n printed, not raised")) == ("Traceback (most recent call last):\n printed, not raised", "")
    assert split_output(Cell(output="  Cell 2, line 1\n    1+\nSyntaxError: invalid syntax", error="SyntaxError"))[1].startswith("  Cell 2")

@pytest.mark.parametrize("answer,text", [(0, "0"), ("", ""), (None, "None"), (True, "True"), ([1, "a"], '[\n  1,\n  "a"\n]'), ({(1, 2): 3}, "{(1, 2): 3}")])
def test_answers_of_any_type(answer, text):
    assert answer_text(answer) == text
    assert "answer" in plain(show([reply(1, "x"), Final(answer=answer), End()]))

@pytest.mark.parametrize("status,how,words", [("fallback", "fallback", "never said that it was done"), ("limit", "fallback", "Stopped at max_steps: this is the best"),
    ("limit", None, "Stopped at max_steps: there is no answer"), ("error", "fallback", "Failed: this is the best"), ("cancelled", "fallback", "Interrupted: this is")])
def test_what_the_answer_is_worth(status, how, words):
    events = [reply(1, "x"), *([Final(answer="perhaps", how=how)] if how else []), End(status=status, limit="max_steps" if status == "limit" else None)]
    for tty in (True, False): assert words in plain(show(events, tty=tty))

# A run that did not begin at its beginning, or has runs of its own

def whole():
    "A fork with children that was stopped, and resumed"
    ask = "rlm_query('part')"
    return [Run(id=1, query="q", model="m", context=dict(chars=3), origin=dict(log="runs/first.jsonl", run=1, step=2)), reply(1, "I look.", "1", id=2, run=1, cached=True), Cell(id=3, run=1, step=1, code="1", output="1"),
        reply(2, "I ask.", ask, id=4, run=1), Run(id=5, run=1, query="part", depth=1), SubcallStart(run=5, batch=1, of=4), Reply(id=6, run=5, message=dict(content="of the child")), Subcall(id=7, run=5, batch=1, of=4),
        Cell(id=8, run=5, code="2", output="of the child"), Final(id=9, run=5, answer="of the child"), End(id=10, run=5), Cell(id=11, run=1, step=2, code=ask, output="2"), End(id=12, run=1, status="limit", limit="max_steps"),
        Resume(id=13, run=1, after=11, model="m"), reply(3, "FINAL(3)", id=14, run=1), Final(id=15, run=1, answer="3"), End(id=16, run=1, seconds=2)]

@pytest.mark.parametrize("tty", [True, False])
def test_children_forks_and_resumed_runs(tty):
    shown = plain(show(whole(), tty=tty))
    for o in ("m on 3 characters, forked at step 2 of first.jsonl", "taken over", "1 child run", "2 sub-calls", "Stopped at max_steps", "resumed after step 2", "done"): assert o in shown, shown
    assert "of the child" not in shown

def test_a_view_that_catches_up_shows_what_is_new():
    out = io.StringIO()
    view = TerminalView(Console(file=out)).catch_up(Trajectory(events=whole()[:13]))
    assert out.getvalue() == ""
    for e in whole()[13:]: view(e)
    assert out.getvalue().splitlines()[0] == "resumed after step 2" and "step 3: no code" in out.getvalue() and "done: 3 steps, 2 sub-calls" in out.getvalue()

def test_each_question_of_a_session_has_its_own_sums():
    events = [Run(query="one", model="m"), reply(1, "FINAL(1)"), Final(answer="1"), End(), Run(query="two", model="m"), reply(1, "FINAL(2)"), Final(answer="2"), End()]
    shown = show(events, tty=False)
    assert shown.count("done: 1 step, 1,050 tokens") == 2

def test_what_has_no_end_says_so():
    for tty in (True, False):
        out = io.StringIO()
        view = TerminalView(Console(file=out, force_terminal=tty, width=80, force_jupyter=False))
        for e in whole()[:4]: view(e)
        view.over()
        view.over()
        assert "Unfinished: there is no answer." in plain(out.getvalue())

def test_the_bar_knows_of_calls_that_have_begun():
    view = TerminalView(Console(file=io.StringIO(), force_terminal=True, width=100))
    view(reply(1, None, "a"))
    for i in range(8): view(SubcallStart(batch=1, index=i, of=8))
    view(Subcall(batch=1, index=0, of=8))
    assert (view._calls.n, view._calls.total) == (1, 8)
