# Two commands run the whole kit from a fresh clone: `make figures` and `make test`.

PROFILE      ?= laptop
PYTHON       ?= python3
REQUIREMENTS ?= -r requirements.lock

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# The stamp names what the environment was made for: this folder (an environment does not survive
# being moved) and these requirements. While it is unchanged, nothing is installed or looked up.
WANTED := $(CURDIR) $(REQUIREMENTS) $(strip $(shell cat requirements.lock pyproject.toml | cksum))
FOUND  := $(shell $(PY) -c "" 2>/dev/null && cat $(STAMP) 2>/dev/null)
ifneq ($(FOUND),$(WANTED))
.PHONY: $(STAMP)
endif

# Without compiled modules every notebook and test process would compile torch and the rest again.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help figures test lab lock
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

figures: $(STAMP) ## run every notebook and draw its figures (PROFILE=ci, laptop, study, paper)
	$(PY) -m qalib study run-notebooks --profile $(PROFILE)

test: export HF_HUB_OFFLINE = 1
test: export TOKENIZERS_PARALLELISM = false
test: export QALIB_PROFILE = ci
test: export OMP_NUM_THREADS = 1
test: $(STAMP) ## check style, imports, unit tests, and every notebook with nbval and papermill
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	QALIB_WAIT=300 $(PY) -m pytest notebooks tests -n 2 --dist loadfile --nbval-lax --nbval-current-env \
	    --nbval-cell-timeout=300 -p no:cacheprovider
	$(PY) -m qalib study run-notebooks --check

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

# An install that was killed leaves "unfinished" in the stamp, and the next one starts from nothing;
# one that merely failed (no network, say) leaves no stamp, and the next one goes on from there.
$(STAMP):
	@$(PY) -c "" 2>/dev/null || rm -rf $(VENV)
	@if [ -f $(STAMP) ] && ! grep -qF "$(CURDIR) " $(STAMP); then rm -rf $(VENV); fi
	@[ -e $(VENV) ] || "$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || \
	    { echo "qalib needs Python 3.11 or newer, and $(PYTHON) is not; name another: make PYTHON=python3.12"; exit 1; }
	@echo "Installing the pinned packages into $(VENV): 1 to 3 minutes, once."
	@mkdir -p $(VENV) && echo unfinished > $(STAMP)
	@[ -x $(PY) ] || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(PY) -m pip install --no-compile $(REQUIREMENTS) && \
	    $(PY) -m pip install --no-deps --no-build-isolation --editable . || \
	    { rm -f $(STAMP); echo "Installing failed, see above. It needs the package index; run the same command again."; exit 1; }
	@echo "$(WANTED)" > $(STAMP)

lock: ## write requirements.lock anew from what pyproject.toml allows
	rm -rf build/locking && "$(PYTHON)" -m venv build/locking
	build/locking/bin/python .ci/lock.py
	rm -rf build/locking
