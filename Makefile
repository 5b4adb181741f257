# make demo    does the main job on a sample household under .demo/, without root
# make demo-chat   the same household with its Matrix room, the bot in it, until Ctrl-C
# make test    ruff, mypy and all tests; this is what CI runs
# make test-all   the same with the long matrices, on a fresh Debian and in a container
# make bench   measures against tar, restic and borg (make bench BENCH='--size-mb 500 --rounds 1')
# make bench-drive   the copy to a drive against cp and fsync
# make bench-chat    how soon the bot answers, and what the service costs at rest (make bench-chat BENCH='--rest-s 60')
# make bench-back    a folder and its database lost and brought back, against tar, restic and borg with pg_restore
# make bench-tree    the second night as a tree against rsync --link-dest, restic and borg
# make bench-web    50 who ask for the status each second and 4 slow downloads, while a backup is made
# make bench-large   memory with a million files
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-chat test test-all lint bench bench-back bench-chat bench-drive bench-large bench-tree bench-web clean

demo: $(STAMP)-demo
	@$(BIN)/python -m tests.demo

demo-chat: $(STAMP)-demo-chat
	@$(BIN)/python -m tests.demo_chat

# Most tests wait for processes and disks: more of them at once than most machines have cores.
AT_ONCE := -n 4 --dist worksteal

test: system-packages lint
	$(BIN)/python -m tests.second_look $(AT_ONCE) -m "not slow"

test-all: system-packages lint
	$(BIN)/python -m tests.second_look $(AT_ONCE)

bench: $(STAMP)-dev
	@$(BIN)/python -m tests.bench $(BENCH)

bench-drive: $(STAMP)-dev
	@$(BIN)/python -m tests.bench.drive $(BENCH)

bench-chat: $(STAMP)-dev
	@$(BIN)/python -m tests.bench.chat $(BENCH)

bench-back: $(STAMP)-dev
	@$(BIN)/python -m tests.bench.back $(BENCH)

bench-tree: $(STAMP)-dev
	@$(BIN)/python -m tests.bench.tree $(BENCH)

bench-web: $(STAMP)-dev
	@$(BIN)/python -m tests.bench.web $(BENCH)

bench-large: $(STAMP)-dev
	@$(BIN)/python -m tests.bench --alone --size-mb 1500 --small 1000000 --small-bytes 1000 --rounds 1 $(BENCH)

lint: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: system-packages
system-packages: $(STAMP)-dev
	@$(BIN)/python -m tests.system_packages

$(BIN)/python:
	@sh tests/make_venv.sh "$(PYTHON)" "$(VENV)"

$(STAMP)-%: $(BIN)/python pyproject.toml
	@echo "Installing memu-backup into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .bench .debian .demo .demo-chat .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
