"The page of a run in a real browser: what a person would click, and what a hostile run must not be able to do."
import html.parser, os, re, shutil, time
from pathlib import Path

import pytest

import rlm.page
from rlm.events import Cell, Citation, End, Final, InputError, Reply, Resume, Run, Subcall, Summary, Usage
from rlm.page import Drawing
from rlm.trajectory import Trajectory

evil = ("</pre></details></style></script><script>pwned=1</script><img src=http://evil.example/x.png onerror='pwned=2'>"
    "<svg onload=pwned=3><iframe srcdoc='<script>parent.pwned=4</script>'>\" onmouseover=pwned=5 ' autofocus onfocus=pwned=6 "
    "[x](javascript:pwned=7) ![](http://evil.example/y.png) ```{=html} --> ]]> {{< include x >}} \u202etxt.exe \x1b[2J &lt;b&gt; \ud800 **<b>** `<i>`")

def reply(t, run, step, text, at, code=None, seconds=3.0, **kw):
    if code: text = f"{text}\n```repl\n{code}\n```"
    return t.append(Reply(run=run.id, step=step, model=run.model, message=dict(content=text), usage=Usage(2000, 100, cost=0.01, calls=1),
        seconds=seconds, time=at, **kw))

def recorded(text="", calls=3):
    "A run of four steps with sub-calls, a child, a failure, a picture and a quotation; `text` wherever a model or provider can put one"
    t = Trajectory()
    run = t.append(Run(query=f"{text}Which suppliers may end it?", model=f"{text}openai/gpt-5", sub_model="openai/gpt-5-mini", time=1000,
        context=dict(entries=2, chars=97_344, type=text), system=f"{text}You are", prompt=f"{text}The question", tools=[text], settings={text: text},
        origin=dict(log=text or "first.jsonl", run=1, step=2)))
    def cell(r, code, output, at, run=run, **kw):
        return t.append(Cell(run=run.id, parent=r.id, step=r.step, code=f"{text}{code}", output=f"{text}{output}", seconds=2, time=at, **kw))
    r = reply(t, run, 1, f"<think>{text}Hm.</think>{text}First the **names** of `it`.", 1003, f"{text}print(1)")
    cell(r, "print(1)", "acme\nzenit", 1005, displays=[dict(data={"image/png": text or "iVBORw0KGgo=", "text/html": text}),
        dict(data={"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg' onload='parent.pwned=8'><script>parent.pwned=9</script>{text}</svg>"})], kept=text)
    r,made = reply(t, run, 2, f"{text}Now each of them.", 1008, "found = llm_query_batched(prompts)"),t.new_id()
    for i in range(calls):
        t.append(Subcall(run=run.id, parent=made, batch=1, index=i, of=calls, model=f"{text}mini", prompt=f"{text}Call {i}: what of it?", prompt_chars=48_000,
            reply=f"{text}needle {i}.", usage=Usage(900, 20, cost=0.001, calls=1), seconds=1, time=1010 + i % 5, read=[["context", text or "acme", 0, 48_000], text]))
    t.append(Subcall(run=run.id, parent=made, batch=2, model="mini", prompt=text, error=f"{text}overloaded", seconds=1, time=1011))
    child = t.append(Run(run=run.id, parent=made, depth=1, query=f"{text}What changed?", model=f"{text}mini", time=1012))
    for i in (1, 2): reply(t, child, i, f"{text}Child step {i}.", 1012 + i, seconds=1)
    t.append(Final(run=child.id, answer=f"{text}Less."))
    t.append(End(run=child.id, seconds=2, time=1014))
    t.append(Cell(id=made, run=run.id, parent=r.id, step=2, code="found = llm_query_batched(prompts)", output=f"{text}\n[step 2/30 · $0.10]", seconds=7, time=1015))
    t.append(Summary(run=run.id, text=f"{text}So far."))
    r = reply(t, run, 3, f"{text}Once more.", 1018, "context['x']")
    cell(r, "context['x']", f"Traceback (most recent call last):\n{text}KeyError: 'x'", 1020, error=text or "KeyError")
    reply(t, run, 4, "That is it." if not text else text, 1023)
    t.append(Cell(run=run.id, step=4, output=f"{text}Say it properly."))
    t.append(Subcall(run=run.id, purpose="verify", prompt=f"{text}Is it so?", reply=f"{text}ACCEPT"))
    t.append(Citation(run=run.id, quote=f"{text}for cause", context=text or "context", source=text or "acme", start=10, end=19))
    t.append(Citation(run=run.id, quote=f"{text}nowhere"))
    t.append(Final(run=run.id, answer=f"{text}Only **Acme**.", how="fallback"))
    t.append(End(run=run.id, status="fallback", error=text or None, seconds=23, time=1023))
    return t

def to(events, name):
    "The trajectory of `events` as a page"
    return Trajectory(events=list(events)).to_html(name)

@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as p:
        path = path or p.chromium.executable_path
        if not Path(path).exists(): pytest.skip("Chromium is not installed")
        opened = p.chromium.launch(executable_path=path, args=["--no-sandbox"] * (os.geteuid() == 0))
        yield opened
        opened.close()

@pytest.fixture
def visit(browser, tmp_path):
    "Open a page: `visit(trajectory or text)`; in the end it must have asked for nothing, complained of nothing and run nothing of the model's"
    opened,heard = [],[]
    def visit(what, at="", width=1100, **kw):
        path = tmp_path/f"run{len(opened)}.html"
        path.write_text(what if isinstance(what, str) else what.to_html(), encoding="utf-8")
        context = browser.new_context(viewport=dict(width=width, height=800), **kw)
        page = context.new_page()
        page.on("request", lambda r: heard.append(r.url) if not r.url.startswith(("file://", "data:")) else None)
        page.on("console", lambda m: heard.append(m.text))
        page.on("pageerror", lambda e: heard.append(str(e)))
        page.on("dialog", lambda d: heard.append(d.message))
        page.goto(f"{path.as_uri()}{at}")
        opened.append(context)
        return page
    yield visit
    for context in opened:
        for page in context.pages: assert page.evaluate("window.pwned") is None
        context.close()
    assert heard == []

def opened(page, name): return page.evaluate("name => document.getElementById(name).open", name)
def at(page): return page.evaluate("document.activeElement.closest('details')?.id")
def shown(page, text):
    from playwright.sync_api import expect
    expect(page.get_by_text(text).first).to_be_visible()
def counted(page, text):
    from playwright.sync_api import expect
    expect(page.locator("#count")).to_have_text(text)

def test_what_a_person_clicks(visit):
    page = visit(recorded())
    for text in ("Which suppliers may end it?", "**Acme**", "never said that it was done", "branches off step 2", "Not in the context: 1 of 2"): shown(page, text)
    assert not opened(page, "step-2")
    page.click("#step-2 > summary")
    shown(page, "found = llm_query_batched(prompts)")
    page.click("#step-2 .calls > summary")
    page.click("#step-2 .calls .call summary:has-text('Call 1')")
    shown(page, "needle 1.")
    page.click("#step-2 .child > summary")
    shown(page, "Child step 2.")
    page.click(".time a:nth-of-type(3)")
    assert page.url.endswith("#step-3") and opened(page, "step-3")
    shown(page, "KeyError: 'x'")
    assert page.locator("#step-3 > summary mark").inner_text() == "KeyError"
    page.click("#fold")
    assert opened(page, "step-1") and opened(page, "step-4")
    assert page.locator("img").evaluate_all("o => o.map(i => i.src.slice(0, 15))") == ["data:image/png;", "data:image/svg+"]

def test_keys(visit):
    page = visit(recorded())
    for key,where in ("j", "step-1"), ("j", "step-2"), ("j", "step-3"), ("k", "step-2"):
        page.keyboard.press(key)
        assert at(page) == where
    page.keyboard.press("o")
    assert opened(page, "step-2")
    page.keyboard.press("Enter")
    assert not opened(page, "step-2")
    for _ in range(9): page.keyboard.press("j")
    assert at(page) == "step-4"
    page.keyboard.press("e")
    assert opened(page, "step-1") and opened(page, "step-3") and not page.evaluate("document.querySelector('.calls').open")
    page.keyboard.press("e")
    assert not opened(page, "step-1")
    page.keyboard.press("E")
    assert page.evaluate("[...document.querySelectorAll('main details')].every(o => o.open)")
    page.keyboard.press("?")
    shown(page, "next and previous step")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('dialog').open")

def test_search_opens_what_it_finds(visit):
    page = visit(recorded())
    page.keyboard.press("/")
    page.keyboard.type("NEEDLE")
    counted(page, "1 of 3")
    shown(page, "needle 0.")
    page.keyboard.press("Enter")
    counted(page, "2 of 3")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    counted(page, "3 of 3")
    shown(page, "needle 2.")
    page.keyboard.press("N")
    counted(page, "2 of 3")
    page.fill("#search", "xyzzy")
    counted(page, "nothing")
    page.fill("#search", "")
    counted(page, "")

def test_links_open_what_they_point_to(visit):
    page = visit(recorded(), at="#step-3")
    shown(page, "KeyError: 'x'")
    page.wait_for_timeout(50)
    assert opened(page, "step-3") and at(page) == "step-3"
    child = next(o for o in page.evaluate("[...document.querySelectorAll('.child .step')].map(o => o.id)") if o.endswith("step-2"))
    page.evaluate("to => location.hash = to", child)
    shown(page, "Child step 2.")
    assert opened(page, "step-2") and opened(page, child)
    for o in ("#nothing", "#%zz", "#"): visit(recorded(), at=o)

def test_light_and_dark(visit):
    t,ground = recorded(),"getComputedStyle(document.documentElement).backgroundColor"
    light,dark = visit(t, color_scheme="light"),visit(t, color_scheme="dark")
    a,b = light.evaluate(ground),dark.evaluate(ground)
    assert a != b
    light.click("#light")
    assert light.evaluate(ground) == a
    light.keyboard.press("t")
    assert light.evaluate(ground) == b
    light.reload()
    assert light.evaluate(ground) == b
    light.click("#light")
    assert light.evaluate(ground) == a

contrast = """() => {
  const g = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const seen = c => { g.clearRect(0, 0, 1, 1); g.fillStyle = getComputedStyle(document.documentElement).backgroundColor; g.fillRect(0, 0, 1, 1);
    g.fillStyle = c; g.fillRect(0, 0, 1, 1); return [...g.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const lum = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126*r + .7152*g + .0722*b; };
  const ground = lum(seen('transparent')), worst = {};
  for (const o of document.querySelectorAll('main *:not(svg, i, img)')) if (o.innerText?.trim()) {
    const text = lum(seen(getComputedStyle(o).color)), c = (Math.max(text, ground) + .05) / (Math.min(text, ground) + .05), k = o.localName + '.' + o.className;
    worst[k] = Math.min(worst[k] ?? 99, c);
  }
  return Object.entries(worst).filter(([k, c]) => c < 4.5);
}"""

@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(visit, scheme):
    page = visit(recorded(), color_scheme=scheme)
    page.keyboard.press("E")
    assert page.evaluate(contrast) == []

def test_copy(visit):
    page = visit(recorded(), permissions=["clipboard-read", "clipboard-write"])
    page.hover("header .answer")
    page.click("header .answer .copy")
    shown(page, "copied")
    assert page.evaluate("navigator.clipboard.readText()") == "Only **Acme**."

def test_without_script(visit):
    page = visit(recorded(), java_script_enabled=False)
    shown(page, "**Acme**")
    assert not page.locator("nav").is_visible()
    page.click("#step-2 > summary")
    shown(page, "found = llm_query_batched(prompts)")

@pytest.mark.parametrize("text", ["", evil, "x" * 500 + " "])
def test_a_narrow_screen_needs_no_scrolling_sideways(visit, text):
    page = visit(recorded(text), width=360)
    page.keyboard.press("E")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

def test_paper(visit):
    page = visit(recorded())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown(page, "found = llm_query_batched(prompts)")

def test_nothing_a_model_writes_acts(visit):
    page = visit(recorded(evil))
    page.keyboard.press("E")
    page.keyboard.press("/")
    page.keyboard.type("<script>")
    shown(page, "</pre></details>")
    for o in page.locator("main pre").all()[:5]: o.hover()
    page.wait_for_timeout(100)

def test_nothing_acts_in_a_notebook_either(visit):
    "There is no policy to fall back on"
    t = recorded(evil)
    parts = [t._repr_html_(), *(o._repr_html_() for o in t.steps), *(e._repr_html_() or "" for e in t)]
    assert "&lt;/pre&gt;" in t.run._repr_html_()
    page = visit(f"<!DOCTYPE html><meta charset=utf-8>{''.join(parts)}")
    page.evaluate("for (const o of document.querySelectorAll('details')) o.open = true")
    page.wait_for_timeout(100)

def test_the_browser_refuses_what_gets_past_the_escaping(browser, tmp_path):
    "The second line of defence, without the first"
    (tmp_path/"page.html").write_text(rlm.page.document("Test", "<p onclick=pwned=1>text</p><script>pwned=2</script><img src=x onerror=pwned=3>"
        "<img src=http://127.0.0.1:9/x.png><iframe src='data:text/html,x'></iframe><a href='javascript:pwned=4'>link</a><main></main><nav></nav>"))
    asked,page = [],browser.new_page()
    page.on("requestfinished", lambda r: asked.append(r.url))
    page.on("response", lambda r: asked.append(r.url))
    page.goto((tmp_path/"page.html").as_uri())
    page.click("p")
    page.click("a")
    assert page.evaluate("window.pwned") is None and {o.partition(":")[0] for o in asked} <= {"file"}
    page.close()

class Seen(html.parser.HTMLParser):
    "The elements and attributes of a page, as a set, and whether they are closed"
    def __init__(self, text):
        super().__init__()
        self.seen,self.open = set(),[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.seen |= {tag, *(f"{tag} {k}" for k,_ in attrs)}
        if tag not in ("meta", "img", "input", "br"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag

def test_hostile_text_adds_nothing_to_a_page():
    plain,hostile = recorded(),recorded(evil)
    for make in (Trajectory.to_html, Trajectory._repr_html_):
        a,b = Seen(make(plain)),Seen(make(hostile))
        assert b.seen <= a.seen and not a.open and not b.open
        assert not {"script src", "a target", "iframe", "svg", "link"} & b.seen and not any(" on" in o for o in b.seen)
    for page in (hostile.to_html(), hostile._repr_html_()): assert "`" not in re.sub("<script>.*?</script>", "", page, flags=re.S) and "\u202e" not in page

def test_hostile_text_in_odd_places_adds_nothing_either():
    "What the log of a program that is not ours may have in fields where ours has a word or a number"
    def odd(text):
        t = Trajectory()
        for i in (1, 2):
            run = t.append(Run(query=f"{text}?", time=1000*i))
            r = reply(t, run, f"{text}{i}", "", 1003*i, f"{text}(1)")
            t.append(Cell(run=run.id, parent=r.id, code=f"{text}(1)", output=text, seconds=1, time=1004*i))
            t.append(Subcall(run=run.id, purpose=f"{text}other", prompt="p", reply="r", model=text))
            t.append(Resume(run=run.id, after=r.id))
            t.append(Final(run=run.id, answer={text: [text]}))
            t.append(End(run=run.id, status="limit", limit=f"{text}max_steps"))
        return t
    for make in (Trajectory.to_html, Trajectory._repr_html_, lambda t: Drawing(colours=0).outline(t)):
        a,b = Seen(make(odd("x"))),Seen(make(odd(evil)))
        assert b.seen <= a.seen | {"code", "b"} and not a.open and not b.open

def test_ten_thousand_events(visit):
    t = recorded(calls=9985)
    t0 = time.perf_counter()
    page = t.to_html()
    made,size = time.perf_counter() - t0,len(page.encode())
    assert len(t) >= 10_000 and made < 10 and size < 15e6
    assert len(t._repr_html_()) < 300_000
    times = []
    for _ in range(3):
        t0 = time.perf_counter()
        o = visit(page)
        o.mouse.wheel(0, 2000)
        o.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        times.append(time.perf_counter() - t0)
    assert min(times) < 4 # 1.2 seconds on two cores with nothing else to do
    o.fill("#search", "needle 9876.")
    counted(o, "1 of 1")
    shown(o, "needle 9876.")

def test_long_texts_of_a_long_run_are_shortened():
    t = recorded(calls=9985)
    for e in t.sub_calls: e.reply = "a few <words> & 漢字, " * 100
    page = t.to_html()
    assert 5e6 < len(page.encode()) < 15e6 and page.count("characters more …") >= 9985

def test_ends_of_all_kinds(tmp_path):
    events = list(recorded())
    assert "Unfinished" in to(events[:-2], None)
    made = next(i for i,e in enumerate(events) if isinstance(e, Cell) and e.step == 2)
    broken = to(events[:made], None)
    assert "a cell that did not come to its end" in broken and "needle 2" in broken and "What changed?" in broken
    t = Trajectory(events=events[:made])
    t.torn = True
    assert "The log ends within a line" in t.to_html()
    with pytest.raises(InputError, match="its log is empty"): Trajectory().to_html()
    with pytest.raises(InputError, match="cannot be written"): recorded().to_html(tmp_path/"no"/"such.html")
    assert recorded().to_html(tmp_path/"run.html") == tmp_path/"run.html" and (tmp_path/"run.html").read_text(encoding="utf-8").endswith("</html>\n")

def test_what_was_left_behind_is_there_but_set_apart():
    t = recorded()
    third = t.replies[2]
    t.append(Resume(run=1, after=t.cells[1].id, time=90_000))
    reply(t, t.run, 3, "Another way.", 90_003)
    t.append(Final(run=1, answer="Both."))
    t.append(End(run=1, time=90_004, seconds=26))
    page = t.to_html()
    assert page.count("left behind") == 2 and "resumed after step 2" in page and "taken up again once" in page
    assert "id='step-3'" in page and "id='step-3.2'" in page and page.count("href='#step-3.2'") == 1
    assert "26 s in all" in page # not a day
    assert third.step == 3 and "Both." in page[:page.index("id='step-1'")]

def test_several_questions():
    t = Trajectory()
    for i,(q,a) in enumerate([("First?", "One."), ("Second?", "Two.")]):
        run = t.append(Run(query=q, time=1000 + 5000*i))
        reply(t, run, 1, f"Thinking of {q}", 1003 + 5000*i)
        t.append(Final(run=run.id, answer=a))
        t.append(End(run=run.id, seconds=3, time=1003 + 5000*i))
    page = t.to_html()
    assert "<h1>Second?</h1>" in page and "after 1 other question" in page and "6.0 s in all" in page
    order = [page.index(o) for o in ("<h1>Second?", "turn>First?", "Thinking of First?", "One.", "turn>Second?", "Thinking of Second?")]
    assert order == sorted(order)

def test_code_of_a_large_run_is_left_plain():
    t,d = recorded(),Drawing(colours=10)
    assert "class=k" not in d.outline(t).replace('"', "") and "class=code" in d.outline(t)

def test_what_was_read(visit, tmp_path):
    from rlm.model import RLM
    from rlm.offline import ScriptedLM
    context = {f"{evil}{i}": f"{evil}{i} and what it says. " * 20 for i in range(3)}
    root = ScriptedLM(["```repl\nprint([*context.values()][0])\nFINAL(cite('and what it says')['found'])\n```"])
    r = RLM(root).completion("What does it say?", context, log=tmp_path/"run.jsonl")
    assert r.answer is True
    page = visit(r.trajectory)
    shown(page, "What was read")
    wide = "document.querySelector('.rlm-coverage svg').getBoundingClientRect().width / document.querySelector('main').clientWidth"
    assert page.evaluate(wide) > .5 and visit(r.trajectory, width=400).evaluate(wide) > .5
    t = Trajectory.load(tmp_path/"run.jsonl")
    assert "What was read" not in t.to_html() and "What was read" in t.to_html(context=context)
    with pytest.raises(InputError): t.to_html(context="another text")
