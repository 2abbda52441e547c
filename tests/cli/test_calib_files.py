"""tare calib: CSV files, mappings of subjects, paths, and the file that is written."""
import json
import os
import random
import stat
import subprocess

import pytest
import tiny
from conftest import TARE_BIN, run_tare
from test_calib import GOOD, assert_done, calib, mix, notes, shuffled  # noqa: F401 (a fixture)

ROW = "Q,a,b,c,d,A\n"
DEV = "id,question,A,B,C,D,answer\n" + "".join(f"{i},E{i},a,b,c,d,A\n" for i in range(5))


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def mmlu(mix, test, mapping=None, dev=None, subject="s"):
    """A set mmlu with one subject."""
    put(mix.folder / "mmlu" / "test" / f"{subject}_test.csv", test)
    if dev is not None:
        put(mix.folder / "mmlu" / "dev" / f"{subject}_dev.csv", dev)
    if mapping is not None:
        put(mix.folder / "mmlu" / "subject_mapping.json", json.dumps({"mmlu_all_sets": mapping}))
    return mix.add("mmlu", mix.folder / "mmlu")


def ceval(mix, val, dev=DEV, mapping=None, subject="s"):
    put(mix.folder / "ceval" / "val" / f"{subject}_val.csv", val)
    if dev is not None:
        put(mix.folder / "ceval" / "dev" / f"{subject}_dev.csv", dev)
    if mapping is not None:
        put(mix.folder / "ceval" / "subject_mapping.json", mapping)
    return mix.add("ceval_5_shot", mix.folder / "ceval")


def question(q="Q", a="a", b="b", c="c", d="d"):
    return f"{q}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"


def shots(n, name="E", answer="A"):
    return "".join(f"{question(f'{name}{i}')} {answer}\n\n" for i in range(n))


# ---- CSV, through mmlu (no header, no id)

@pytest.mark.parametrize("text, samples", [
    (ROW, [(question(), "A")]),
    ("\ufeff" + ROW[:-1], [(question(), "A")]),
    ("Q,a,b,c,d,A,more\nQ,a,b,c,d,A\nQ,a,b,c,d,A,\n", [(question(), "A")] * 3),
    ("\n \t\nQ,a,b,c,d,A\r\n\r\n", [(question(), "A")]),
    ('" Q ",None,,2.50,03,NA\n', [(question(" Q ", "None", "", "2.50", "03"), "NA")]),
    ('"Q\r\nR","a""b",c"d,"e"f"g",",",\n', [(question("Q\r\nR", 'a"b', 'c"d', 'ef"g"', ","), "")]),
], ids=range(6))
def test_cells(mix, text, samples):
    assert_done(mmlu(mix, text).run("mmlu=9"))
    assert mix.read() == shuffled([{"prompt": p, "ans": a} for p, a in
                                   shuffled_by_default(samples)])


def shuffled_by_default(records):
    """The order of sampling."""
    order = list(range(len(records)))
    random.Random(0).shuffle(order)
    return [records[i] for i in order]


@pytest.mark.parametrize("bad, line", [
    ("Q,a,b,c,d,A,x\n", 3), ("Q,a,b,c,d\n", 3), ('""\n', 3), (",a,b,c,d,A\n", 3), ('"",a,b,c,d,A\n', 3),
])
def test_bad_rows(mix, bad, line):
    done = mmlu(mix, '"Q\nR",a,b,c,d,A\n' + bad + ROW).run("mmlu=1")
    assert done.returncode == 1
    assert f"{mix.folder}/mmlu/test/s_test.csv:{line}: " in done.stderr, done.stderr
    done = mix.run("mmlu=9", "--skip-bad")
    assert_done(done)
    assert "s_test.csv: 1 bad records skipped" in done.stderr and len(mix.read()) == 2


def test_open_quote_takes_the_rest(mix):
    done = mmlu(mix, ROW + ROW + 'Q,a,b,"c,d,A\n' + ROW).run("mmlu=1")
    assert done.returncode == 1 and "s_test.csv:3: " in done.stderr
    assert_done(mix.run("mmlu=9", "--skip-bad"))
    assert len(mix.read()) == 2


@pytest.mark.parametrize("text", ["", "\ufeff", "\n \n", '"Q,a', "Q,a,b,c,d\n" + ROW, ROW + "Q\0,a,b,c,d,A\n",
                                  ROW.encode() + b"\xff,a,b,c,d,A\n"])
def test_files_that_are_refused_in_any_case(mix, text):
    for flags in ([], ["--skip-bad"]):
        done = mmlu(mix, text).run("mmlu=1", *flags)
        assert done.returncode == 1 and "s_test.csv" in done.stderr, done.stderr


def test_skipping_the_first_row_leaves_the_columns_to_the_next(mix):
    assert_done(mmlu(mix, ",a,b,c,d,A\nQ,a,b,c,d,A,x\n" + ROW).run("mmlu=9", "--skip-bad"))
    assert len(mix.read()) == 2


# ---- pandas' types (compat)

PANDAS = [  # a column of cells: what it prints in each row
    (["01", "+5", "-3"], ["1", "5", "-3"]),
    ([" 7", "8\t", "9"], ["7", "8", "9"]),
    (["6", "", "12"], ["6.0", "nan", "12.0"]),
    (["2.50", "1e3", "7"], ["2.5", "1000.0", "7.0"]),
    ([".5", "5.", "1E-5"], ["0.5", "5.0", "1e-05"]),
    (["inf", "-inf", "1e16"], ["inf", "-inf", "1e+16"]),
    (["True", "FALSE", "true"], ["True", "False", "True"]),
    (["True", "NA", "false"], ["True", "nan", "False"]),
    (["True", "1", "false"], ["True", "1", "false"]),
    (["1", "x", "2.50"], ["1", "x", "2.50"]),
    (["9223372036854775807", "-9223372036854775808", "00"],
     ["9223372036854775807", "-9223372036854775808", "0"]),
    (["99999999999999999999", "01", "2"], ["99999999999999999999", "01", "2"]),
    (["None", '"NULL"', "#N/A"], ["nan"] * 3),
    (["none", "Null", "N/A "], ["none", "Null", "N/A "]),
]


@pytest.mark.parametrize("cells, printed", PANDAS, ids=range(len(PANDAS)))
def test_compat_types_of_options(mix, cells, printed):
    mmlu(mix, "".join(f"Q{i},{x},b,c,d,A\n" for i, x in enumerate(cells)))
    assert_done(mix.run("mmlu=9", "--compat", "msmodelslim"))
    got = {e["prompt"].split("\n")[0]: e["prompt"].split("\n")[1] for e in mix.read()}
    assert got == {f"Q{i}": f"A. {x}" for i, x in enumerate(printed)}


@pytest.mark.parametrize("cells, written", [
    (["A", "NA", "C"], ['"A"', "NaN", '"C"']),
    (["1", "2", "3"], ['"1"', '"2"', '"3"']),
    (["True", "TRUE", "False"], ['"True"', '"TRUE"', '"False"']),
    (["1", "", "2.50"], ["1.0", "NaN", "2.5"]),
    (["1e300", "inf", "-0.0"], ["1e+300", "Infinity", "-0.0"]),
])
def test_compat_types_of_answers(mix, cells, written):
    mmlu(mix, "".join(f"Q{i},a,b,c,d,{x}\n" for i, x in enumerate(cells)))
    assert_done(mix.run("mmlu=9", "--compat", "msmodelslim"))
    lines = mix.out.read_text().split("\n")
    got = {lines[i][15:17]: lines[i + 1].strip() for i in range(len(lines)) if '"prompt"' in lines[i]}
    assert got == {f"Q{i}": f'"ans": {x}' for i, x in enumerate(written)}


def test_compat_short_rows_and_questions(mix):
    mmlu(mix, "Q,a,b,c,d,A\n01,a\n").run("mmlu=9", "--compat", "msmodelslim")
    assert sorted(e["prompt"] for e in mix.read()) == sorted(
        [question(), question("01", "a", "nan", "nan", "nan")])
    mix.sets.clear()
    done = mmlu(mix, ROW + "NA,1,2,3,4,A\n").run("mmlu=9", "--compat", "msmodelslim", "--overwrite")
    assert done.returncode == 1 and "s_test.csv:2: " in done.stderr
    # The row that is left out does not take part in the types either.
    mix.sets.clear()
    mmlu(mix, "Q,01,b,c,d,A\nNA,x,2,3,4,A\n")
    assert_done(mix.run("mmlu=9", "--compat", "msmodelslim", "--overwrite", "--skip-bad"))
    assert [e["prompt"] for e in mix.read()] == [question("Q", "1")]


# ---- examples, subjects

def test_mmlu_shots(mix):
    dev = "".join(f"E{i},a,b,c,d,A\n" for i in range(5))
    mmlu(mix, ROW, dev=dev, subject="high_school__art")
    heading = ("The following are multiple choice questions (with answers) about  high school  art."
               "\n\n")
    for k in range(6):
        assert_done(mix.run("mmlu=1", "--mmlu-shots", k, "--overwrite"))
        assert mix.read()[0]["prompt"] == (heading + shots(k) if k else "") + question()
    put(mix.folder / "mmlu" / "dev" / "high_school__art_dev.csv", dev[:dev.index("E4")])
    assert_done(mix.run("mmlu=1", "--mmlu-shots", "4", "--overwrite"))
    done = mix.run("mmlu=1", "--mmlu-shots", "5", "--overwrite")
    assert done.returncode == 1 and "high_school__art_dev.csv" in done.stderr


def test_mmlu_without_shots_needs_no_dev(mix):
    assert_done(mmlu(mix, ROW).run("mmlu=1"))
    done = mix.run("mmlu=1", "--mmlu-shots", "1", "--overwrite")
    assert done.returncode == 1 and "dev/s_dev.csv" in done.stderr


def test_ceval_prompt(mix):
    val = "id,question,A,B,C,D,answer,why\n7,Q,a,b,c,d,B,because\n"
    ceval(mix, val, DEV + "5,unused,a,b,c,d,Z\n", subject="a__b")
    assert_done(mix.run("ceval_5_shot=1"))
    assert mix.read() == [{"prompt": "The following are multiple choice questions about  a  b.\n\n"
                           + shots(5) + question(), "ans": "B"}]


@pytest.mark.parametrize("dev, message", [
    (DEV[:DEV.index("4,E4")], "s_dev.csv"), (DEV.replace("answer\n", "\n").replace(",A\n", "\n"), "s_dev.csv"),
    (None, "s_dev.csv"), ("", "s_dev.csv"), (DEV + "5,Q\n", "s_dev.csv:7: "),
], ids=["four", "few columns", "missing", "empty", "bad row beyond the fifth"])
def test_ceval_dev_faults(mix, dev, message):
    done = ceval(mix, "id,question,A,B,C,D,answer\n0,Q,a,b,c,d,A\n", dev).run("ceval_5_shot=1")
    assert done.returncode == 1 and message in done.stderr, done.stderr


def test_ceval_narrow_val(mix):
    """The subject is passed over; its dev file must exist, nothing more."""
    ceval(mix, "id,question,A,B,C,D,answer\n0,Q,a,b,c,d,A\n", subject="b")
    mix.sets.clear()
    ceval(mix, "id,question,A,B,answer\n0,Q,a,b,A\n", "rubbish\0", subject="a")
    done = mix.run("ceval_5_shot=9")
    assert_done(done)
    assert ("val_df has only 4 columns, but requires at least 6 columns. Skipping task a."
            in done.stderr)
    assert len(mix.read()) == 1
    (mix.folder / "ceval" / "dev" / "a_dev.csv").unlink()
    done = mix.run("ceval_5_shot=9", "--overwrite")
    assert done.returncode == 1 and "a_dev.csv" in done.stderr


def subjects_of(mix):
    return [e["prompt"].split("\n")[0] for e in mix.read()]


def add_subjects(mix, names):
    for name in names:
        put(mix.folder / "mmlu" / "test" / f"{name}_test.csv", f"{name},a,b,c,d,A\n")
    return mix


@pytest.mark.parametrize("mapping, order", [
    ('{"mmlu_all_sets": ["b", "a"]}', ["b", "a"]),
    ('\ufeff{"x": 1, "mmlu_all_sets": ["a", "b", "a"]}', ["a", "b", "a"]),
    ('{"mmlu_all_sets": []}', []),
])
def test_mmlu_mapping(mix, mapping, order):
    add_subjects(mix, "abc")
    put(mix.folder / "mmlu" / "subject_mapping.json", mapping)
    assert_done(mix.add("mmlu", mix.folder / "mmlu").run("mmlu=9"))
    assert subjects_of(mix) == shuffled(shuffled_by_default(order))


@pytest.mark.parametrize("mapping", [
    "", "[]", "{}", '{"mmlu_all_sets": {"a": 1}}', '{"mmlu_all_sets": [1]}', "{bad",
    '{"mmlu_all_sets": ["a/b"]}', '{"mmlu_all_sets": ["a\\u0000"]}', '{"mmlu_all_sets": ["\\ud800"]}',
    b'{"mmlu_all_sets": ["\xff"]}'])
def test_bad_mmlu_mapping(mix, mapping):
    put(mix.folder / "mmlu" / "subject_mapping.json", mapping)
    done = add_subjects(mix, "ab").add("mmlu", mix.folder / "mmlu").run("mmlu=1")
    assert done.returncode == 1 and "subject_mapping.json" in done.stderr


@pytest.mark.parametrize("mapping, order", [
    ('{"b": ["x"], "a": null}', "ba"), ('["a", "b"]', "ab"), ('{"a": 1, "b": 2, "a": 3}', "ab"),
    ("{}", ""),
])
def test_ceval_mapping(mix, mapping, order):
    for name in "ab":
        mix.sets.clear()
        ceval(mix, f"id,question,A,B,C,D,answer\n0,{name},a,b,c,d,A\n", DEV, mapping, name)
    assert_done(mix.run("ceval_5_shot=9"))
    got = [e["prompt"].split("\n\n")[-1][0] for e in mix.read()]
    assert got == shuffled(shuffled_by_default(list(order)))


def test_subjects_are_found_in_the_order_of_their_bytes(mix):
    names = ["a_b", "a", "Z", "\u00e9", "a-b", "ab"]
    add_subjects(mix, names).add("mmlu", mix.folder / "mmlu")
    put(mix.folder / "mmlu" / "test" / "notes.txt", "x")
    put(mix.folder / "mmlu" / "test" / "._a_test.csv", "x")
    assert_done(mix.run("mmlu=9"))
    order = sorted(names, key=str.encode)
    assert subjects_of(mix) == shuffled(shuffled_by_default(order))


def test_no_subjects(mix):
    (mix.folder / "mmlu" / "test").mkdir(parents=True)
    done = mix.add("mmlu", mix.folder / "mmlu").run("mmlu=1")
    assert done.returncode == 1 and "mmlu/test" in done.stderr
    put(mix.folder / "mmlu" / "subject_mapping.json", '{"mmlu_all_sets": ["gone"]}')
    done = mix.run("mmlu=1")
    assert done.returncode == 1 and "gone_test.csv" in done.stderr


# ---- paths

@pytest.mark.parametrize("name", ["a b.jsonl", "\u6570\u636e", "a:b~", "x.txt"])
def test_any_name_is_fine(mix, name):
    assert_done(mix.lines("notes", notes(3), "jsonl", name).run("notes=3"))


def test_links(mix):
    mix.lines("notes", notes(3), "jsonl")
    (mix.folder / "link").symlink_to("data.jsonl")
    mix.sets[0]["dataset_path"] = str(mix.folder / "link")
    add_subjects(mix, "a")
    (mix.folder / "folder").symlink_to("mmlu")
    assert_done(mix.add("mmlu", mix.folder / "folder").run("notes=3,mmlu=1"))
    assert len(mix.read()) == 4


def test_things_that_are_no_files(mix):
    os.mkfifo(mix.folder / "fifo")
    for path in (mix.folder / "fifo", mix.folder, mix.folder / "missing", "/dev/zero", ""):
        mix.sets.clear()
        done = mix.add("notes", path, "jsonl").run("notes=1", timeout=20)
        assert done.returncode == 1 and f"'{path}'" in done.stderr, done.stderr
        mix.sets.clear()
        done = mix.add("mmlu", path if path != mix.folder else mix.folder / "config.json").run(
            "mmlu=1", timeout=20)
        assert done.returncode == 1 and str(path) in done.stderr, done.stderr


def test_config_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo", ""):
        done = calib(path, "", tmp_path / "mix.json", timeout=20)
        assert done.returncode == 2, done.stderr
        assert str(path) in done.stderr
    assert "The value of the path cannot be empty." in done.stderr


def test_files_that_anybody_may_write(mix):
    add_subjects(mix, "a").add("mmlu", mix.folder / "mmlu").lines("notes", notes(1), "jsonl")
    put(mix.folder / "mmlu" / "subject_mapping.json", '{"mmlu_all_sets": ["a"]}')
    assert "everybody" not in mix.run("mmlu=1").stderr
    for name in ("data.jsonl", "mmlu/subject_mapping.json", "mmlu/test/a_test.csv", "config.json"):
        (mix.folder / name).chmod(0o666)
    done = mix.run("mmlu=1", "--overwrite")
    assert_done(done)
    warned = [line for line in done.stderr.splitlines() if "everybody may write" in line]
    assert len(warned) == 4 and all(line.startswith("warning: ") for line in warned)


# ---- the file that is written

def run_in_shell(mix, before, size):
    """The command behind a shell's `before`; SIGXFSZ is ignored."""
    return subprocess.run(["sh", "-c", f"trap '' XFSZ; {before}; exec \"$@\"", "sh", TARE_BIN, "calib",
                           "--config", mix.folder / "config.json", "--size", size, "--out",
                           mix.folder / "mix.json", "--overwrite"], capture_output=True, text=True)


def test_mode_whatever_the_umask(mix):
    assert_done(mix.lines("notes", notes(3), "jsonl").run("notes=1"))
    for umask in ("077", "000", "777"):
        assert_done(run_in_shell(mix, f"umask {umask}", "notes=2"))
        assert stat.S_IMODE(mix.out.stat().st_mode) == 0o640


def test_existing_output(mix):
    mix.lines("notes", notes(3), "jsonl")
    (mix.folder / "mix.json").write_text("old")
    (mix.folder / "mix.json").chmod(0o400)
    done = mix.run("notes=2")
    assert done.returncode == 2 and "mix.json" in done.stderr
    assert mix.out.read_text() == "old"
    done = mix.run("notes=2", "--overwrite")
    assert_done(done)
    assert "will be replaced" in done.stderr and len(mix.read()) == 2


def test_output_through_a_link(mix):
    mix.lines("notes", notes(3), "jsonl")
    put(mix.folder / "elsewhere" / "target", "old")
    (mix.folder / "mix.json").symlink_to("elsewhere/target")
    assert_done(mix.run("notes=2", "--overwrite"))
    assert (mix.folder / "mix.json").is_symlink()
    assert len(json.loads((mix.folder / "elsewhere" / "target").read_text())) == 2


def test_refused_outputs(mix):
    mix.lines("notes", notes(3), "jsonl", "notes.json").run("notes=1")
    (mix.folder / "folder.json").mkdir()
    (mix.folder / "hard.json").hardlink_to(mix.folder / "notes.json")
    (mix.folder / "soft.json").symlink_to("config.json")
    (mix.folder / "nowhere.json").symlink_to("gone/x.json")
    before = sorted(os.listdir(mix.folder))
    for name in ("mix.jso", "xjson", "gone/mix.json", "folder.json", "hard.json", "soft.json",
                 "config.json", "notes.json", "nowhere.json", "config.json/mix.json"):
        done = calib(mix.folder / "config.json", "notes=1", mix.folder / name, "--overwrite")
        assert done.returncode == 2 and str(mix.folder / name) in done.stderr, done.stderr
    assert sorted(os.listdir(mix.folder)) == before


def test_refused_before_anything_is_drawn(mix):
    """The output is checked when the mix is opened, but after the sets."""
    done = mix.lines("notes", GOOD + b"\n{}", "jsonl").run("notes=1", "--out", "/gone/x.json")
    assert done.returncode == 1 and "data.jsonl:2" in done.stderr


def test_full_disk(mix):
    """A file size limit stands for a full disk: the old file stays, and nothing else."""
    mix.lines("notes", [{"prompt": "x" * 5000, "ans": i} for i in range(3)], "jsonl")
    assert_done(mix.run("notes=1"))
    before = sorted(os.listdir(mix.folder)), mix.out.read_bytes()
    done = run_in_shell(mix, "ulimit -f 8", "notes=3")
    assert done.returncode == 1 and str(mix.out) in done.stderr, done.stderr
    assert (sorted(os.listdir(mix.folder)), mix.out.read_bytes()) == before


def test_locale_does_not_matter(mix):
    mix.lines("notes", [{"prompt": "\u8336 1,5", "ans": 1.5}], "jsonl")
    written = []
    for locale in ("C", "C.UTF-8", "de_DE.UTF-8"):
        assert_done(mix.run("notes=1", "--overwrite", env=os.environ | {"LC_ALL": locale}))
        written.append(mix.out.read_bytes())
    assert written[0] == written[1] == written[2]


def test_quiet(mix):
    done = mix.lines("notes", notes(3), "jsonl").run("notes=9", "--quiet")
    assert_done(done)
    assert done.stderr == ""


def test_quantize_takes_the_mix(mix, tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    assert_done(mix.lines("notes", [{"prompt": f"hello {i}", "ans": None} for i in range(4)],
                          "jsonl").run("notes=3"))
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", mix.out)
    assert done.returncode == 0, done.stderr
    assert "3 samples" in done.stdout


# ---- a model that judges

def boolq_records(count):
    return [{"title": f"t{i}", "passage": "x" * i, "question": "q", "answer": i % 2 == 0}
            for i in range(count)]


def test_positive_does_not_depend_on_batches(mix, tmp_path):
    """What a model of random weights answers right is half of what is asked; that it is the same
    for every batch size, and a subset in the order of sampling, is what counts here."""
    model = tiny.write_checkpoint(tmp_path / "model")
    mix.lines("boolq", boolq_records(40), file="boolq.jsonl").lines("notes", notes(3), "jsonl")
    written = []
    for size in (1, 3, 8):
        done = mix.run("boolq=40,notes=2", "--overwrite", "--model", model, "--positive",
                       "--batch-size", size)
        assert_done(done)
        assert "Dataset notes : its samples pass unverified" in done.stderr
        written.append(mix.out.read_bytes())
    assert written[0] == written[1] == written[2]
    titles = {e["prompt"].split(" ")[0] for e in mix.read()} & {f"t{i}" for i in range(40)}
    assert 0 < len(titles) < 40
    assert_done(mix.run("boolq=2", "--overwrite", "--model", model, "--positive"))
    first = [f"t{i}" for i in shuffled_by_default(range(40)) if f"t{i}" in titles][:2]
    assert [e["prompt"].split(" ")[0] for e in mix.read()] == shuffled(first)


def test_prompts_beyond_the_context(mix, tmp_path):
    """Prompts are cut to the tokenizer's model_max_length, if it states one, but never gsm8k's."""
    model = tiny.write_checkpoint(tmp_path / "model")
    config = model / "tokenizer_config.json"
    long = "y " * 3000
    mix.lines("boolq", [r | {"passage": long} for r in boolq_records(2)], file="boolq.jsonl")
    mix.lines("gsm8k", [{"question": long, "answer": "####"}], file="gsm8k.jsonl")
    for limit, cut in ((None, False), (64, True), (10**30, False)):
        config.write_text(json.dumps({**tiny.TOKENIZER_CONFIG, "model_max_length": limit,
                                      "eos_token": "<|end|>"}))
        done = mix.run("boolq=2,gsm8k=1", "--model", model, "--positive", "--overwrite")
        assert_done(done)
        assert ("Dataset boolq : 2 prompts exceed the model's context" in done.stderr) == (not cut)
        assert "Dataset gsm8k : 1 prompts exceed the model's context" in done.stderr
        assert len(mix.read()) == (1 if cut else 0)  # the same text cut, labels true and false


def test_positive_without_a_model(mix, tmp_path):
    mix.lines("boolq", boolq_records(2))
    done = mix.run("boolq=1", "--model", tmp_path / "gone", "--positive")
    assert done.returncode == 1 and "gone" in done.stderr and not mix.out.exists()
    done = mix.run("boolq=1", "--model", tmp_path / "gone")
    assert_done(done)
    assert "--model does nothing without --positive" in done.stderr
