# make demo   set up, then the main job: recipes/demo.toml from the embedded corpus to a model you can talk to
# make test   set up, then all tests
# make test-native  the native code under the compiler's sanitizers
# make lint   style, types and the floors of the house
# make bench  throughput of training against this machine's matrix-product rate
# make fuzz   100,000 damaged files: typed errors, no crash, little memory (FUZZ='--count N --seed S')
# make escapes  every attempt to get out of the sandbox, behind each wall alone
# make parity  docs/parity.md: every family beside transformers
# make clean  remove what was built (runs/ stays)

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard ayllu/native/*.cpp ayllu/native/*.h)

.PHONY: setup demo test test-native lint bench fuzz escapes parity clean

setup: .venv/.done

# Build requirements first and no build isolation, so that pip never resolves a second torch. build/ goes
# first: what another compiler or generator left there would be in the way.
.venv/.done: $(BUILD_INPUTS)
	@if [ -z "$(PYTHON)" ]; then \
		echo "Ayllu needs Python 3.11 or newer with its venv module, and none was found." >&2; \
		echo "what to do: install one (Debian: apt install python3 python3-venv), or say where it is:" >&2; \
		echo "            make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3" >&2; \
		exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11; say where a newer one is: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt scikit-build-core nanobind cmake
	@rm -rf build
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[test]'
	@$(BIN)/python -c 'import ayllu.native._native' 2>/dev/null || \
		echo "note: no native extension was built (no C++ compiler?); the slower torch path is used"
	@touch $@

demo: setup
	$(BIN)/ayllu make recipes/demo.toml

# At most four processes: each holds torch, and two cores are what the tests are made for.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# The extension once more with the compiler's sanitizers, and the tests that reach into it. Python itself isn't built
# with them: their library must be there first, and what Python leaves behind at its end is not our leak.
SANITIZED := build/sanitized
test-native: setup
	$(BIN)/cmake -S . -B $(SANITIZED) -DAYLLU_INNER=ON -DAYLLU_SANITIZE=ON -DCMAKE_BUILD_TYPE=Release \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > /dev/null
	$(BIN)/cmake --build $(SANITIZED) --parallel > /dev/null
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		AYLLU_TEST_EXTENSION="$$(echo $(SANITIZED)/_native*.so)" \
		$(BIN)/python -m pytest tests/native tests/engine/test_native_executor.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python bench/train.py

fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ)

escapes: setup
	AYLLU_ESCAPES=all $(BIN)/python -m pytest tests/escapes

parity: setup
	$(BIN)/python tests/parity/report.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
