"What a run has read, as numbers and as pictures; events as a table; two runs beside each other"
import random, re, sys, time
from concurrent.futures import ThreadPoolExecutor
import pytest
from rlm import RLM, InputError, Limits, Trajectory, Usage
from rlm.analysis import Coverage, Read
from rlm.coverage import Marks, agree, standing
from rlm.events import Cell, Citation, End, Final, Reply, Run, Subcall
from rlm.offline import ScriptedLM

WORDS = ["".join(random.Random(i).choices("etaoinshrdlu", k=2 + i%7)) for i in range(2000)]
def prose(n, seed=0):
    "About `n` characters that hardly repeat"
    return " ".join(random.Random(seed).choices(WORDS, k=n))[:n]

def best(f, n=5):
    "The shortest of some times, in seconds"
    def once():
        start = time.perf_counter()
        f()
        return time.perf_counter() - start
    return min(once() for _ in range(n))

# ---- passages

@pytest.mark.parametrize("seed", range(5))
def test_agree_is_what_a_loop_finds(seed):
    rnd = random.Random(seed)
    for _ in range(300):
        s,t = ("".join(rnd.choices("ab", k=rnd.randint(0, 400))) for _ in "st")
        if rnd.random() < .5: t = s[:rnd.randint(0, len(s))] + t
        i,j = rnd.randint(0, len(s)), rnd.randint(0, len(t))
        ahead = next((n for n in range(1000) if s[i+n:i+n+1] != t[j+n:j+n+1] or i+n >= len(s)), None)
        back = next(n for n in range(1000) if n >= min(i, j) or s[i-n-1] != t[j-n-1])
        assert (agree(s, i, t, j), agree(s, i, t, j, back=True)) == (ahead, back)

@pytest.mark.parametrize("seed", range(4))
def test_passages_of_prompts_made_of_slices(seed):
    rnd = random.Random(seed)
    contexts = dict(context=prose(300_000, seed), files={f"f{k}": prose(rnd.randint(10, 9000), 50+seed+k) for k in range(20)})
    marks,flat = Marks(contexts),[("context", None, contexts["context"]), *(("files", k, v) for k,v in contexts["files"].items())]
    for _ in range(30):
        prompt,wanted = "Q: ",[]
        for _ in range(rnd.randint(1, 6)):
            name,source,text = rnd.choice(flat)
            start = rnd.randrange(len(text))
            end = min(len(text), start + rnd.randint(100, 30_000))
            if end - start < 100: continue
            prompt += text[start:end] + rnd.choice(["\n---\n", "\x00", " QQQQ "])
            wanted.append([name, source, start, end])
        found = marks.passages(prompt)
        assert [o[:2] for o in found if o[3]-o[2] > 90] == [o[:2] for o in wanted]
        for (*_,a,b),(*_,x,y) in zip([o for o in found if o[3]-o[2] > 90], wanted): assert abs(a-x) < 4 and abs(b-y) < 4

def test_parts_of_every_kind_and_variables_that_come_later():
    contexts = dict(context=[dict(role="user", content=prose(500, 1)), dict(text=prose(500, 2), page=3), dict(a=prose(200, 3)), b"\x89PNG"],
        table=7)
    marks = Marks(contexts)
    assert marks.passages(prose(500, 1)[100:300]) == [["context", 0, 100, 300]]
    assert marks.passages(prose(500, 2)) == [["context", 1, 0, 500]]
    assert marks.passages(f"note: {prose(200, 3)}") == [["context", 2, 7, 207]] # in its JSON
    contexts["later"] = "é" + prose(400, 9)
    assert marks.passages({"child": prose(400, 9)[50:200]}) == [["later", None, 51, 201]]
    for o in (None, 7, b"x"*99, object(), [None], "", "\ud800"*99, {1: {2: 3}}): assert marks.passages(o) == []

def test_a_context_that_changes_under_it_breaks_nothing():
    context = [prose(5000, k) for k in range(5)]
    marks,prompt = Marks(dict(context=context)), prose(5000, 3)[100:2000]
    assert marks.passages(prompt) == [["context", 3, 100, 2000]]
    del context[2:]
    assert marks.passages(prompt) == []
    assert Marks(dict(context=type("Bad", (list,), dict(__len__=lambda s: 1/0, __iter__=lambda s: 1/0))())).passages(prompt) == []

def test_whole_short_parts_count():
    short = [prose(40, k) for k in range(200)]
    assert Marks(dict(context=short)).passages("\n".join(short[50:60])) == [["context", k, 0, 40] for k in range(50, 60)]

def test_repeated_phrases_do_not_hide_the_passage():
    log = "\n".join(f"2024-01-01 INFO server.worker.pool: request handled successfully status=200 id={i}" for i in range(20_000))
    assert Marks(dict(context=log)).passages("Look:\n" + log[700_003:750_000]) == [["context", None, 700_003, 750_000]]

def test_texts_that_are_changed_a_little_are_one_passage():
    lines = [prose(60 + k%30, k) for k in range(3000)]
    marks,some = Marks(dict(context="\n".join(lines))), lines[1000:1500]
    start = sum(len(o)+1 for o in lines[:1000])
    end = start + sum(len(o)+1 for o in some) - 1
    for prompt in (" ".join(some), "\n".join(f"{i}: {o}" for i,o in enumerate(some)), "\n    ".join(some)):
        found = marks.passages("Read: " + prompt + "\nThat was it.")
        assert len(found) < 30 and sum(b-a for *_,a,b in found) > .95*(end-start)
        assert all(start-60 <= a and b <= end+60 for *_,a,b in found)

def test_many_threads_build_one_index():
    marks = Marks(dict(context=[prose(3000, k) for k in range(100)]))
    with ThreadPoolExecutor(8) as pool: found = [*pool.map(lambda k: marks.passages(prose(3000, k)), range(100))]
    assert found == [[["context", k, 0, 3000]] for k in range(100)]
    assert len(marks.slices.owners) == 100

def test_a_slice_of_a_large_context_costs_little():
    text = prose(10_000_000)
    marks,prompt = Marks(dict(context=text)), "Find it.\n" + text[5_000_013:5_100_000]
    assert marks.passages(prompt) == [["context", None, 5_000_013, 5_100_000]]
    assert best(lambda: marks.passages(prompt)) < .001
    assert len(marks.slices.at) < 210_000

@pytest.mark.parametrize("prompt", ["a"*1_000_000, ("a"*40 + "b")*25_000, ("a"*100 + "b")*10_000, "b".join("a"*k for k in range(40, 1400)),
    "".join(random.Random(1).choices("abc ", k=1_000_000))], ids=["same", "near", "nearer", "growing", "nothing"])
def test_hostile_prompts_are_given_up(prompt):
    marks = Marks(dict(context="a"*3_000_000))
    marks.passages("")
    assert best(lambda: marks.passages(prompt), 2) < 2
    assert best(lambda: standing([prompt], marks.contexts), 1) < 10

def test_lines_that_were_printed():
    text = "\n".join(prose(70, k) for k in range(5000))
    lines = text.split("\n")
    printed = "\n".join(f"{i}: {lines[i]!r}" for i in range(0, 5000, 100))
    found = standing([printed, "nothing of it at all, just words"], dict(context=text))
    assert {(a//71, b-a) for _,_,_,a,b in found} == {(i, len(lines[i])) for i in range(0, 5000, 100)}

def test_what_was_printed_once_was_read_in_one_place():
    text = "\n".join(["The same line, again and again, for ever."]*1000) + prose(1000)
    assert len(standing(["> The same line, again and again, for ever. <"], dict(context=text))) == 1

# ---- coverage

def scripted(*code): return ScriptedLM([f"```python\n{o}\n```" for o in code])
def ask(rlm, question, context): return rlm.completion(question, context).trajectory

def test_a_result_is_compared_as_its_run():
    r = RLM(ScriptedLM(["FINAL(1)"]*2)).completion("Q?", "text")
    assert str(r.trajectory.diff(r)) == str(r.trajectory.diff(r.trajectory))

def test_a_run_beside_its_context(tmp_path):
    text = prose(20_000)
    code = ["print(context[100:300])", "r = llm_query('Read: ' + context[5000:6000])\nprint(r)", f"FINAL('As it says: {text[200:260]}')"]
    rlm = RLM(scripted(*code), sub_model=ScriptedLM(["ok"]), dialect="fenced", shell="inprocess")
    t = rlm.completion("Q?", text, log=tmp_path/"run.jsonl").trajectory
    for t in (t, Trajectory.load(tmp_path/"run.jsonl")):
        c = t.coverage(text)
        assert c.count("printed") == 200 and 60 <= c.count("quoted") <= 62
        assert c.count("sent") == 1000
        assert c.count("read") + c.count("unread") == c.count("total") == 20_000
        assert "".join(text[o.start:o.end] for o in c.unread).count("x") == text.count("x") - sum(
            text[o.start:o.end].count("x") for o in c.reads if o.way != "quoted")
        assert text[200:260] in c.show(0, 400) and "printed" in c.show(0, 400)
    with pytest.raises(InputError, match="not the context"): t.coverage(text + "!")
    with pytest.raises(InputError, match="pass the one"): Trajectory.load(tmp_path/"run.jsonl").coverage()

def test_what_children_were_given_counts_in_the_roots_context(tmp_path):
    text = prose(80_000)
    root = scripted("a = rlm_query('look', context[10_000:30_000])", "r = llm_query('Read:' + context[50_000:60_000])", "FINAL('x')")
    child = scripted("print(context[100:300])\nr = llm_query('Read:' + context[5000:9000])", "FINAL('found')")
    rlm = RLM(root, sub_model=[child, ScriptedLM(["ok"])], limits=Limits(max_depth=2), dialect="fenced", shell="inprocess")
    t = rlm.completion("Q?", text, log=tmp_path/"run.jsonl").trajectory
    first,kid = t.runs
    for t in (t, Trajectory.load(tmp_path/"run.jsonl")):
        c = t.coverage(text)
        assert c.count("printed") >= 200 and [o[2:4] for o in c.reads if o.way == "sent"][:2] == [(10_000, 30_000), (15_000, 19_000)]
        failed = next(e for e in t.sub_calls if e.run == first.id)
        assert failed.error and failed.read and c.count("sent") == 20_000 # the script had one reply
    t.contexts = dict(context=text)
    assert t.of(kid.id).coverage().count("sent") == 4000

def made(*events, **kw):
    t = Trajectory()
    t.append(Run(query="q", **kw))
    for e in events:
        e.run = e.run or 1
        t.append(e)
    return t

def test_places_in_the_log_count_where_they_are_places():
    text = dict(a="x"*100, b=prose(500))
    reads = [["context", "a", 10, 20], ["context", "b", 490, 900], ["context", "c", 0, 5], ["nope", None, 0, 5], ["context", [], "1", None], 7,
        ["context", "a", -5, 5], ["context", "a", 30, 25]]
    t = made(Subcall(read=reads), Citation(context="context", source="a", start=50, end=60), Citation(quote="never", start=None),
        Subcall(read="rubbish"), Citation(context=["x"], source={}, start="0", end=None))
    assert {o[:4] for o in t.coverage(text).reads} == {("context", "a", 10, 20), ("context", "b", 490, 500), ("context", "a", 50, 60)}

def test_children_direct_runs_and_further_contexts():
    text,more = prose(4000, 1),prose(4000, 2)
    child = Run(query="look", depth=1)
    child.read = [["context", None, 1000, 2000]]
    t = made(child, Cell(run=2, step=1, output=text[1500:1700]), Subcall(run=2, read=[["context", None, 1800, 1900]]))
    assert {o: n for o,n in t.coverage(text).counts.items() if n} == dict(printed=200, sent=1000, read=1000, unread=3000, total=4000)
    assert t.coverage(text, extra=more).count("unread", "extra") == 4000
    t.contexts = dict(context=text)
    assert t.of(2).coverage().counts["sent"] == 100
    assert made(dialect="direct").coverage({"a": text, "b": more}).shares["read"] == 1

def test_nothing_to_read():
    for context in (7, [b"\x89PNG"], [], {}, ""):
        c = made().coverage(context)
        assert c.counts["total"] == 0 and "<svg" not in c._repr_html_() and "nan" not in str(c)

def test_hostile_names_stay_text():
    evil = '"><script>alert(1)</script>\x1b[31m\u202e'
    c = Coverage({"context": {evil: "x"*100, evil+"2": "y"*50}}, [Read("context", evil, 0, 9, "sent", 1)], evil)
    page = c._repr_html_()
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "\x1b" not in str(c.show(0, 20, evil))

def test_a_hundred_thousand_documents():
    docs = [prose(100 + k%200, k) for k in range(2000)]*50
    c = made(Cell(step=1, output="\n".join(docs[5:20]))).coverage(docs)
    assert c.count("printed") == sum(map(len, docs[5:20]))
    assert len(c._repr_html_()) < 100_000 and len(str(c)) < 1000

# ---- table

def test_the_columns_are_the_same_whatever_is_in_the_log():
    bad = made(Reply(step="x", model=7, seconds="long", time=float("nan")), Cell(step=1, output=None, seconds=float("inf"), time=1e300),
        Subcall(usage=Usage(prompt_tokens="1", cost="free"), cached="yes", time=None, reply=["x"]), Final(answer={"a": [1]}), Reply(step=2**80))
    for t in (bad, Trajectory(), made(End(status="done"))):
        df = t.to_df()
        assert [*map(str, df.dtypes)] == [*map(str, Trajectory().to_df().dtypes)] and len(df) == len(t)
    assert [*bad.to_df().kind] == ["run", "reply", "cell", "subcall", "final", "reply"]

def test_sums_are_those_of_the_trajectory():
    u = Usage(10, 3, calls=1, cost=.5)
    t = made(Reply(step=1, model="m", usage=u, seconds=2, time=1e9), Subcall(model="s", usage=u), Run(run=1, depth=1), Reply(run=4, model="s", usage=u))
    df = t.to_df()
    assert (df.prompt_tokens.sum(), df.cost.sum()) == (t.usage.prompt_tokens, t.usage.cost)
    assert [None if o is None else int(o) for o in df.depth] == [0, 0, 1, 1, 1]
    assert df.start[1].timestamp() == 1e9 - 2

@pytest.mark.parametrize("module,call,extra", [("pandas", "to_df", "tables"), ("matplotlib.figure", "plot", "plots")])
def test_what_is_not_installed_is_named(monkeypatch, module, call, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=re.escape(f"rlm[{extra}]")): getattr(made(Reply(step=1, seconds=1)), call)()

# ---- two runs

def run_of(*code): return ask(RLM(scripted(*code), sub_model=ScriptedLM(["yes"]*9), dialect="fenced", shell="inprocess"), "Q?", "text "*50)

def test_where_two_runs_part():
    a,b = run_of("print(1)", "print(2)", "FINAL(3)"), run_of("print(1)", "print(4)", "FINAL(3)")
    d = a.diff(b)
    assert (d.same, [s.number for s in d.parted]) == (1, [2, 2])
    assert "- print(2)" in str(d) and "+ print(4)" in str(d)
    assert a.diff(a).parted is None and "All 3 steps are the same" in str(a.diff(a))
    assert "the second goes on" in str(made().diff(b))
    assert "Neither" in str(made().diff(made()))

def test_a_fork_is_known():
    t = made()
    t.run.origin = dict(log="a.jsonl", run=1, step=2)
    assert "The second is a fork at step 2 of a.jsonl." in str(made().diff(t))

def test_long_and_hostile_steps():
    evil = "</pre><script>alert(1)</script>\x1b[31m\u202e"
    rnd = random.Random(1)
    def long(): return made(Reply(step=1, message=dict(content=evil)), Cell(parent=2, step=1, code=evil + "".join(rnd.choices("ab\n", k=200_000)), output=evil*999),
        Final(answer=evil))
    d = long().diff(long())
    assert best(lambda: str(d), 1) < 5
    page = d._repr_html_()
    assert "<script" not in page and "\u202e" not in page and "\x1b" not in page + str(d) and len(page) < 500_000

# ---- plots

def busy(n):
    t = made(model="m")
    t.append(Reply(run=1, step=1, model="$x_1$", seconds=3, time=1e9, usage=Usage(10, 5, calls=1, cost=.1)))
    for i in range(n): t.append(Subcall(run=1, index=i, model="_s", seconds=1 + i%7, time=1e9 + 10 + i%50, usage=Usage(100, 5, calls=1, cost=.01)))
    t.append(Cell(run=1, step=1, code="x", seconds=60, time=1e9 + 61))
    return t

@pytest.mark.parametrize("n", [0, 1, 500])
@pytest.mark.parametrize("kind", ["time", "tokens", "cost"])
def test_plots(n, kind):
    png = busy(n).plot(kind)._repr_png_()
    assert png[:4] == b"\x89PNG" and len(png) > 3000

def test_plots_of_odd_logs():
    nan,inf = float("nan"),float("inf")
    made(Reply(step=1, seconds=1, time=5e8), Reply(step=2, seconds=nan, time=nan), Reply(step=3, seconds="x", time=1), Cell(code="x", seconds=-5, time=5e8),
        Reply(step=4, seconds=1, time=3e9)).plot()._repr_png_()
    for t in (made(), made(Reply(step=1, seconds=inf))):
        with pytest.raises(InputError, match="nothing to draw"): t.plot()
    with pytest.raises(InputError, match="no plot 'pie'"): made().plot("pie")
