"""tare calib --positive on a model that does not fit in memory: the same choice as with weights in
memory, within the budget, planned by honest numbers, and resumable after a kill."""
import json
import math
import os
import random
import resource
import signal
import subprocess
import time

import pytest
import tiny
from conftest import TARE_BIN, run_tare
from test_memory import sparse_70b

MIB = 1 << 20
KILLS = int(os.environ.get("TARE_KILLS", "2"))
CONFIG = {"num_hidden_layers": 3, "hidden_size": 256, "intermediate_size": 1024, "head_dim": 64,
          "max_position_embeddings": 64}
SIZES = {"boolq": 9, "notes": 5, "gsm8k": 3}
DIGITS = "7"  # an answer that a model which writes at random gives now and then


def write_sets(folder, boolq=40, gsm8k=10):
    folder.mkdir(exist_ok=True)
    rng = random.Random(5)

    def lines(name, records):
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))

    lines("boolq", [{"title": f"T{i}", "passage": "ab " * rng.randint(1, 5), "question": "is it",
                     "answer": rng.random() < 0.5} for i in range(boolq)])
    lines("gsm8k", [{"question": f"{i} and " + "1 " * rng.randint(1, 5), "answer": "#### " + DIGITS}
                    for i in range(gsm8k)])
    lines("notes", [{"prompt": f"note {i}", "ans": i} for i in range(9)])
    (folder / "config.json").write_text(json.dumps({"configurations": [
        {"dataset_name": "boolq", "dataset_path": "boolq"},
        {"dataset_name": "notes", "dataset_path": "notes", "type": "jsonl"},
        {"dataset_name": "gsm8k", "dataset_path": "gsm8k"}]}))


def arguments(folder, out, *flags, sizes=SIZES):
    size = ",".join(f"{name}={n}" for name, n in sizes.items())
    out = [] if out is None else ["--out", out]
    return [str(a) for a in ("calib", "--config", "config.json", "--size", size, *out, "--model",
                             folder / "model", "--positive", "--threads", 1, *flags)]


def calib(folder, out, *flags, sizes=SIZES, **kwargs):
    return run_tare(*arguments(folder, out, *flags, sizes=sizes), cwd=folder, **kwargs)


def dry_run(folder, *flags, sizes=SIZES):
    done = calib(folder, None, "--dry-run", "--json", *flags, sizes=sizes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("positive")
    write_sets(path)
    config = {**tiny.CONFIG, **CONFIG}
    tiny.write_checkpoint(path / "model", tiny.make_tensors(config), **CONFIG)
    (path / "model" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return path


@pytest.fixture(scope="module")
def resident(folder):
    """The mix with weights in memory."""
    done = calib(folder, "resident.json")
    assert done.returncode == 0, done.stderr
    assert "do not fit" not in done.stderr
    text = (folder / "resident.json").read_bytes()
    assert len(json.loads(text)) > SIZES["notes"] + 4
    return text


@pytest.fixture(scope="module")
def budget(folder):
    """MiB in which the weights have no room, but a layer and the next have."""
    memory = dry_run(folder, "--no-probe")["memory"]
    most = math.floor(memory["smallest_kept"] / MIB) - 1
    assert memory["smallest"] < (most - 1) * MIB
    return most


def left_over(folder, name):
    return [p.name for p in folder.iterdir() if p.name.startswith(name) and p.name != name]


@pytest.mark.budget
def test_streamed_choice_is_the_resident_one(folder, resident, budget):
    """Also by the kernel's count of memory; nothing stays on the disk."""
    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (budget * MIB, budget * MIB))

    plan = dry_run(folder, "--no-probe", "--max-memory", f"cpu={budget}MiB")
    sets = {s["name"]: s for s in plan["sets"]}
    assert not sets["boolq"]["weights_kept"] and not sets["gsm8k"]["weights_kept"]
    assert sets["boolq"]["together"] == 18 and sets["gsm8k"]["together"] == 10
    assert plan["memory"]["peak"] <= plan["memory"]["budget"] == budget * MIB
    done = calib(folder, "streamed.json", "--max-memory", f"cpu={budget}MiB", preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert "boolq: the weights do not fit in memory: 18 prompts are asked together" in done.stderr
    assert (folder / "streamed.json").read_bytes() == resident
    assert left_over(folder, "streamed.json") == []


def test_batch_size_and_scratch_dir_do_not_matter(folder, resident, budget, tmp_path):
    flags = ["--max-memory", f"cpu={budget}MiB", "--batch-size", 5, "--scratch-dir", tmp_path]
    done = calib(folder, "batch.json", *flags)
    assert done.returncode == 0, done.stderr
    assert "asked together" not in done.stderr
    assert (folder / "batch.json").read_bytes() == resident
    assert list(tmp_path.iterdir()) == []


def test_compat_cuts_where_batches_of_four_end(folder, budget):
    """What is asked in one round is taken four by four, as with weights in memory."""
    sizes = {"boolq": 14}
    flags = ["--compat", "msmodelslim"]
    assert calib(folder, "four.json", *flags, sizes=sizes).returncode == 0
    done = calib(folder, "round.json", *flags, "--max-memory", f"cpu={budget}MiB", sizes=sizes)
    assert done.returncode == 0 and "asked together" in done.stderr, done.stderr
    assert (folder / "round.json").read_bytes() == (folder / "four.json").read_bytes()


# ---- kills

def start(folder, out, *flags, sizes=SIZES):
    return subprocess.Popen([str(TARE_BIN), *arguments(folder, out, *flags, sizes=sizes)],
                            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True)


def stop(process, number):
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def stop_after_a_set(folder, out, number, *flags):
    """A run that was stopped when boolq was finished and gsm8k was not."""
    journal = folder / f"{out}.tare" / "journal"
    process = start(folder, out, *flags)
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    code, stderr = stop(process, number)
    assert not (folder / out).exists()
    return code, stderr


def test_random_kills(folder, resident, budget):
    """At random lines of what the run reports."""
    flags = ["--max-memory", f"cpu={budget}MiB", "--verbose"]
    whole = calib(folder, "whole.json", *flags)
    assert whole.returncode == 0
    lines = len(whole.stderr.splitlines())
    rng = random.Random(3)
    for i in range(KILLS):
        out = f"killed{i}.json"
        for _ in range(rng.randint(1, 3)):
            process = start(folder, out, *flags, "--resume")
            for _ in zip(range(rng.randint(1, lines)), process.stderr):
                pass
            stop(process, signal.SIGKILL)
            if (folder / out).exists() and not (folder / f"{out}.tare").exists():
                break  # it was done before the kill
        else:
            done = calib(folder, out, "--resume", "--batch-size", rng.randint(1, 9))
            assert done.returncode == 0, done.stderr
        assert (folder / out).read_bytes() == resident
        assert left_over(folder, out) == []


def test_a_finished_set_is_not_asked_again(folder, resident):
    stop_after_a_set(folder, "on.json", signal.SIGKILL)
    done = calib(folder, "on.json", "--resume", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "sets were finished before" in done.stderr
    assert (folder / "on.json").read_bytes() == resident
    assert left_over(folder, "on.json") == []


def test_interrupt_says_how_to_go_on(folder, resident):
    code, stderr = stop_after_a_set(folder, "int.json", signal.SIGINT)
    assert code == 130 and "--resume goes on" in stderr
    done = calib(folder, "int.json")
    assert done.returncode == 2 and "--resume" in done.stderr and "--overwrite" in done.stderr
    done = calib(folder, "int.json", "--overwrite")
    assert done.returncode == 0 and "finished before" not in done.stderr, done.stderr
    assert (folder / "int.json").read_bytes() == resident
    assert left_over(folder, "int.json") == []


def test_changes_are_refused_by_name(folder, resident):
    out = "changed.json"
    stop_after_a_set(folder, out, signal.SIGKILL)

    def refused(named, *flags, sizes=SIZES):
        done = calib(folder, out, "--resume", *flags, sizes=sizes)
        assert done.returncode == 2, done.stderr
        assert f"(changed: {named})" in done.stderr

    refused("size of gsm8k", sizes=SIZES | {"gsm8k": 7})
    refused("seed", "--seed", 1)
    refused("sample-seed", "--sample-seed", 4)
    refused("compat", "--compat", "msmodelslim")
    for path, named in ((folder / "config.json", "config"), (folder / "notes", "data of notes"),
                        (folder / "model" / "tokenizer_config.json", "tokenizer_config.json"),
                        (folder / "model" / "model.safetensors", "model.safetensors")):
        before, times = path.read_bytes(), path.stat()
        if named == "model.safetensors":
            os.utime(path)
        else:
            path.write_bytes(b" " + before)
        refused(named)
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = calib(folder, out, "--resume")
    assert done.returncode == 0 and (folder / out).read_bytes() == resident


def test_a_failure_before_the_first_set_leaves_nothing(folder):
    process = start(folder, "none.json", sizes={"gsm8k": 10})
    while not (folder / "none.json.tare" / "journal").exists():
        time.sleep(0.002)
    assert stop(process, signal.SIGINT)[0] == 130
    assert left_over(folder, "none.json") == []


# ---- the dry run

def test_70b_by_hand(tmp_path):
    """Bytes and passes from the shapes: 139 of the 141 GB pass for each token; of the embedding's
    2.1 GB only rows are read."""
    model = sparse_70b(tmp_path / "model")
    (model / "tokenizer.json").write_text(json.dumps(tiny.make_tokenizer()))
    write_sets(tmp_path, boolq=300, gsm8k=120)
    plan = dry_run(tmp_path, "--no-probe", "--max-memory", "cpu=8GiB",
                   sizes={"boolq": 50, "gsm8k": 50})
    layer = 2 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672)
    head = 2 * 128256 * 8192
    assert round((80 * layer + 2 * head) / 1e9) == 141
    sets = {s["name"]: s for s in plan["sets"]}
    boolq, gsm8k = sets["boolq"], sets["gsm8k"]
    for s, passes in ((boolq, 1), (gsm8k, 256)):
        assert (s["together"], s["passes"], s["batch"]) == (100, passes, 100)
        assert s["read_pass"] == 80 * layer + head
        assert s["read"] == passes * (80 * layer + head)
    assert (boolq["rounds_most"], gsm8k["rounds_most"]) == (3, 2)
    token = 80 * 2 * 8 * 128 * 4  # bytes of keys and values
    prompts = gsm8k["tokens"] - 100 * 255
    assert gsm8k["spill"] and boolq["key_values"] == 0
    assert gsm8k["scratch_written"] == token * gsm8k["tokens"]
    assert gsm8k["scratch_read"] == token * (255 * prompts + 100 * 255 * 254 // 2)
    assert plan["disk"]["read"] == 257 * (80 * layer + head)
    assert plan["memory"]["peak"] <= plan["memory"]["budget"] == 8 << 30
    assert 80 * layer + head < plan["memory"]["smallest_kept"] < 1.02 * (80 * layer + head)
    assert plan["seconds"] is None
    done = calib(tmp_path, None, "--dry-run", "--max-memory", "cpu=8GiB",
                 sizes={"boolq": 50, "gsm8k": 50})
    for words in ("256 passes over 129.46 GiB", "32.36 TiB read", "more than", "rate is unknown",
                  "the weights stay in memory", "boolq instead of gsm8k"):
        assert words in done.stdout, done.stdout
    four = dry_run(tmp_path, "--no-probe", "--max-memory", "cpu=8GiB", "--batch-size", 4,
                   sizes={"boolq": 50})
    assert [s["rounds_most"] for s in four["sets"] if s["name"] == "boolq"] == [75]


def test_dry_run_touches_nothing(folder):
    before = sorted(folder.iterdir())
    done = calib(folder, "dry.json", "--dry-run")
    assert done.returncode == 0 and "weights stay in memory" in done.stdout
    assert "time        about" in done.stdout
    assert sorted(folder.iterdir()) == before
