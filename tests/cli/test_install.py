"""`make install` into a folder that is then moved: programs that are built there with pkg-config and
with CMake quantize; the command, the manual and the completion are there; `make uninstall` takes
everything away. And what libtare.so shows to the outside."""
import os
import re
import shutil
import subprocess

import pytest
import tiny
from conftest import ROOT, TARE_BIN, TARE_LIBRARY

FILES = {
    "bin/tare", "include/tare/tare.h", "lib/libtare.so", "lib/pkgconfig/tare.pc",
    "lib/cmake/tare/tare-config.cmake", "lib/cmake/tare/tare-config-version.cmake",
    "lib/cmake/tare/tare-targets.cmake", "share/man/man1/tare.1",
    "share/bash-completion/completions/tare",
}
COMMANDS = {"quantize", "retype", "calib", "verify", "inspect", "generate", "tokenize"}


def call(*command, **kwargs):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          timeout=300, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(target, destination):
    """The target of the Makefile, on the build under test as it is."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return call("make", "-C", ROOT, "-o", "release", target, f"RELEASE={TARE_BIN.parent}",
                "PREFIX=/opt/first", f"DESTDIR={destination}", env=clean)


def files_below(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Installed elsewhere, and moved."""
    root = tmp_path_factory.mktemp("install")
    make("install", root / "stage")
    shutil.move(root / "stage/opt/first", root / "moved here")
    return root / "moved here"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Arguments of examples/quantize.c: model, output, prompts."""
    root = tmp_path_factory.mktemp("job")
    return (tiny.write_checkpoint(root / "model"), root / "out",
            tiny.write_prompts(root / "prompts.jsonl"))


def assert_quantizes(program, job, folder, env=None):
    model, _, prompts = job
    out = folder / "quantized"
    version = call(program, model, out, prompts, env=env).strip()
    assert version == re.search(r"VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text()
                                .split("project(tare")[1])[1]
    return (out / "quant_model_weights-00001-of-00001.safetensors").read_bytes()


def test_files(prefix):
    found = files_below(prefix)
    assert FILES <= found
    rest = {re.sub(r"[0-9.]+$", "", name) for name in found - FILES}
    assert rest == {"lib/libtare.so", "lib/cmake/tare/tare-targets-release.cmake"} or rest == {
        "lib/libtare.so", "lib/cmake/tare/tare-targets-debug.cmake"}
    for name in found:  # nothing that moving would break
        text = (prefix / name).read_bytes()
        if not name.startswith(("lib/libtare", "bin/")):
            assert b"/opt/first" not in text and str(ROOT).encode() not in text, name


def test_command_of_a_moved_prefix(prefix, job):
    environment = {"PATH": "/usr/bin:/bin"}
    assert call(prefix / "bin/tare", "--version", env=environment).startswith("tare ")
    loaded = call("ldd", prefix / "bin/tare", env=environment)
    assert re.search(r"libtare\.so\.\d+ => (.*) \(", loaded)[1] == str(
        prefix / "bin/../lib" / re.search(r"libtare\.so\.\d+", loaded)[0])


def test_pkg_config(prefix, job, tmp_path):
    environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    # The shell does what a Makefile would: the folder's name holds a blank.
    call("sh", "-c", f'eval cc -Wall -Werror "{ROOT}/examples/quantize.c" -o program '
         '"$(pkg-config --cflags --libs tare)"', cwd=tmp_path, env=environment)
    libdir = call("pkg-config", "--variable=libdir", "tare", env=environment).strip()
    libdir = libdir.replace("\\", "")
    assert os.path.samefile(libdir, prefix / "lib")
    weights = assert_quantizes(tmp_path / "program", job, tmp_path,
                               {**os.environ, "LD_LIBRARY_PATH": libdir})
    call(prefix / "bin/tare", "quantize", job[0], "--out", tmp_path / "by command", "--calib", job[2])
    assert weights == (tmp_path / "by command" /
                       "quant_model_weights-00001-of-00001.safetensors").read_bytes()


def test_find_package(prefix, job, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.18)
project(user C)
find_package(tare 0.1 REQUIRED)
add_executable(program "{ROOT}/examples/quantize.c")
target_link_libraries(program PRIVATE tare::tare)
""")
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dtare_DIR={prefix}/lib/cmake/tare")
    call("cmake", "--build", tmp_path / "build")
    assert_quantizes(tmp_path / "build/program", job, tmp_path)


def test_other_version_is_refused(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text("""
cmake_minimum_required(VERSION 3.18)
project(user C)
find_package(tare 99 REQUIRED)
""")
    done = subprocess.run(["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"),
                           f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True, text=True)
    assert done.returncode != 0 and "requested version" in done.stderr


def test_uninstall_takes_what_install_put(tmp_path):
    make("install", tmp_path)
    root = tmp_path / "opt/first"
    (root / "lib/other.so").write_text("not ours")
    make("uninstall", tmp_path)
    assert files_below(tmp_path) == {"opt/first/lib/other.so"}
    assert not [p for p in root.rglob("*") if p.name == "tare"]


# ---- the library

def test_soname_and_symbols():
    dynamic = call("readelf", "-d", TARE_LIBRARY)
    assert re.search(r"\(SONAME\).*\[libtare\.so\.\d+\]", dynamic)
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic
    exported = {line.split()[-1] for line in
                call("nm", "-D", "--defined-only", TARE_LIBRARY).splitlines()}
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "include/tare/tare.h").read_text(), flags=re.S)
    declared = set(re.findall(r"TARE_API\b[^;()]*?\b(tare_\w+)\(", header))
    assert len(declared) > 50 and exported == declared


# ---- man page and completion

def test_man_page(prefix):
    """Every option of the help is an item; no text is lost."""
    roff = (prefix / "share/man/man1/tare.1").read_text().replace("\\-", "-").replace("\\(aq", "'")
    items = set(re.findall(r"(?m)^\.TP\n\.B (.*)", roff))
    plain = set(roff.split())
    for name in COMMANDS:
        assert f'.SH "TARE {name.upper()}"\n.B tare {name} ' in roff
        usage = call(TARE_BIN, "help", name)
        for option in re.findall(r"(?m)^  (--\S+(?: [^a-z ]\S*)?)(?:  |$)", usage):
            assert option in items, option
        assert set(usage.split()) - {"usage:"} <= plain
    assert "\n.TP\n.B --act-method 1|2|3|4\nrange of activations: mean of extremes" in roff


def complete(prefix, *words):
    """What the completion offers for the last word."""
    script = (f'PATH="{prefix}/bin:$PATH"; source "{prefix}/share/bash-completion/completions/tare"; '
              f'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tare; printf "%s\\n" "${{COMPREPLY[@]}}"')
    return set(call("bash", "-c", script, "bash", *words).split())


def test_completion(prefix, tmp_path):
    assert complete(prefix, "tare", "") == COMMANDS | {"help", "--help", "--version"}
    assert complete(prefix, "tare", "help", "q") == {"quantize"}
    assert complete(prefix, "tare", "quantize", "M", "--disable-") == {
        "--disable-anti-names", "--disable-names", "--disable-level"}
    assert complete(prefix, "tare", "quantize", "M", "--verb") == {"--verbose"}
    assert complete(prefix, "tare", "quantize", "M", "--act-method", "") == {"1", "2", "3", "4"}
    assert complete(prefix, "tare", "quantize", "M", "--scheme", "") == {
        "w8a8", "w8a8_dynamic", "w8a8_mix", "w8a16"}
    assert complete(prefix, "tare", "verify", "D", "--target", "v") == {"vllm-ascend", "vllm"}
    (tmp_path / "prompts.jsonl").write_text("")
    assert complete(prefix, "tare", "quantize", "M", "--calib", f"{tmp_path}/pr") == {
        f"{tmp_path}/prompts.jsonl"}
