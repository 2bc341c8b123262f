# Everything a person types. Each target sets up what it needs first, on a fresh machine too.

VENV := .venv
PY := $(VENV)/bin/python
LIBREMOE := $(VENV)/bin/libremoe

.PHONY: all setup chat test lint fix soak test-native test-threads clean

all: setup

setup: $(VENV)/installed

# The build environment holds scikit-build-core and nanobind only; torch comes from the constraint, never from a build.
$(VENV)/installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/*.cpp kernels/*.h)
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install --quiet -c constraints.txt 'scikit-build-core>=0.11' 'nanobind>=2.4' ninja 'cmake>=3.25'
	$(PY) -m pip install --quiet -c constraints.txt --group dev
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation --editable .
	touch $@

chat: setup
	@$(LIBREMOE) chat

test: lint test-native
	$(PY) -m pytest -q -n 2

# The kernels against float64, with the address and undefined-behaviour sanitizers.
test-native: build/asan/test_kernels
	build/asan/test_kernels

build/asan/test_kernels: $(VENV)/installed
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH cmake -G Ninja -S . -B build/asan -DPython_EXECUTABLE=$(CURDIR)/$(PY) -DCMAKE_BUILD_TYPE=None \
	  -DCMAKE_CXX_FLAGS="-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
	$(VENV)/bin/cmake --build build/asan --target test_kernels

# The pool, and every kernel in it, under the thread sanitizer.
test-threads: setup
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH cmake -G Ninja -S . -B build/tsan -DPython_EXECUTABLE=$(CURDIR)/$(PY) -DCMAKE_BUILD_TYPE=None \
	  -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=thread"
	$(VENV)/bin/cmake --build build/tsan --target test_kernels
	build/tsan/test_kernels

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

fix: setup
	$(VENV)/bin/ruff check --fix .

soak: setup
	$(PY) -m pytest -q -m soak

clean:
	rm -rf build $(VENV)
