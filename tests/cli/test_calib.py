"""tare calib: mixed calibration sets, against what the reference wrote for the same inputs
(tests/data/calibration; expected_N.settings.json says with which settings)."""
import json
import random

import pytest
from conftest import DATA, run_tare

FIXTURES = DATA / "calibration"
NUMBERED = sorted(FIXTURES.glob("expected_[0-9]*.settings.json"))
OPTIONAL = sorted(FIXTURES.glob("expected_opt_*.settings.json"))


def settings_of(path):
    return json.loads(path.read_text())


def calib(config, sizes, out, *flags, cwd=None, **kwargs):
    """Runs the command; `sizes` is a dict or the text of --size."""
    if isinstance(sizes, dict):
        sizes = ",".join(f"{name}={n}" for name, n in sizes.items())
    return run_tare("calib", "--config", config, "--size", sizes, "--out", out, *flags,
                    cwd=cwd, **kwargs)


def calib_settings(s, out, *flags):
    return calib(s["config"], s["sample_size"], out, "--seed", s["shuffle_seed"], *flags,
                 cwd=FIXTURES)


def assert_done(done):
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def delivered(done):
    """{name: count} of the closing lines."""
    counts = {}
    for line in done.stderr.splitlines():
        if ": requested " in line:
            name, rest = line.split(": ", 1)
            counts[name] = int(rest.split("delivered ")[1].split(",")[0])
    return counts


# ---- what the reference wrote

@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.name.split(".")[0])
def test_compat_bytes(path, tmp_path):
    s = settings_of(path)
    done = calib_settings(s, tmp_path / "mix.json", "--compat", "msmodelslim")
    assert_done(done)
    expected = path.name.replace(".settings", "")
    assert (tmp_path / "mix.json").read_bytes() == (FIXTURES / expected).read_bytes()
    assert delivered(done) == s["delivered"]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.name.split(".")[0])
def test_default_bytes(path, tmp_path):
    s = settings_of(path)
    done = calib_settings(s, tmp_path / "mix.json")
    assert_done(done)
    ending = ".json" if s["default_equal"] else ".default.json"
    expected = path.name.replace(".settings.json", ending)
    assert (tmp_path / "mix.json").read_bytes() == (FIXTURES / expected).read_bytes()
    assert delivered(done) == s.get("delivered_default", s["delivered"])


@pytest.mark.parametrize("path", OPTIONAL, ids=lambda p: p.name.split(".")[0])
def test_option_bytes(path, tmp_path):
    s = settings_of(path)
    flags = []
    if "mmlu_shots" in s:
        flags += ["--mmlu-shots", s["mmlu_shots"]]
    if "sample_seed" in s:
        flags += ["--sample-seed", s["sample_seed"]]
    assert flags
    assert_done(calib_settings(s, tmp_path / "mix.json", *flags))
    expected = path.name.replace(".settings", "")
    assert (tmp_path / "mix.json").read_bytes() == (FIXTURES / expected).read_bytes()


# ---- a mix of its own, with Python as the judge

class Mix:
    """A folder with a config and sets that tests fill."""

    def __init__(self, folder):
        self.folder, self.sets, self.options = folder, [], {}

    def add(self, name, path, type=None):
        entry = {"dataset_name": name, "dataset_path": str(path)}
        self.sets.append(entry | ({"type": type} if type else {}))
        return self

    def lines(self, name, content, type=None, file="data.jsonl"):
        """A set of JSON lines; `content` is bytes, or a list of records."""
        if not isinstance(content, bytes):
            content = b"".join(json.dumps(r).encode() + b"\n" for r in content)
        (self.folder / file).write_bytes(content)
        return self.add(name, self.folder / file, type)

    def run(self, sizes, *flags, **kwargs):
        config = self.folder / "config.json"
        config.write_text(json.dumps({"configurations": self.sets} | self.options))
        self.out = self.folder / "mix.json"
        return calib(config, sizes, self.out, *flags, **kwargs)

    def read(self):
        return json.loads(self.out.read_bytes())


@pytest.fixture
def mix(tmp_path):
    return Mix(tmp_path)


def notes(count):
    return [{"prompt": f"p{i}", "ans": i} for i in range(count)]


def sampled(records, size, seed=0):
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    return [records[i] for i in order[:size]]


def shuffled(records, seed=0):
    records = list(records)
    random.Random(seed).shuffle(records)
    return records


def test_two_sets(mix):
    a, b = notes(10), [{"prompt": f"q{i}", "ans": [i]} for i in range(7)]
    mix.lines("a", a, "jsonl", "a.jsonl").lines("b", b, "jsonl", "b.jsonl")
    assert_done(mix.run("b=3,a=5", "--seed", 3))  # the order of --size does not matter
    expected = shuffled(sampled(a, 5) + sampled(b, 3), 3)
    assert mix.out.read_bytes() == json.dumps(expected, indent=2).encode()


@pytest.mark.parametrize("seed", [0, 1, -1, 42, 2**32, -(2**40 + 5), 2**64 - 1])
def test_seeds(mix, seed):
    records = notes(1000)
    mix.lines("notes", records, "jsonl")
    assert_done(mix.run("notes=700", f"--seed={seed}", f"--sample-seed={seed}"))
    assert mix.read() == shuffled(sampled(records, 700, seed), seed)


def test_sample_seed_of_the_config_has_any_length(mix):
    records = notes(50)
    mix.lines("notes", records, "jsonl").options = {"sample_seed": -10**60}
    assert_done(mix.run("notes=20"))
    assert mix.read() == shuffled(sampled(records, 20, 10**60))
    assert_done(mix.run("notes=20", "--sample-seed", "+4", "--overwrite"))  # the flag wins
    assert mix.read() == shuffled(sampled(records, 20, 4))


def test_every_size(mix):
    records = notes(9)
    mix.lines("notes", records, "jsonl")
    for size in range(12):
        done = mix.run({"notes": size}, "--overwrite")
        assert_done(done)
        assert mix.read() == shuffled(sampled(records, size))
        assert ("available samples is less than the number of samples" in done.stderr) == (size > 9)


@pytest.mark.parametrize("count", range(0, 14, 3))
def test_compat_delivers_whole_batches(mix, count):
    mix.lines("notes", notes(count), "jsonl")
    for size in range(1, 17):
        done = mix.run({"notes": size}, "--overwrite", "--compat", "msmodelslim")
        assert_done(done)
        taken = 4 * -(-size // 4)
        assert len(mix.read()) == (size if taken < count else count)


@pytest.mark.parametrize("sizes", ["notes=3,", "notes", "notes=-1", "notes=1.5", "notes=true", "=",
                                   "notes=", "notes=+1", "notes=3,notes=3", "Notes=3",
                                   "notes=1,other=1", "other=1,notes=1"])
def test_refused_sizes(mix, sizes):
    done = mix.lines("notes", notes(4), "jsonl").run(sizes)
    assert done.returncode == 2 and done.stdout == ""
    assert not mix.out.exists()
    if "other" in sizes or "Notes" in sizes:
        assert "has no handler" in done.stderr


def test_sizes_may_be_repeated_and_huge(mix):
    mix.lines("a", notes(4), "jsonl", "a.jsonl").lines("x=y", notes(4), "jsonl", "b.jsonl")
    done = mix.run(f"a={10**40}", "--size", "x=y=2")
    assert_done(done)
    assert delivered(done) == {"a": 4, "x=y": 2}


def test_nothing_asked(mix):
    assert_done(mix.lines("notes", notes(4), "jsonl").run(""))
    assert mix.out.read_bytes() == b"[]"


@pytest.mark.parametrize("flags", [["--seed", "1x"], ["--seed", ""], ["--seed", str(2**64)],
                                   ["--seed", "1.0"], ["--sample-seed", "-"], ["--gsm8k-seed", "a"],
                                   ["--mmlu-shots", "6"], ["--mmlu-shots", "-1"],
                                   ["--compat", "other"], ["--batch-size", "0"],
                                   ["--batch-size", "-1"], ["--positive"], ["--unknown"], ["extra"]])
def test_refused_flags(mix, flags):
    done = mix.lines("notes", notes(4), "jsonl").run("notes=1", *flags)
    assert done.returncode == 2 and done.stdout == "" and not mix.out.exists()


def test_missing_flags(mix, tmp_path):
    mix.lines("notes", notes(4), "jsonl").run("notes=1")
    required = {"--config": tmp_path / "config.json", "--size": "notes=1",
                "--out": tmp_path / "other.json"}
    for name in required:
        args = [x for key, value in required.items() if key != name for x in (key, value)]
        done = run_tare("calib", *args)
        assert done.returncode == 2 and name in done.stderr
    assert not (tmp_path / "other.json").exists()


# ---- config

@pytest.mark.parametrize("text, message", [
    ("", "config.json"), ("[]", "must be an object"), ("{bad", "line 1"),
    ("{}", "config should have attribute configurations"),
    ('{"configurations": {}}', '"configurations" must be a list'),
    ('{"configurations": [1]}', "must be an object"),
    ('{"configurations": [{"dataset_path": "x"}]}', "config should have attribute dataset_name"),
    ('{"configurations": [{"dataset_name": "x"}]}', "config should have attribute dataset_path"),
    ('{"configurations": [{"dataset_name": 1, "dataset_path": "x"}]}', '"dataset_name"'),
    ('{"configurations": [{"dataset_name": "x", "dataset_path": "x\\u0000"}]}', '"dataset_path"'),
    ('{"configurations": [{"dataset_name": "x", "dataset_path": "x", "type": "csv"}]}', '"type"'),
    ('{"configurations": [{"dataset_name": "x", "dataset_path": "x", "type": null}]}', '"type"'),
    ('{"configurations": [], "compat": "other"}', '"compat"'),
    ('{"configurations": [], "skip_bad": 1}', '"skip_bad"'),
    ('{"configurations": [], "mmlu_shots": 6}', '"mmlu_shots"'),
    ('{"configurations": [], "mmlu_shots": true}', '"mmlu_shots"'),
    ('{"configurations": [], "mmlu_shots": 1.0}', '"mmlu_shots"'),
    ('{"configurations": [], "sample_seed": 1.0}', '"sample_seed"'),
    ('{"configurations": [], "sample_seed": true}', '"sample_seed"'),
    ('{"configurations": [], "gsm8k_sampling": "yes"}', '"gsm8k_sampling"'),
    ('{"configurations": [], "gsm8k_seed": [1]}', '"gsm8k_seed"'),
])
def test_refused_configs(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    done = calib(tmp_path / "config.json", "", tmp_path / "mix.json")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "mix.json").exists()


def test_config_reads_like_python(tmp_path):
    """A byte order mark, keys that are not known, the last of two equal keys."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "ans": 1}\n')
    (tmp_path / "config").write_bytes(
        b'\xef\xbb\xbf{"configurations": 1, "x": 2, "skip_bad": true, "compat": null, '
        b'"configurations": [{"dataset_name": "n", "dataset_path": "a.jsonl", "type": "jsonl", '
        b'"y": 1}]}')
    assert_done(calib("config", "n=1", "mix.json", cwd=tmp_path))
    assert json.loads((tmp_path / "mix.json").read_text()) == [{"prompt": "p", "ans": 1}]


def test_no_sets(mix):
    assert_done(mix.run(""))
    assert mix.out.read_bytes() == b"[]"


def test_unknown_name_is_passed_over(mix):
    mix.add("Boolq", "/does/not/exist").lines("notes", notes(2), "jsonl")
    done = mix.run("notes=1")
    assert_done(done)
    assert "Dataset Boolq hasn't provide processor" in done.stderr
    assert mix.run("Boolq=1").returncode == 2


def test_name_twice(mix):
    """The later entry stands at the place of the earlier, whose path does not matter any more."""
    mix.add("a", "/does/not/exist", "jsonl").lines("b", notes(3), "jsonl", "b.jsonl")
    mix.lines("a", [{"prompt": "late", "ans": 0}], "jsonl", "a.jsonl")
    done = mix.run("a=1,b=2")
    assert_done(done)
    assert "Dataset a stands there twice" in done.stderr
    assert list(delivered(done)) == ["a", "b"]
    assert mix.read() == shuffled([{"prompt": "late", "ans": 0}] + sampled(notes(3), 2))


def test_type_makes_a_built_in_name_free(mix):
    assert_done(mix.lines("boolq", notes(1), "jsonl").run("boolq=1"))
    assert mix.read() == notes(1)


# ---- JSON lines

GOOD = b'{"prompt": "p", "ans": 1}'


@pytest.mark.parametrize("content, count", [
    (b"", 0), (b"\xef\xbb\xbf", 0), (GOOD, 1), (GOOD + b"\n", 1), (GOOD + b"\r\n" + GOOD, 2),
    (GOOD + b"\r" + GOOD + b"\n" + GOOD, 3), (b"\xef\xbb\xbf \t" + GOOD + b" \n", 1),
])
def test_line_ends(mix, content, count):
    assert_done(mix.lines("notes", content, "jsonl").run("notes=9"))
    assert mix.read() == [{"prompt": "p", "ans": 1}] * count


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \r ", b" \t\n", b"\n\n \r\n", b"  "])
def test_blank_lines_are_no_records(mix, blank):
    """As in files for --calib: in the middle and at the end, also where the last line has no end."""
    content = GOOD + b"\n" + blank + b"\n" + GOOD + b"\n" + blank
    done = mix.lines("notes", content, "jsonl").run("notes=9", "--skip-bad")
    assert_done(done)
    assert "bad record" not in done.stderr
    assert mix.read() == [{"prompt": "p", "ans": 1}] * 2
    mix.out.unlink()
    number = 1 + blank.count(b"\n") + blank.count(b"\r") - blank.count(b"\r\n") + 2
    mix.lines("notes", GOOD + b"\n" + blank + b"\n{}", "jsonl")
    assert f"data.jsonl:{number}: " in mix.run("notes=9").stderr  # lines are counted all the same


@pytest.mark.parametrize("name, record", [
    ("gsm8k", {"question": "q", "answer": "a\n#### 1"}),
    ("boolq", {"title": "t", "passage": "p", "question": "q", "answer": True})])
def test_blank_line_at_the_end(mix, name, record):
    assert_done(mix.lines(name, json.dumps(record).encode() + b"\n\n").run(f"{name}=1"))
    assert len(mix.read()) == 1


BAD_LINES = {
    "no-break space": "\xa0".encode(), "list": b'["prompt", "ans"]', "string": b'"prompt"',
    "no prompt": b'{"ans": 1}', "no ans": b'{"prompt": "p"}', "number": b'{"prompt": 1, "ans": 1}',
    "null": b'{"prompt": null, "ans": 1}', "two objects": GOOD + GOOD, "cut": GOOD[:-1],
    "control character": b'{"prompt": "a\tb", "ans": 1}', "NUL": b'{"prompt": "a\0b", "ans": 1}',
    "not UTF-8": b'{"prompt": "\xff", "ans": 1}', "surrogate": b'{"prompt": "\xed\xa0\x80", "ans": 1}',
    "not UTF-8 in an unused key": b'{"prompt": "p", "ans": 1, "x": "\xff"}',
    "deep": b'{"prompt": "p", "ans": ' + b"[" * 512 + b"]" * 512 + b"}",
    "comment": GOOD + b" // x", "single quotes": b"{'prompt': 'p', 'ans': 1}",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_line(mix, bad):
    mix.lines("notes", GOOD + b"\r\n" + GOOD + b"\n" + bad + b"\n" + GOOD, "jsonl")
    done = mix.run("notes=1")
    assert done.returncode == 1 and f"{mix.folder}/data.jsonl:3: " in done.stderr, done.stderr
    assert not mix.out.exists()
    done = mix.run("notes=9", "--skip-bad")
    assert_done(done)
    assert "data.jsonl: 1 bad records skipped" in done.stderr and "skipped 1\n" in done.stderr
    assert len(mix.read()) == 3


def test_skip_bad_equals_a_cleaned_file(mix):
    records = notes(40)
    lines = [json.dumps(r).encode() for r in records]
    mix.lines("notes", b"\n".join(x + b"\n{}" for x in lines), "jsonl")
    assert_done(mix.run("notes=11", "--skip-bad", "--seed", 5))
    assert mix.read() == shuffled(sampled(records, 11), 5)


def test_values_come_out_as_python_writes_them(mix):
    values = ["0", "-0", "12345678901234567890123", "1.0", "1e5", "1E16", "0.0001", "0.00001",
              "-0.0", "5e-324", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", '"\\ud800"',
              '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\/\\b\\f\\n\\r\\t\\u0000\\"\\\\"',
              '"\u2028\x7f~"', "[]", "{}", "[[], {}]", '{"a": 1, "b": [true, false, null], "a": 2}',
              "[" * 511 + "]" * 511]
    content = "".join('{"prompt": %s, "ans": %s}\n' % (v if v[0] == '"' else '""', v)
                      for v in values).encode()
    assert_done(mix.lines("notes", content, "jsonl").run("notes=100"))
    records = [json.loads(line) for line in content.decode().split("\n") if line]
    expected = shuffled(sampled(records, 100))
    assert mix.out.read_bytes() == json.dumps(expected, indent=2).encode()


# ---- boolq, gsm8k

def boolq(**changes):
    return {"title": "T", "passage": "p", "question": "q?", "answer": True} | changes


@pytest.mark.parametrize("value, text", [
    (None, "None"), (True, "True"), (False, "False"), (12345678901234567890, "12345678901234567890"),
    (-1.5, "-1.5"), (1e16, "1e+16"), (float("nan"), "nan"), (float("-inf"), "-inf"), ("", ""),
])
def test_boolq_prints_as_python(mix, value, text):
    for key in ("title", "passage", "question"):
        assert_done(mix.lines("boolq", [boolq(**{key: value})]).run("boolq=1", "--overwrite"))
        parts = {"title": "T", "passage": "p", "question": "q?"} | {key: text}
        assert mix.read()[0]["prompt"] == \
            "{title} -- {passage}\nQuestion: {question}?\nAnswer:".format(**parts)
        mix.sets.clear()


@pytest.mark.parametrize("answer", [None, "yes", 1, 0.0, [1], {"a": 2}, False])
def test_boolq_keeps_any_answer(mix, answer):
    assert_done(mix.lines("boolq", [boolq(answer=answer)]).run("boolq=1"))
    assert mix.out.read_bytes() == json.dumps(
        [{"prompt": "T -- p\nQuestion: q??\nAnswer:", "ans": answer}], indent=2).encode()


@pytest.mark.parametrize("key", ["title", "passage", "question", "answer"])
def test_boolq_needs_every_key(mix, key):
    record = boolq()
    del record[key]
    done = mix.lines("boolq", [boolq(), record]).run("boolq=1")
    assert done.returncode == 1 and f'data.jsonl:2: key "{key}" is missing' in done.stderr
    if key != "answer":
        for value in ([], {}):
            mix.sets.clear()
            done = mix.lines("boolq", [boolq(**{key: value})]).run("boolq=1")
            assert done.returncode == 1 and "data.jsonl:1: " in done.stderr


SPACE = "".join(map(chr, [9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 0x85, 0xa0, 0x1680,
                          *range(0x2000, 0x200b), 0x2028, 0x2029, 0x202f, 0x205f, 0x3000]))


@pytest.mark.parametrize("answer, ans", [
    ("x #### 5", "5"), ("####", ""), ("#### 1 #### 2", "1"), ("a########b", ""),
    (f"####{SPACE}$1,2-3.4{SPACE}", "$1,2-3.4"), ("####\u200b7\u180e", "\u200b7\u180e"),
    ("##### 8", "# 8"), ("####\ud800", "\ud800"), (f"####{SPACE}", ""),
])
def test_gsm8k_answers(mix, answer, ans):
    assert_done(mix.lines("gsm8k", [{"question": " Q? ", "answer": answer}]).run("gsm8k=1"))
    assert mix.read() == [{"prompt": "Question:  Q? \n", "ans": ans}]


@pytest.mark.parametrize("record", [
    {"question": "q", "answer": "no mark ###"}, {"question": "q"}, {"answer": "#### 1"},
    {"question": 1, "answer": "#### 1"}, {"question": "q", "answer": 4},
])
def test_gsm8k_refuses(mix, record):
    done = mix.lines("gsm8k", [record]).run("gsm8k=1")
    assert done.returncode == 1 and "data.jsonl:1: " in done.stderr
