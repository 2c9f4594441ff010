"Reading real files: what git ignores, documents, data and pictures, with and without the extras."
import io, json, os, random, subprocess, sys, threading, tracemalloc, warnings, zipfile
from pathlib import Path

import pytest

from conftest import put
from rlm import files
from rlm.context import facts, load_context
from rlm.events import ContextError
from rlm.files import *

root = Path(files.__file__).parents[1]
git = pytest.mark.skipif(subprocess.run(["git", "--version"], capture_output=True).returncode != 0, reason="no git")

def warned(f, *args, **kw):
    "The result of `f` and the sentences of its warnings"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        res = f(*args, **kw)
    assert all(o.filename == __file__ for o in told if o.category is ContextWarning)
    return res, [str(o.message) for o in told if o.category is ContextWarning]

def fails(source, *words, **kw):
    with pytest.raises(ContextError) as e: load_context(source, **kw)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    for o in words: assert o in str(e.value), str(e.value)

# What git ignores

def git_files(folder):
    "The visible files that git lists"
    cmd = ["git", "-c", "core.excludesFile=", "-C", folder, "ls-files", "-coz", "--exclude-standard"]
    names = subprocess.run(cmd, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(o for o in names if o and not any(p.startswith(".") for p in o.split("/")))

@git
def test_a_repository(tmp_path):
    put(tmp_path, {".gitignore": "# built\nbuild/\n*.log\n!keep.log\n/only-top.txt\nnode_modules\ndata/**\n!data/*/\n!data/**/*.md\n",
        "a.py": "", "a.log": "", "keep.log": "", "only-top.txt": "", "src/only-top.txt": "", "build/x.py": "", "src/build/y.py": "",
        "node_modules/p/i.js": "", "data/raw.bin": "", "data/s/t.md": "", "data/s/u.csv": "", "src/.gitignore": "!a.log\n/gen\n", "src/a.log": "",
        "src/gen/z.py": "", "src/sub/gen/z.py": "", "src/sub/.gitignore": b"\xef\xbb\xbf*.tmp\r\n*.py\r\n!main.py \r\n", "src/sub/main.py": "", "src/sub/o.py": "",
        "src/sub/x.tmp": "", "notes/private.md": "", ".github/ci.yml": "", "[odd] dir/.gitignore": "/x*\n", "[odd] dir/x.txt": "", "[odd] dir/s/x.txt": ""})
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    put(tmp_path, {".git/info/exclude": "notes/\n"})
    want = git_files(tmp_path)
    assert list(folder_files(tmp_path)) == want and {"src/a.log", "data/s/t.md", "src/sub/main.py", "[odd] dir/s/x.txt"} <= set(want)
    for name in ("src", "src/sub", "data", "data/s"): assert list(folder_files(tmp_path/name)) == git_files(tmp_path/name)
    assert list(folder_files(tmp_path/"build")) == ["x.py"], "a folder that is named is meant"
    assert list(folder_files(tmp_path/"src/build")) == ["y.py"]
    assert [o.removeprefix(f"{tmp_path.as_posix()}/") for o in pattern_files(tmp_path/"**"/"*.py")] == [o for o in want if o.endswith(".py")]
    fails(tmp_path/"b*"/"*.py", "ignored by .gitignore")

NAMES = ["a", "b", "build", "src", "x.log", "keep.log", "t.txt", "foo bar", "[z]", "lib", "é.txt"]
PATTERNS = ["*.log", "!keep.log", "build/", "/build", "build", "src/*", "!src/", "*", "!*/", "!*.txt", "**/lib", "lib/**", "/a/b", "a/**/b", "!a/", "foo bar",
    "foo\\ bar", "\\#x", "#c", "\\[z\\]", "[z]", "t.txt ", "t.txt\\ ", "?", "!/src/b", "src/**/t.txt", "**", "!**/", "b/", "!b", "/*", "!/src", "a/b/", "*.txt\r",
    "!", "/", "[", "a[", "\\"]

@git
@pytest.mark.parametrize("seed", range(12))
def test_any_repository(tmp_path, seed):
    r = random.Random(seed)
    def fill(folder, depth):
        for name in r.sample(NAMES, r.randint(2, 6)):
            if "." not in name and depth < 3 and r.random() < 0.7:
                (folder/name).mkdir()
                fill(folder/name, depth+1)
            else: (folder/name).write_text("x")
        if r.random() < 0.5: (folder/".gitignore").write_bytes("\n".join(r.sample(PATTERNS, r.randint(1, 5))).encode())
    fill(tmp_path, 0)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert list(folder_files(tmp_path)) == git_files(tmp_path)

@git
def test_a_repository_inside_a_repository(tmp_path):
    put(tmp_path, {".gitignore": "*.log\n", "inner/a.log": "", "inner/.gitignore": "*.tmp", "inner/b.tmp": "", "a.log": ""})
    for o in (tmp_path, tmp_path/"inner"): subprocess.run(["git", "init", "-q", o], check=True)
    assert list(folder_files(tmp_path)) == ["inner/a.log"]

def test_without_git(tmp_path):
    put(tmp_path, {"outer/.gitignore": "*\n", "outer/d/.gitignore": "x\n\udcff".encode(errors="surrogateescape"), "outer/d/x": "", "outer/d/y": "y"})
    (tmp_path/"outer/d/z").mkdir()
    (tmp_path/"outer/d/z/.gitignore").mkdir()
    assert load_context(tmp_path/"outer/d") == {"y": "y"}, "what is above a folder counts inside a repository only"

# Data

def test_json(tmp_path):
    put(tmp_path, {"a.json": b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xc3\xa9", 123456789012345678901234567890]}', "latin.json": b'"caf\xe9"', "b.json": '{"a": 1,\n "b": }', "empty.json": "",
        "deep.json": "["*100_000, "lines.json": '{"a": 1}\n{"a": 2}\n', "zip.json": b"PK\0\0", "long.json": "1"*5000, "X.JSON": "[]"})
    assert load_context(tmp_path/"a.json") == dict(a=[1, 2.5, None, "é", 123456789012345678901234567890])
    assert load_context(tmp_path/"latin.json", "latin-1") == "café" and load_context(tmp_path/"X.JSON") == []
    assert load_context(tmp_path/"lines.json") == [dict(a=1), dict(a=2)]
    fails(tmp_path/"b.json", "b.json", "line 2 column 7")
    fails(tmp_path/"latin.json", "0xe9", "cp1252")
    for name in ("empty", "deep", "long"): fails(tmp_path/f"{name}.json", f"{name}.json", "not JSON")
    fails(tmp_path/"zip.json", "binary")
    fails(tmp_path/"gone.json", "gone.json: no such file")

def test_json_lines(tmp_path):
    put(tmp_path, {"a.jsonl": b'\xef\xbb\xbf{"a": "\\u2028"}\r\n\r\n{"a": "\xe2\x80\xa8"}', "a.ndjson": "1\n2\n", "bad.jsonl": "1\n\n{x}\n", "byte.jsonl": b'1\n"caf\xe9"\n',
        "u16.jsonl": '{"a": 1}\n'.encode("utf-16"), "empty.jsonl": ""})
    assert load_context(tmp_path/"a.jsonl") == [dict(a="\u2028")]*2
    assert load_context(tmp_path/"a.ndjson") == [1, 2] and load_context(tmp_path/"empty.jsonl") == []
    assert load_context(tmp_path/"u16.jsonl", "utf-16") == [dict(a=1)]
    fails(tmp_path/"bad.jsonl", "bad.jsonl: line 3")
    fails(tmp_path/"byte.jsonl", "0xe9", "offset 6")
    fails(tmp_path/"u16.jsonl", 'encoding="utf-16"')
    fails(tmp_path/"a.jsonl", "utf9", encoding="utf9")

def test_json_lines_are_read_one_by_one(tmp_path):
    put(tmp_path, {"big.jsonl": json.dumps("x"*1_000_000) + "\n" + "1\n"*500_000 + json.dumps("y"*1_000_000)})
    tracemalloc.start()
    found = load_context(tmp_path/"big.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 500_002 and peak < 14_000_000

def test_tables(tmp_path):
    pytest.importorskip("pandas")
    put(tmp_path, {"a.csv": b'\xef\xbb\xbfid,code,name,paid,note\r\n1,007,"Smith, J",2.50,\r\n2,1234,"two\nlines",,NA\r\n', "a.tsv": "a\tb\n1\tx,y\n", "semi.csv": "a;b\n1;2,5\n", "latin.csv": b"a\ncaf\xe9\n",
        "phone.csv": "tel\n+4930123\n"})
    frame = load_context(tmp_path/"a.csv")
    assert list(frame.columns) == ["id", "code", "name", "paid", "note"] and list(frame.code) == ["007", "1234"]
    assert list(frame.name) == ["Smith, J", "two\nlines"] and list(frame.note.isna()) == [True, False] and frame.paid.sum() == 2.5 and frame.id.sum() == 3
    assert list(load_context(tmp_path/"a.tsv").b) == ["x,y"] and list(load_context(tmp_path/"semi.csv").columns) == ["a", "b"]
    assert list(load_context(tmp_path/"latin.csv", "latin-1").a) == ["café"] and list(load_context(tmp_path/"phone.csv").tel) == ["+4930123"]
    fails(tmp_path/"latin.csv", "0xe9", "cp1252")
    fails(tmp_path/"gone.csv", "no such file")
    assert facts(frame)["fields"]["id"] == "int64"

@pytest.mark.parametrize("text", ["Report\n\na,b\n1,2\n", "a,b\n1,2,\n3,4,\n", 'a,b\n"1,2\n', "", "a\n1,2\n3\n"])
def test_what_is_no_table_stays_text(tmp_path, text):
    pytest.importorskip("pandas")
    put(tmp_path, {"a.csv": text})
    got,told = warned(load_context, tmp_path/"a.csv")
    assert got == text and len(told) == 1 and "a.csv: kept as text, not a table" in told[0] and "\n" not in told[0]

def test_binary_tables(tmp_path):
    pytest.importorskip("pandas")
    put(tmp_path, {"a.csv": b"a,\0\n1,2", "u16.csv": "a,b\n1,2\n".encode("utf-16")})
    fails(tmp_path/"a.csv", "binary")
    fails(tmp_path/"u16.csv", 'encoding="utf-16"')
    assert load_context(tmp_path/"u16.csv", "utf-16").shape == (1, 2)

def test_parquet(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(dict(a=[1, 2], b=["x", None]))
    frame.to_parquet(tmp_path/"a.parquet")
    assert load_context(tmp_path/"a.parquet").equals(frame)
    assert list(load_context(tmp_path/"*.parquet")) == [(tmp_path/"a.parquet").as_posix()]
    put(tmp_path, {"bad.parquet": b"PAR1nothing", "t.txt": "t"})
    fails(tmp_path/"bad.parquet", "bad.parquet", "Parquet")
    fails(tmp_path/"gone.parquet", "no such file")
    got,told = warned(load_context, tmp_path)
    assert got == {"t.txt": "t"} and told == ["2 of 3 files left out, not text: a.parquet, bad.parquet"]

# Documents

def pdf(*lines):
    "A PDF of one page"
    text = " ".join(f"BT /F1 12 Tf 72 {720-20*i} Td ({o}) Tj ET" for i,o in enumerate(lines)).encode()
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text), b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    out,at = b"%PDF-1.4\n",[]
    for i,o in enumerate(objects, 1):
        at.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (i, o)
    rows = b"".join(b"%010d 00000 n \n" % o for o in at)
    return out + b"xref\n0 6\n0000000000 65535 f \n" + rows + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)

def docx(*paragraphs):
    "A Word file in as few parts as there can be"
    w = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t>{o}</w:t></w:r></w:p>" for o in paragraphs)
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    rel = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    parts = {"[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="r1" Type="{rel}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{w}"><w:body>{body}</w:body></w:document>'}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name,text in parts.items(): z.writestr(name, text)
    return out.getvalue()

@pytest.fixture
def documents(tmp_path):
    "A folder with a document of each kind beside a text"
    openpyxl,pptx = pytest.importorskip("openpyxl"), pytest.importorskip("pptx")
    put(tmp_path, {"a.pdf": pdf("Delivered late", "in March"), "b.docx": docx("Fines apply", "after 14 days"), "t.md": "# Text"})
    book = openpyxl.Workbook()
    book.active.append(["supplier", "days"])
    book.active.append(["Acme", 14])
    book.save(tmp_path/"c.xlsx")
    show = pptx.Presentation()
    show.slides.add_slide(show.slide_layouts[5]).shapes.title.text = "Quarterly review"
    show.save(tmp_path/"d.PPTX")
    return tmp_path

def test_documents(documents):
    pytest.importorskip("markitdown")
    words = {"a.pdf": ["Delivered late", "in March"], "b.docx": ["Fines apply", "after 14 days"], "c.xlsx": ["| Acme | 14 |"], "d.PPTX": ["Quarterly review"]}
    found,told = warned(load_context, documents)
    assert list(found) == [*words, "t.md"] and not told
    for name,parts in words.items():
        assert load_context(documents/name) == found[name]
        for o in parts: assert o in found[name]
    (documents/"a.pdf").rename(documents/"download")
    assert load_context(documents/"download") == found["a.pdf"]
    assert list(load_context([documents/"b.docx", documents/"t.md"]).values()) == [found["b.docx"], "# Text"]

def test_documents_without_text(tmp_path):
    pytest.importorskip("markitdown")
    whole = pdf("Some words")
    put(tmp_path, {"scan.pdf": pdf(), "cut.pdf": whole[:60], "cut.docx": docx("x"*100)[:200], "empty.pptx": b"", "zip.xlsx": docx("x"), "fake.pdf": "only text", "t.txt": "t"})
    fails(tmp_path/"scan.pdf", "scan.pdf: no text in this document", "scanned")
    for name in ("cut.pdf", "cut.docx", "empty.pptx", "zip.xlsx", "fake.pdf"): fails(tmp_path/name, f"{name}: not to be read as", "password")
    fails(tmp_path/"gone.pdf", "no such file")
    got,told = warned(load_context, tmp_path)
    assert got == {"t.txt": "t"} and "6 of 7 files left out" in told[0] and "cut.docx (not to be read as DOCX: BadZipFile)" in told[0]
    fails([tmp_path/"t.txt", tmp_path/"scan.pdf"], "scan.pdf")

def without(*modules, code):
    "Run `code` in a process in which `modules` cannot be imported"
    block = f"""import sys, warnings
from pathlib import Path
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
warnings.simplefilter("always")
from rlm.context import load_context
"""
    r = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, cwd=root)
    assert "Traceback" not in r.stdout and (r.returncode == 0 or r.stderr), r.stderr
    return r

def test_without_the_documents_extra(documents):
    asks = ["a.pdf", "b.docx", "c.xlsx", "d.PPTX", "."]
    code = f"import os\nos.chdir({str(documents)!r})\nfor o in {asks!r}:\n    try: load_context(Path(o))\n    except Exception as e: print(type(e).__name__, e)\nprint(load_context(Path('*.md')))"
    *said,last = without("markitdown", code=code).stdout.splitlines()
    assert [o.partition(" is a document")[0] for o in said] == [f"ContextError {o}" for o in ["a.pdf", "b.docx", "c.xlsx", "d.PPTX", "a.pdf"]]
    assert all(o.endswith("pip install 'rlm[documents]'") for o in said) and last == "{'t.md': '# Text'}"

def test_with_half_of_the_documents_extra(documents):
    pytest.importorskip("markitdown")
    code = f"try: load_context(Path({str(documents/'b.docx')!r}))\nexcept Exception as e: print(type(e).__name__, e)"
    said = without("mammoth", code=code).stdout
    assert said.startswith("ContextError") and "pip install 'rlm[documents]'" in said

def test_without_the_tables_extra(tmp_path):
    put(tmp_path, {"a.csv": "a,b\n1,2\n", "a.parquet": b"PAR1", "bad.csv": b"a\xff\n"})
    code = f"import os\nos.chdir({str(tmp_path)!r})\nprint(repr(load_context(Path('a.csv'))))\nfor o in ('a.parquet', 'bad.csv'):\n    try: load_context(Path(o))\n    except Exception as e: print(type(e).__name__, e)"
    r = without("pandas", "pyarrow", code=code)
    text,parquet,bad = r.stdout.splitlines()
    assert text == r"'a,b\n1,2\n'" and "ContextWarning: a.csv: kept as text" in r.stderr and "pip install 'rlm[tables]'" in r.stderr
    assert parquet.startswith("ContextError a.parquet") and parquet.endswith("pip install 'rlm[tables]'") and "0xff" in bad
    assert "not parquet" not in without("pyarrow", code=code).stdout

# Pictures

@pytest.mark.parametrize("form,kw", [("PNG", {}), ("GIF", {}), ("JPEG", {}), ("JPEG", dict(progressive=True)), ("WEBP", dict(lossless=True)), ("WEBP", dict(lossless=False)), ("WEBP", dict(exif=b"Exif\0\0MM\0*"))])
def test_pictures(tmp_path, form, kw):
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.new("RGB", (641, 482), "teal").save(out, form, **kw)
    data = out.getvalue()
    want = dict(format="WebP" if form == "WEBP" else form, width=641, height=482)
    assert image_facts(data) == want and facts(data)["image"] == want and facts([data, 1])["images"] == facts({"a": data})["images"] == [want["format"]]
    (tmp_path/"picture").write_bytes(data)
    assert load_context(tmp_path/"picture") == load_context(data) == load_context(io.BytesIO(data)) == data
    for n in range(0, 64): image_facts(data[:n])

def test_jpeg_with_a_thumbnail_before_its_size():
    inner = bytes.fromhex("ffd8ffc0000b0800100010") # of 16 × 16
    app = b"\xff\xe1" + (len(inner)+2).to_bytes(2, "big") + inner
    assert image_facts(b"\xff\xd8" + app + b"\xff"*3 + bytes.fromhex("c2000b08012c0190")) == dict(format="JPEG", width=400, height=300)

def test_hostile_headers():
    r = random.Random(1)
    for head in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF1234WEBP", b"RIFF1234WEBPVP8X", b"RIFF1234WEBPVP8L"):
        for n in (0, 1, 5, 20, 300): json.dumps(image_facts(head + r.randbytes(n)))
    image_facts(b"\xff\xd8" + b"\xff"*10_000_000)
    image_facts(b"\xff\xd8" + b"\xff\xe0\0\2"*2_000_000)

def test_folders_of_pictures(tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\0\0\0\1\0\0\0\2"
    put(tmp_path, {"a.png": png, "b/c.png": png})
    assert load_context(tmp_path) == {"a.png": png, "b/c.png": png}
    assert load_context([tmp_path/"a.png"]) == {(tmp_path/"a.png").as_posix(): png}
    put(tmp_path, {"t.txt": "t"})
    got,told = warned(load_context, tmp_path)
    assert got == {"t.txt": "t"} and told == ["2 of 3 files left out, not text: a.png, b/c.png"]

# Many files, large files

def test_formats_of_text_stay_text_among_others(tmp_path):
    named = {"a.json": '{"a":  1}', "b.csv": "a,b\n1,2\n", "c.jsonl": "1\n", "d.html": "<p>x</p>", "e.tsv": "a\tb\n"}
    put(tmp_path, named)
    assert load_context(tmp_path) == named
    assert [*load_context([tmp_path/o for o in named]).values()] == [*load_context(tmp_path/"*").values()] == [*named.values()]

def test_a_large_file_is_decoded_once(tmp_path):
    size = 20_000_000
    put(tmp_path, {"big.txt": b"0123456789abcde\n"*(size//16)})
    tracemalloc.start()
    text = load_context(tmp_path/"big.txt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(text) == size and peak < 1.1*size

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["pipe", "pipe.json"])
def test_pipes_are_read_once(tmp_path, name):
    os.mkfifo(tmp_path/name)
    writer = threading.Thread(target=lambda: (tmp_path/name).write_text('"x"'))
    writer.start()
    assert load_context(tmp_path/name) == ("x" if "json" in name else '"x"')
    writer.join()

@pytest.mark.parametrize("what", ["", "*", "**/*"])
def test_links_that_lead_out_of_a_folder(what, tmp_path):
    "A repository of somebody else's may link to anything of yours"
    (tmp_path/"secret.txt").write_text("my key")
    repo = tmp_path/"repo"
    (repo/"docs").mkdir(parents=True)
    (repo/"docs"/"a.txt").write_text("text")
    (repo/"same.txt").symlink_to("docs/a.txt")
    (repo/"out.txt").symlink_to("../secret.txt")
    (repo/"docs"/"far.txt").symlink_to(tmp_path/"secret.txt")
    (tmp_path/"link").symlink_to(repo)
    for folder in (repo, tmp_path/"link"): # the folder itself may be a link
        with pytest.warns(ContextWarning, match="links that lead out of .*out.txt"): got = load_path(folder/what)
        assert "text" in got.values() and "my key" not in got.values()
        assert load_path(folder/"out.txt") == "my key" # asked for by name
