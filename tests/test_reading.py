"Reading a text in parts: offsets that are true, pieces that are complete, questions that cannot break anything."
import json, pickle, re, sqlite3, subprocess, sys, threading, time, unicodedata
from collections import namedtuple
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

from rlm import reading
from rlm.events import InputError
from rlm.reading import *

settings.register_profile("reading", deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.load_profile("reading")

letters = st.text(st.sampled_from("ab AB.\n-—\u00ad\"“”'ﬁßİé\u0301\u0345Σς違約ก🎉\ud800\0{}[],:#1\t\f"), max_size=60)
anything = st.one_of(letters, st.text(max_size=60))
folders = st.one_of(anything, st.lists(anything, max_size=4), st.dictionaries(st.text(max_size=3), anything, max_size=4))

def true_place(o, text, shown=None):
    "Does `o` point at what it says?"
    s = part_at(text, o.source)
    assert 0 <= o.start <= o.end <= len(s)
    assert shown is None or s[o.start:o.end] == shown

# Parts

@given(folders)
def test_parts_come_back_by_their_source(text):
    for source,s in parts_of(text): assert part_at(text, source) == s

def test_records_documents_and_tables():
    Doc = namedtuple("Doc", "page_content metadata")
    docs = [dict(text="one", author="x"), dict(a=[1, 2]), Doc("three", {}), 4, None, {"content": "five"}]
    assert [s for _,s in parts_of(docs)] == ["one", '{"a": [1, 2]}', "three", "4", "null", "five"]
    assert list(parts_of(Doc("three", {}))) == [(None, "three")]
    loop = []
    loop.append(loop)
    assert part_at([loop], 0) == "[[...]]"
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(dict(name=["Ann", "Bob"], born=[1, 2]), index=["x", "y"])
    r = find("bob", table)
    assert len(r) == 1 and r[0].source == 1 and json.loads(part_at(table, 1)) == dict(name="Bob", born=2)
    assert search("bob", table)[0].source == 1

@pytest.mark.parametrize("bad", [None, 3, b"bytes", 1.5, object()])
def test_what_is_no_text_is_refused(bad):
    for f in (lambda: find("x", bad), lambda: page(bad), lambda: chunk(bad), lambda: search("x", bad), lambda: locate("x", bad)):
        with pytest.raises(InputError, match="text"): f()

# Find, page, extract_after

@given(folders, st.one_of(anything, st.sampled_from(["a|b", "[a-z]+", "(", "*", "a*", "^", r"(?i)A", r"\b"])), st.integers(0, 5), st.integers(0, 9))
def test_find_is_finditer_with_places(text, pattern, k, around):
    r = find(pattern, text, 0, k, around)
    try: want = re.compile(pattern)
    except re.error: want = re.compile(re.escape(pattern))
    expected = [(source, *m.span()) for source,s in parts_of(text) for m in want.finditer(s)]
    assert [o[:3] for o in r] == expected[:k] and r.more == (len(expected) > k)
    assert len(find(pattern, text, 0, None)) == len(expected)
    for o in r:
        true_place(o, text, o.text)
        assert o.text in o.around and len(o.around) <= len(o.text) + 2*around and "\n" not in repr(o)

@given(folders, st.integers(1, 20))
def test_pages_cover_everything(text, size):
    parts = list(parts_of(text))
    total = sum(max(1, -(-len(s)//size)) for _,s in parts)
    pages = [page(text, n, size) for n in range(1, total+1)]
    assert "".join(pages) == "".join(s for _,s in parts)
    for o in pages: true_place(o, text, str(o))
    for n in (0, total+1, -total-1):
        with pytest.raises(InputError): page(text, n, size)
    if total: assert page(text, -1, size) == pages[-1] and page(text, -total, size) == pages[0]

@given(folders, anything, st.one_of(st.none(), anything), st.integers(0, 30))
def test_extract_after(text, marker, until, n):
    r = extract_after(marker, text, until, n)
    found = [(source, s) for source,s in parts_of(text) if marker in s]
    assert r is not None or not found
    if r is not None: true_place(r, text, str(r))
    if found:
        source,s = found[0]
        rest = s[s.index(marker)+len(marker):][:n]
        assert (r.source, str(r)) == (source, rest.split(until)[0] if until else rest)

# Chunks

structured = st.one_of(anything, st.lists(st.sampled_from(["# A\n", "## B # \n", "```\n", "Article IV\n", "1.2 Title\n", "x\n===\n", "<h1>T</h1>\n",
    "[00:01:02] hi\n", "Bob (10:31): x\n", "2026-01-02 a\n", '{"a": [1, {"b": "}"}]}\n', '["x", ', '"', "\\", "}", "Document 2\n", "=== file a\n", "text. "]),
    max_size=12).map("".join))

@given(structured, st.sampled_from(WAYS), st.integers(1, 40), st.integers(0, 20))
@example('{"a": "\\', "keys", 5, 0)
def test_chunks_cover_the_text(text, by, size, overlap):
    overlap = min(overlap, size//2)
    for source,folder in ((None, text), (0, [text]), ("k", {"k": text})):
        pieces = chunk(folder, by, size, overlap)
        assert "".join(o[min(overlap, o.start) if i else 0:] for i,o in enumerate(pieces)) == text or overlap
        at = 0
        for o in pieces:
            true_place(o, folder, str(o))
            assert o.source == source and 0 < len(o) <= size and o.start <= at < o.end
            assert overlap == 0 or at == 0 or at - o.start == min(at, overlap)
            at = o.end
        assert at == len(text)

@given(st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=8)), lambda o: st.one_of(st.lists(o, max_size=5),
    st.dictionaries(st.text(max_size=4), o, max_size=5)), max_leaves=30), st.sampled_from([None, 2]))
def test_keys_begin_values(value, indent):
    if not isinstance(value, (list, dict)): value = [value]
    text = json.dumps(value, indent=indent)
    for start,depth,path in keys_of(text):
        assert depth == len(path) <= 5
        got = value
        for key in path[:-1]: got = got[key if isinstance(key, int) else json.loads(f'"{key}"')]
        last = path[-1] if path else None
        if isinstance(last, int):
            if got: assert json.JSONDecoder().raw_decode(text, start)[0] == got[last]
        elif path: assert json.JSONDecoder().raw_decode(text, start)[0] == json.loads(f'"{last}"') in got

def test_jsonl_is_cut_between_records():
    text = "".join(json.dumps(dict(id=i, name="Ann, {Bob}", more=[1, {"x": "]"}])) + "\n" for i in range(200))
    pieces = chunk(text, "keys", size=500)
    for o in pieces:
        for line in o.splitlines(): json.loads(line)
    assert max(map(len, pieces)) <= 500 and min(map(len, pieces[:-1])) > 400 and pieces[1].title.startswith("$[")

@pytest.mark.parametrize("text,titles", [
    ("intro\n# A\nx\n## B\ny\n# C #\n", ["", "A", "A > B", "C"]),
    ("<h1>A</h1>x<h2 class='t'><b>B</b></h2>", ["A", "A > B"]),
    ("\\section{A}\nx\n\\subsection*{B}\n", ["A", "A > B"]),
    ("A\n=====\nx\n\nB\n-----\ny", ["A", "A > B"]),
    ("ARTICLE I Names\nx\nArticle II Terms\n", ["ARTICLE I Names", "Article II Terms"]),
    ("1. A\nx\n1.1 B\ny\n2. C\n", ["1. A", "1. A > 1.1 B", "2. C"])])
def test_headers(text, titles): assert [o.title for o in chunk(text, "headers")] == titles

def test_logs_and_subtitles():
    srt = "".join(f"{i}\n00:00:{i:02},000 --> 00:00:{i+1:02},000\nline\n\n" for i in range(1, 9))
    assert all(re.match(r"\d\n00:", o) for o in chunk(srt, "times", size=90))
    assert chunk("2026-01-02T10:00:01Z a\n2026-01-02T10:00:02Z b", "times", size=30)[1].title == "2026-01-02T10:00:02"

@pytest.mark.parametrize("kw", [dict(by="x"), dict(by=None), dict(size=0), dict(overlap=-1), dict(size=10, overlap=6)])
def test_chunk_refuses(kw):
    with pytest.raises(InputError): chunk("text", **kw)

def test_chunks_are_text():
    o = chunk({"a": "one two"}, size=4)[0]
    back = pickle.loads(pickle.dumps(o))
    assert back == "one " == f"{o}" and vars(back) == vars(o) == dict(source="a", start=0, end=4, title="")
    assert json.dumps(o) == '"one "' and isinstance(o, str)

@pytest.mark.parametrize("text", ["[" * 300_000, '"' * 300_000, '["' + '\\"' * 150_000, "{" + '"a":{' * 60_000, "#" * 300_000, "\n" * 300_000, "\n# " * 100_000,
    "\n=" * 150_000, "1:" * 150_000, "<h1" * 100_000, "<h1>" * 75_000, "\n" + " " * 300_000, "a" * 300_000, "\nPage" * 60_000, "1.1." * 75_000, "\n" + "1\n" * 150_000])
@pytest.mark.parametrize("by", WAYS)
def test_hostile_texts_are_cut_in_time(text, by):
    t = time.perf_counter()
    assert "".join(chunk(text, by)) == text
    assert time.perf_counter() - t < 5

# Search

@given(folders, st.one_of(anything, st.sampled_from(['"', "AND", "a OR", "NOT", "NEAR(a b, 2)", "a*", "^a", "words:a", "{a b}: c", "-a", "((", "';--", "違約", "\0", "\ud800"])))
def test_search_never_raises_and_points_at_what_it_shows(text, query):
    ix = Index(text, size=20)
    r = ix.search(query, k=3)
    assert len(r) <= 3
    for o in r:
        true_place(o, text, o.text)
        assert len(o.text) <= 20
    ix.close()

@given(st.lists(st.sampled_from("alpha beta gamma delta 違約金 สัญญา naïve C3PO".split()), min_size=1, max_size=40), st.data())
def test_every_word_is_found(words, data):
    word = data.draw(st.sampled_from(words))
    assert word in search(word, " ".join(words))[0].text

def test_the_best_passage_comes_first():
    texts = {f"{i}.md": "The supplier delivers on time and the parties agree." for i in range(50)}
    texts |= {"late.md": "The supplier pays penalties for a late delivery.", "emoji.md": "we had a 🎉 party", "cjk.md": "東京の違約金は五パーセントです"}
    ix = Index(texts)
    assert ix.search("what is the penalty for delivering late?")[0].source == "late.md"
    assert ix.search("🎉")[0].source == "emoji.md" and ix.search("違約金は")[0].source == "cjk.md"
    assert [o[:4] for o in ix.search("elivers o", k=1)] == [("0.md", 0, 52, 0)]
    r = ix.search("supplier", k=20)
    assert len(r) == 20 and [o.score for o in r] == sorted((o.score for o in r), reverse=True)

@pytest.mark.parametrize("kw", [dict(query=3), dict(query=None), dict(query="a", k=0), dict(query="a", k="5"), dict(query="a", k=10**9)])
def test_search_refuses(kw):
    with pytest.raises(InputError): Index("a b").search(**kw)

def test_one_index_for_many_threads():
    ix,out = Index([f"word{i} common" for i in range(300)]), {}
    def ask(i): out[i] = [o.source for o in ix.search(f"word{i}")]
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out == {i: [i] for i in range(16)} and len(ix.starts) == 300

def test_closing_stops_a_build():
    class Slow(list):
        def __iter__(self):
            while True:
                started.set()
                yield "some text"
    started,ix,out = threading.Event(), Index(Slow()), []
    def build():
        try: ix.build()
        except InputError as e: out.append(str(e))
    t = threading.Thread(target=build)
    t.start()
    started.wait(10)
    ix.close()
    t.join(10)
    assert not t.is_alive() and out == ["the index is closed"]

def test_a_build_that_fails_can_be_tried_again():
    class Once(dict):
        fails = True
        def items(self):
            yield "a", "one"
            if self.fails: raise OSError("gone")
            yield "b", "two"
    text = Once(a="one", b="two")
    ix = Index(text)
    with pytest.raises(OSError): ix.build()
    text.fails = False
    assert [o.source for o in ix.search("two")] == ["b"] and ix.sources == ["a", "b"]

# Quotes

@given(folders, anything)
def test_locate_agrees_with_find(text, quote):
    r = locate(quote, text)
    first = next(((source, s.find(quote)) for source,s in parts_of(text) if quote in s), None)
    if not quote.strip(): assert r is None
    elif first: assert (r.source, r.start) == first and r.exact and r.end - r.start == len(quote)
    elif r is not None:
        true_place(r, text)
        assert not r.exact and fold(part_at(text, r.source)[r.start:r.end]) == fold(quote) != ""

@given(anything, anything, anything)
def test_fold_is_made_of_characters(a, b, c):
    assert fold(a+b) == fold(a)+fold(b) == "".join(map(fold, a+b))
    assert fold(a.upper().lower()) == fold(a.upper().lower().replace(" ", "\n "))
    assert fold(unicodedata.normalize("NFC", a)) == fold(unicodedata.normalize("NFD", a))

@given(st.lists(st.sampled_from(["Straße", "ﬁnal", "“yes”", "re-do", "naïve", "n\u0308aive", "A—B", "it’s", "５", "違約金"]), min_size=4, max_size=12), st.integers(0, 40), st.integers(1, 30))
def test_a_quote_is_found_however_it_is_copied(words, before, piece):
    text = "x" * before + " ".join(words) + " tail"
    copy = "\n  ".join(words).upper().replace("“", '"').replace("”", '"').replace("’", "'").replace("—", " - ")
    copy = unicodedata.normalize("NFKC", copy)
    held,reading._piece = reading._piece, piece
    try: r = locate(copy, {"a": text})
    finally: reading._piece = held
    assert r.source == "a" and fold(text[r.start:r.end]) == fold(copy)
    assert text[r.start:r.end].strip("“”") == " ".join(words).strip("“”")

def test_short_quotes_keep_their_words_apart():
    assert locate("now here", "it is nowhere") is None and locate("5-10", "in 510 days") is None
    assert locate("Now  Here", "it is now\nhere")[1:3] == (6, 14)
    assert locate("reflow", "the re-\nflow")[1:3] == (4, 12)
    assert locate("CAFE", "un cafe\u0301 noir")[1:3] == (3, 8)

@pytest.mark.parametrize("quote", ["", " ", "\n", '"', "—", "\u0301"])
def test_quotes_of_nothing(quote): assert locate(quote, "some text") is None

@pytest.mark.parametrize("quote", [None, 3, b"x", "x"*10_001])
def test_quotes_that_are_refused(quote):
    with pytest.raises(InputError): locate(quote, "some text")

@pytest.mark.parametrize("quote,text", [("a b", "ab" * 1_000_000), ("A" * 9_999 + "b", "a" * 2_000_000), ("n o w h e r e", "nowhere " * 200_000), ("e\u0301 b", "\u0301" * 1_000_000),
    ("a b", "a" + " " * 2_000_000 + "\u00adb"), ("b" + "a" * 9_000, "ab" * 1_000_000), ("b\u0301 a", "\ufdfa" * 200_000)])
def test_hostile_quotes_take_linear_time(quote, text):
    t = time.perf_counter()
    locate(quote, text)
    assert time.perf_counter() - t < 8

@given(folders, anything)
def test_show_source(text, quote):
    if (place := locate(quote, text)) is None: return
    shown = show_source(text, place, 5)
    s = part_at(text, place.source)
    assert f"»{s[place.start:place.end]}«" in shown and f"line {s[:place.start].count(chr(10))+1:,}" in shown

# The shell

def test_in_the_shell():
    sh = SimpleNamespace(user_ns=dict(context="one two three"))
    f = reading_functions(lambda: sh)
    assert list(f) == ["find", "page", "chunk", "extract_after"] and all(o.__name__ == k and len(o.__doc__) < 110 for k,o in f.items())
    assert f["find"]("TWO")[0].start == 4 and f["find"]("x", "xx")[0].start == 0
    assert f["page"](2, size=4) == "two " == f["page"]("one two", 2, 4)[:3] + " "
    assert f["chunk"](size=4)[0] == "one " and f["extract_after"]("two ") == "three"
    del sh.user_ns["context"]
    with pytest.raises(InputError): f["find"]("x")

def test_it_needs_only_what_a_worker_has():
    code = ("import sys\nimport rlm.reading as r\nassert r.find('b', 'abc')[0].start == 1\n"
            "bad = {'fastcore', 'pandas', 'pydantic', 'litellm', 'sqlite3', 'peewee'} & set(sys.modules)\nassert not bad, bad\n"
            "sys.modules['rlm.events'] = None\ntry: r.find('x', None)\nexcept ValueError as e: assert 'NoneType' in str(e)")
    subprocess.run([sys.executable, "-c", code], check=True)
