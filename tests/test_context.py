"Reading contexts exactly, and describing any object without harm."
import asyncio, collections, datetime, decimal, enum, io, json, mmap, os, subprocess, sys, threading, tracemalloc, uuid, warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import put
from rlm import context as ctx, files
from rlm.context import *
from rlm.events import ContextError, InputError, RLMError
from rlm.prompts import describe_context

EVERY_CHARACTER = "".join(map(chr, [*range(1, 0xd800), *range(0xe000, 0x110000)]))
needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")

@pytest.fixture(params=["read", "mapped"])
def way(request, monkeypatch):
    "Both ways a file is read"
    if request.param == "mapped": monkeypatch.setattr(files, "MAP_FROM", 1)
    return request.param

def fails(source, *words, **kw):
    with pytest.raises(ContextError) as e: load_context(source, **kw)
    text = str(e.value)
    for o in words: assert o in text, text
    assert "\n" not in text and len(text) < 500 and isinstance(e.value, (InputError, RLMError, ValueError))

# Text

def test_every_character_comes_through(tmp_path, way):
    put(tmp_path, {"all.txt": "a" + EVERY_CHARACTER})
    assert load_context(tmp_path/"all.txt") == "a" + EVERY_CHARACTER

@pytest.mark.parametrize("text", ["a\r\nb\rc\n\n", "\x0b\x0c\x1c\x85\u2028\u2029", "", "\ufeff inside \ufeff"[1:], "e\u0301"])
def test_nothing_is_normalised(tmp_path, way, text):
    put(tmp_path, {"a.txt": text})
    assert load_context(tmp_path/"a.txt") == text

def test_byte_order_marks(tmp_path, way):
    put(tmp_path, {"8.txt": b"\xef\xbb\xbfa,b\r\n", "16.txt": "añb".encode("utf-16"), "32.txt": "añb".encode("utf-32"), "bad.txt": b"\xef\xbb\xbfabc\xff"})
    assert load_context(tmp_path/"8.txt") == load_context(tmp_path/"8.txt", "utf-8-sig") == "a,b\r\n"
    assert load_context(tmp_path/"8.txt", "latin-1")[:3] == "ï»¿"
    fails(tmp_path/"16.txt", "16.txt", 'encoding="utf-16"')
    fails(tmp_path/"32.txt", "32.txt", 'encoding="utf-32"')
    assert load_context(tmp_path/"16.txt", "utf-16") == load_context(tmp_path/"32.txt", "utf-32") == "añb"
    for enc in ("utf-8", "utf-8-sig"): fails(tmp_path/"bad.txt", "byte 0xff at offset 6 is not utf-8", encoding=enc)

@pytest.mark.parametrize("data,words", [(b"caf\xe9", ("0xe9", "offset 3")), (b"a"*70_000 + b"\x80b", ("0x80", "offset 70,000")), (b"ok\xe2\x82", ("0xe2", "offset 2")),
    (b"\xed\xa0\x80", ("0xed", "offset 0")), (b"abc\0def", ("0x00", "offset 3"))])
def test_the_byte_is_named(tmp_path, way, data, words):
    put(tmp_path, {"some.txt": data})
    fails(tmp_path/"some.txt", "some.txt", *words)
    for o in (data, io.BytesIO(data)): fails(o, *words, encoding="utf-8")

def test_a_failed_read_keeps_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAP_FROM", 1)
    put(tmp_path, {"big.txt": b"x"*3_000_000 + b"\xff"})
    with pytest.raises(ContextError) as e: load_context(tmp_path/"big.txt")
    assert e.value.__context__ is None or not isinstance(e.value.__context__, UnicodeError)

def test_encodings(tmp_path, way):
    put(tmp_path, {"a.txt": b"caf\xe9", "odd.txt": b"\0a\0"})
    assert load_context(tmp_path/"a.txt", "cp1252") == load_context(b"caf\xe9", "latin-1") == "café"
    fails(tmp_path/"a.txt", "utf9", encoding="utf9")
    fails(tmp_path/"a.txt", encoding="rot13")
    fails(tmp_path/"a.txt", "0xe9", "ascii", encoding="ascii")
    fails(tmp_path/"odd.txt", "utf-16", encoding="utf-16-be")

@pytest.mark.parametrize("data", [b"", b"plain", "é\r\n".encode(), b"\xef\xbb\xbfmarked"])
def test_bytes_that_are_text(data):
    for o in (data, bytearray(data), io.BytesIO(data)): assert load_context(o) == data.decode("utf-8-sig")

@pytest.mark.parametrize("data", [b"abc\0def", b"%PDF-1.7\nabc", b"GIF89a", "x".encode("utf-16"), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_bytes_that_are_no_text_stay_bytes(data):
    with warnings.catch_warnings(action="error"): assert load_context(data) is data and load_context(io.BytesIO(data)) == data

def test_bytes_in_another_encoding_stay_bytes_with_a_warning():
    with pytest.warns(ContextWarning, match="kept as bytes: byte 0xe9 at offset 3 is not utf-8"): assert load_context(b"caf\xe9") == b"caf\xe9"
    with pytest.warns(ContextWarning) as told: load_context(io.BytesIO(b"caf\xe9"))
    assert told[0].filename == __file__

# Paths

def test_a_string_is_never_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path, {"a.txt": "secret"}))
    for o in ("a.txt", "./a.txt", str(tmp_path/"a.txt"), "*.txt", "~", "/etc/hostname", "https://example.com/a.txt", "file:///etc/hostname", ["a.txt"]): assert load_context(o) is o

def test_errors_of_the_file_system(tmp_path):
    os.symlink("self", tmp_path/"self")
    os.symlink("gone", tmp_path/"dangling")
    fails(tmp_path/"missing.txt", "missing.txt", "no such file")
    fails(tmp_path/"dangling", "dangling", "no such file")
    fails(tmp_path/"self", "self", "symbolic links")
    fails(tmp_path/"none*.txt", "no file matches")
    for o in ("json", "jsonl", "csv", "parquet", "pdf", "xlsx"):
        fails(tmp_path/f"gone.{o}", f"gone.{o}: no such file")
        (tmp_path/f"folder.{o}").mkdir()
        fails(tmp_path/f"folder.{o}", "no file in this folder")
    fails(Path("some text\n"*1000), "…")
    fails(Path("a\0b"), "null")
    fails(put(tmp_path/"file", {"x": "1"})/"x"/"y", "not a directory")

@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_permissions(tmp_path):
    put(tmp_path, {"d/a.txt": "a", "d/sub/b.txt": "b"})
    (tmp_path/"d/a.txt").chmod(0)
    fails(tmp_path/"d/a.txt", "a.txt", "permission denied")
    (tmp_path/"d/a.txt").chmod(0o600)
    (tmp_path/"d/sub").chmod(0)
    fails(tmp_path/"d", "sub", "permission denied")
    (tmp_path/"d/sub").chmod(0o700)

def test_a_refusal_is_one_sentence(tmp_path, monkeypatch):
    put(tmp_path, {"a.txt": "a"})
    def refuse(*args, **kw): raise PermissionError(13, "Permission denied", str(tmp_path/"a.txt"))
    monkeypatch.setattr(os, "scandir", refuse)
    fails(tmp_path, "a.txt: permission denied")

def test_folders(tmp_path):
    put(tmp_path, {"b.txt": "b", "a/z.txt": "z", "a/y/x.txt": "x", ".hidden": "h", ".git/config": "g", "a/.env": "e", "empty.txt": "", "B.txt": "B"})
    os.symlink(tmp_path, tmp_path/"a/loop")
    os.symlink("../b.txt", tmp_path/"a/linked.txt")
    os.symlink("nowhere", tmp_path/"a/dangling.txt")
    found = load_context(tmp_path)
    assert found == {"B.txt": "B", "a/linked.txt": "b", "a/y/x.txt": "x", "a/z.txt": "z", "b.txt": "b", "empty.txt": ""}
    assert list(found) == sorted(found)
    os.symlink(tmp_path/"a/y", tmp_path/"y")
    assert load_context(tmp_path/"y") == {"x.txt": "x"}

@needs_fifo
def test_pipes(tmp_path):
    put(tmp_path, {"a.txt": "a"})
    os.mkfifo(tmp_path/"pipe")
    assert load_context(tmp_path) == {"a.txt": "a"}
    writer = threading.Thread(target=lambda: (tmp_path/"pipe").write_text("from a pipe"))
    writer.start()
    assert load_context(tmp_path/"pipe") == "from a pipe"
    writer.join()

def test_folders_without_text(tmp_path):
    (tmp_path/"empty/sub").mkdir(parents=True)
    put(tmp_path, {"hidden/.a": "a", "binary/a.png": b"\x89\0"})
    fails(tmp_path/"empty", "no file in this folder")
    fails(tmp_path/"hidden", "no file in this folder")
    with pytest.warns(ContextWarning): fails(tmp_path/"binary", "only binary")

def test_binary_files_are_counted_and_named(tmp_path):
    put(tmp_path, {f"{i}.png": b"\x89PNG\0" for i in range(5)} | {"a.zip": b"PK\3\4\0", "u16.txt": "x".encode("utf-16"), "t.txt": "t"})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert load_context(tmp_path) == {"t.txt": "t"}
    assert [str(o.message) for o in told] == ["7 of 8 files left out, not text: 0.png, 1.png, 2.png and 4 more"]
    assert told[0].filename == __file__

def test_bad_text_in_a_folder_is_an_error(tmp_path):
    put(tmp_path, {"a.txt": "a", "sub/b.txt": b"12345\xff"})
    fails(tmp_path, str(tmp_path/"sub/b.txt"), "0xff", "offset 5")

@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes")
def test_names_that_are_not_unicode(tmp_path):
    os.close(os.open(os.fsencode(tmp_path) + b"/n\xff.txt", os.O_CREAT))
    (name,) = load_context(tmp_path)
    assert name == "n\udcff.txt" and facts({name: name})["entries"] == 1
    fails(tmp_path/"n\udcff\n.md", r"n\udcff\n.md: no such file")

def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path, {"d/a.md": "a", "d/s/b.md": "b", "d/s/t/c.md": "c", "d/c.txt": "t", "d/.h/x.md": "h", "d/a[1].md": "1", ".dot/in.md": "in"}))
    every = {"d/a.md": "a", "d/a[1].md": "1", "d/s/b.md": "b", "d/s/t/c.md": "c"}
    assert load_context(Path("d/**/*.md")) == every
    assert load_context(Path("d/**")) == every | {"d/c.txt": "t"}
    assert load_context(Path("d/?.md")) == {"d/a.md": "a"}
    assert load_context(Path("d/[ab].md")) == {"d/a.md": "a"}
    assert load_context(Path("d/a[1].md")) == "1"
    assert load_context(Path("d/.h/*.md")) == {"d/.h/x.md": "h"}
    assert load_context(tmp_path/".dot"/"*.md") == {(tmp_path/".dot/in.md").as_posix(): "in"}
    assert list(load_context(tmp_path/"d"/"**"/"*.md")) == [(tmp_path/o).as_posix() for o in every]
    fails(Path("d/*/nothing.*"), "no file matches")
    fails(Path("nowhere/*.md"), "no file matches")

def test_several_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(put(tmp_path, {"b.txt": "b", "d/a.txt": "a", "p/x.md": "x", "logo.png": b"\0"}))
    assert load_context([Path("b.txt"), Path("d"), Path("p/*.md")]) == {"b.txt": "b", "d/a.txt": "a", "p/x.md": "x"}
    assert load_context((Path("d/a.txt"),)) == {"d/a.txt": "a"}
    (entry,) = os.scandir("d")
    assert load_context(entry) == "a"
    fails([Path("b.txt"), Path("logo.png")], "logo.png", "0x00")
    for mixed in ([Path("b.txt"), "text"], [], ()): assert load_context(mixed) is mixed

def test_open_files(tmp_path):
    put(tmp_path, {"a.txt": b"a\r\nb", "bad.txt": b"abc\xff"})
    with open(tmp_path/"a.txt", "rb") as f: assert load_context(f) == "a\r\nb"
    with open(tmp_path/"a.txt", newline="") as f: assert load_context(f) == "a\r\nb"
    with open(tmp_path/"bad.txt", encoding="utf-8") as f: fails(f, "bad.txt", "binary mode")
    fails(f, "closed")
    assert load_context(io.StringIO("text")) == "text"
    class Upload:
        def read(self): return 5
    fails(Upload(), "Upload", "int")
    class Part:
        def read(self, name): return b""
    fails(Part(), "Part")

@pytest.mark.parametrize("x", ["text", [1], {}, None, 3, (1, "a"), {"a": Path("b")}, object(), range(3), io.BytesIO])
def test_other_objects_are_the_context(x): assert load_context(x) is x

# Documents of other libraries

class Paged:
    def __init__(self, page_content, metadata): self.page_content, self.metadata, self.id = page_content, metadata, None

class Node:
    def __init__(self, text, metadata): self._text, self.metadata = text, metadata
    @property
    def text(self): return self._text

class Moody:
    @property
    def text(self): raise RuntimeError("not now")
    metadata = {}

@pytest.mark.parametrize("kind", [Paged, Node])
def test_documents_of_other_libraries(kind):
    docs = [kind("one", dict(source="a.pdf", page=1)), kind("two", {})]
    assert load_context(docs) == load_context(tuple(docs)) == [dict(text="one", source="a.pdf", page=1), dict(text="two")]
    assert load_context(docs[0]) == dict(text="one", source="a.pdf", page=1)
    assert facts(load_context(docs))["fields"] == dict(text="str", source="str", page="int")

@pytest.mark.parametrize("x", [Moody(), Node(3, {}), Node("text", None), Paged, [Paged("a", {}), "text"], {"a": Paged("a", {})}])
def test_what_is_no_document_stays(x): assert load_context(x) is x

def test_real_documents():
    documents = pytest.importorskip("langchain_core.documents")
    assert load_context([documents.Document(page_content="a", metadata=dict(n=1))]) == [dict(text="a", n=1)]

# Facts

def test_fields_of_records():
    found = facts([dict(id=i, name="x" if i % 3 else None) | ({"rare": 1} if i % 5 == 0 else {}) for i in range(100_000)])
    assert found["fields"] == dict(id="int", name="str/NoneType") and found["items"] == 100_000
    secret = "My password is: hunter2 & 'more'"
    assert "hunter2" not in json.dumps(facts([{secret: secret, "k"*41: 1, "a\nb": 2, 5: 3}]*3)) and "fields" not in facts([{secret: 1}])
    assert len(facts([{f"c{i}": 1 for i in range(10_000)}])["fields"]) == 20 and "fields" not in facts([{}, 1, "a"])

def test_chat_messages():
    chat = [dict(role="system", content="Be brief."), dict(role="user", content=[dict(type="text", text="Hi")]), dict(role="assistant", content=None, tool_calls=[{}])]*4
    assert load_context(chat) is chat and facts(chat)["messages"] == 12 and "fields" not in facts(chat)
    for o in ([dict(role="user")], [dict(role=1, content="")], [*chat, "text"], []): assert "messages" not in facts(o)

@dataclass
class Doc:
    title: str
    tags: list = field(default_factory=list)

class Slots:
    __slots__ = ("a",)
    def __init__(self, a): self.a = a

class Colour(enum.Enum): RED = 1

class Hostile:
    def __len__(self): raise RuntimeError("no length")
    def __repr__(self): raise RuntimeError("no repr")

Point = collections.namedtuple("Point", "x y")

def zoo():
    loop, knot = [1], {}
    loop.append(loop)
    knot["me"] = [knot]
    deep = []
    for _ in range(50_000): deep = [deep]
    wide = ["x"]
    for _ in range(60): wide = [wide, wide]
    friends = [Doc(str(i)) for i in range(8)]
    for o in friends: o.tags = friends
    return [None, True, 3, 10**5000, -0.0, float("nan"), 2j, "", "\ud800", "é\U0001f600\udfff", b"", b"\0\xff", bytearray(b"x"), memoryview(b"abc"), [], (), {}, set(),
        [1, "a", None], {"a": {"b": [1, {"c": "d"}]}}, {1: 2, "1": 2, None: 3, (1, 2): 4}, {"\udc80": "\udc80"}, {1, "a", (2, 3)}, frozenset({frozenset()}), collections.deque("abc"),
        collections.OrderedDict(a=1), collections.ChainMap({"a": 1}), Point(1, 2), range(10**12), loop, knot, deep, wide, friends, Doc("t"), Slots(1), Colour.RED, Hostile(), [Hostile()],
        object(), len, Doc, json, datetime.date(2024, 1, 2), decimal.Decimal("1.0"), uuid.UUID(int=5), Path("x"), (i for i in ()), asyncio.Queue, threading.Lock(), ValueError("x")]

@pytest.mark.parametrize("x", zoo(), ids=lambda x: type(x).__name__)
def test_any_object_has_facts(x):
    found = facts(x)
    assert json.loads(json.dumps(found)) == found and found["type"] == type(x).__name__
    assert len(found["fingerprint"]) == 32 and found == facts(x)
    assert len(describe_context(found)) < 300

def test_text_facts_count():
    assert facts("a\n\nbcd")["lines"] == facts("a\n\nbcd\n")["lines"] == 3
    assert facts("\n")["lines"] == 1 and facts("")["lines"] == 0
    assert facts("a\n\nbcd")["longest_line"] == 3 and "approx" not in facts("a\n"*1_000_000)
    big = facts("seven..\n"*1_000_000)
    assert abs(big["lines"]/1_000_000 - 1) < 0.01 and big["chars"] == 8_000_000 and "lines" in big["approx"]

def test_part_facts_count():
    found = facts({"a": "xx", "b": ["yyy", {"c": "zzzz"}], "c": "1234"})
    assert (found["entries"], found["chars"], found["depth"]) == (3, 13, 3)
    assert found["part_chars"] == dict(min=2, median=4, max=7)
    many = facts(["x"*(i%100) for i in range(1_000_000)])
    assert many["items"] == 1_000_000 and abs(many["chars"]/49_500_000 - 1) < 0.05 and "chars" in many["approx"]

def test_a_large_text_is_not_copied():
    text = "0123456789abcde\n"*4_000_000
    tracemalloc.start()
    facts(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000 and load_context(text) is text

# Fingerprints

SAME = """
import sys, datetime, pathlib
sys.path[:] = PATH
from rlm.context import fingerprint
class Slots: __slots__ = ()
print([fingerprint(o) for o in [1.5, "é", [1, {"a": (2, None)}], set(map(str, range(1000))), {"k": {"b", "a"}}, {frozenset("abc"), ("x", 1)}, object(), Slots(), [Slots] * 3,
    len, datetime.date(2024, 1, 2), pathlib.Path("a"), list("ab") * 100_000, {str(i): i for i in range(100_000)}]])
"""

def test_the_same_in_every_process():
    code = SAME.replace("PATH", repr([str(Path(ctx.__file__).parents[1]), *sys.path]))
    def run(seed): return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONHASHSEED": seed})
    a, b = [p.communicate()[0] for p in (run("1"), run("2"))]
    assert a == b and a.startswith("['")

def test_different_objects_differ():
    xs = [1, True, 1.0, "1", b"1", bytearray(b"1"), None, "None", [1], (1,), {1}, frozenset({1}), {1: 1}, [[1]], [], [[]], "", b"", ["", ""], [""], ["a", "bc"], ["ab", "c"], {"a": "b"}, {"b": "a"},
        [1, [2]], [[1], 2], 0.0, -0.0, Doc("a"), Doc("b"), {"title": "a", "tags": []}, Slots, Doc, Colour.RED, "\ud83d\ude00", "\U0001f600", datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), Point(1, 2), (1, 2)]
    assert len({fingerprint(o) for o in xs}) == len(xs)

def test_equal_objects_agree():
    inner = ["x"]
    assert fingerprint([inner, inner]) == fingerprint([["x"], ["x"]])
    assert fingerprint("ab"*50_000) == fingerprint("".join(["ab"]*50_000))
    assert fingerprint(Doc("a", ["t"])) == fingerprint(Doc("a", ["t"]))
    assert fingerprint(float("nan")) == fingerprint(float("nan")) and fingerprint(object()) == fingerprint(object())

@pytest.mark.parametrize("at", [0, 1_999_999, 3_999_999])
def test_up_to_a_size_every_change_is_seen(at):
    for letter in ("x", "\U0001f600"):
        text = letter*4_000_000
        assert fingerprint(text) != fingerprint(text[:at] + "y" + text[at+1:])
    lines = ["line"]*30_000
    n = at*30_000//4_000_000
    assert fingerprint(lines) != fingerprint(lines[:n] + ["lime"] + lines[n+1:])

def test_above_it_length_ends_and_samples_count():
    text = "x"*9_000_000
    assert "approx" in facts(text)
    same = fingerprint(text)
    assert same != fingerprint(text[1:]) and same != fingerprint("y" + text[1:]) and same != fingerprint(text[1:] + "y")
    assert same != fingerprint(text[:4_000_000] + "y"*1_000_000 + text[5_000_000:])
    many = [str(i) for i in range(300_000)]
    assert fingerprint(many) != fingerprint(many[:-1]) and fingerprint(many) != fingerprint(tuple(many)) and fingerprint(many) != fingerprint(many[::-1])

def test_tables():
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    frame = pd.DataFrame(dict(name=["Ada", "Alan"], born=[1815, 1912]))
    found = facts(frame)
    assert found["shape"] == [2, 2] and "Ada" not in json.dumps(found) and list(found["fields"]) == ["name", "born"]
    assert describe_context(found).startswith("`context` is of type DataFrame: shape 2 × 2")
    others = [frame.rename(columns=dict(born="died")), frame.set_index(pd.Index(["a", "b"])), frame.assign(born=[1815, 1913]), frame["name"], frame["born"]]
    assert len({fingerprint(o) for o in [frame, *others]}) == 6 and fingerprint(frame) == fingerprint(frame.copy())
    arrays = [np.arange(6), np.arange(6).reshape(2, 3), np.arange(6.0), np.arange(6)[::-1], np.array(3), np.zeros((0, 4)), np.arange(10**7), np.zeros((1, 10**6)), np.array(["a"], dtype=object)]
    assert len({facts(o)["fingerprint"] for o in arrays}) == len(arrays)

# Preview

@pytest.mark.parametrize("x", zoo(), ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("n", [0, 10, 300, 5000])
def test_any_object_has_a_preview(x, n): assert len(preview(x, n)) <= n

def test_pieces_of_a_preview_are_where_it_says():
    context = "".join(f"line {i}\n" for i in range(100_000))
    places = [o for o in preview(context, 3000).splitlines() if o.startswith("context[")]
    assert len(places) == 8 and places[0].startswith("context[0:") and places[-1].endswith(f":{len(context)}]:")
    for o in places: assert eval(o[:-1], dict(context=context)) in preview(context, 3000)
    assert len(preview(context, 3000)) > 2800 and preview("short") == "context:\nshort"
    context = {f"{i}.md": f"text {i} "*100 for i in range(1000)}
    for o in [o for o in preview(context, 2000).splitlines() if o.startswith("context[")]:
        assert eval(o[:-1], dict(context=context)) in preview(context, 2000)
    assert "context['0.md'][0:" in preview(context, 2000) and "context['999.md'][0:" in preview(context, 2000)

def test_a_preview_of_much_is_quick_and_small():
    huge = ["x"*1_000_000]*100 + [list(range(1_000_000))] + [{i: i for i in range(100_000)}] + [set(range(100_000)), b"x"*10_000_000]
    for o in (huge, huge[100], huge[101], huge[102], "x"*50_000_000, dict(enumerate(huge))):
        tracemalloc.start()
        assert 0 < len(preview(o, 2000)) <= 2000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000

def test_preview_of_a_data_frame():
    pd = pytest.importorskip("pandas")
    for rows in (0, 1, 2, 100, 100_000):
        frame = pd.DataFrame(dict(a=range(rows), b="x"))
        shown = preview(frame, 2000)
        assert len(shown) <= 2000 and (not rows or str(rows-1) in shown)
    assert "context.iloc[99997:100000]:" in shown
