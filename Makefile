# Each target sets up what it needs, below .venv, .mpi, .pythons, target and dist; `make clean` removes all of it.

PYTHON ?= python3
VENV := .venv
IN_VENV := $(VENV)/bin
MPIS := mpich openmpi impi-rt
SOURCES := $(shell find rust/src mpiimport site_mpi launcher -type f -not -path '*/__pycache__/*') \
	Cargo.toml rust/Cargo.toml Cargo.lock pyproject.toml
IN_SLOWFS := --manifest-path tests/hosts/slowfs/Cargo.toml
SLOWFS := target/slowfs/release/slowfs
INSTALL_WHEEL := $(IN_VENV)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall \
	target/wheels/*.whl

# The user's settings must not change what is built and tested.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME PYTHONUNBUFFERED PYTHONOPTIMIZE

.PHONY: demo test test-nightly test-dist test-rust test-sanitized lint deny advisories bench docs dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built .mpi/mpich/.installed
	@LD_LIBRARY_PATH=.mpi/mpich/lib PATH=$$PWD/$(IN_VENV):$$PWD/.mpi/mpich/bin:$$PATH \
		timeout -k 5 120 mpiexec -n 4 python-mpi docs/demo.py

TEST_NEEDS := $(MPIS:%=.mpi/%/.installed) .mpi/impi-devel/.installed $(SLOWFS)
test: test-rust $(VENV)/.built $(TEST_NEEDS)
	$(IN_VENV)/python -Im pytest --import-mode=importlib

# It installs many packages for several Pythons, which takes some GB below .pythons.
test-nightly: test-sanitized $(VENV)/.built $(TEST_NEEDS)
	$(IN_VENV)/python -Im pytest --import-mode=importlib -m nightly
	$(MAKE) test-dist

# The launch tests on the wheel that is released. Whatever needs the development build afterwards makes it anew.
test-dist: dist $(VENV)/.tools $(TEST_NEEDS)
	rm -rf target/wheels $(VENV)/.built
	mkdir -p target/wheels
	cp dist/*_$$(uname -m).whl target/wheels
	$(INSTALL_WHEEL)
	$(IN_VENV)/python -Im pytest --import-mode=importlib tests/launch

# What is released: wheels for x86-64 and aarch64 and the sdist, made and checked.
dist: target/dist/.tools
	packaging/dist

test-rust: .tools
	PROPTEST_RNG_SEED=1 cargo test --quiet --no-default-features

# The core's tests with AddressSanitizer, which stable compilers bring but do not offer; the properties with many more
# and always other cases.
test-sanitized: .tools
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address PROPTEST_CASES=4000 cargo test --quiet --no-default-features --lib \
		--target $(shell rustc --print host-tuple) --target-dir target/sanitized

lint: $(VENV)/.built
	cargo fmt --check
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	cargo clippy --quiet -- -D warnings
	cargo fmt --check $(IN_SLOWFS)
	cargo clippy --quiet --locked --target-dir target/slowfs $(IN_SLOWFS) -- -D warnings
	$(IN_VENV)/ruff format --check
	$(IN_VENV)/ruff check
	$(IN_VENV)/mypy
	$(IN_VENV)/python -Im mypy.stubtest mpiimport._core --allowlist tests/stubtest.allow

# The crates that the core is made of: their licences, sources and versions, by deny.toml. `make advisories` asks the
# RustSec database for what is known of them, over the network.
deny: target/tools/bin/cargo-deny
	$< --locked check licenses bans sources

advisories: target/tools/bin/cargo-deny
	$< --locked check advisories

target/tools/bin/cargo-deny: | .tools
	cargo install --quiet --locked --debug --no-default-features --root target/tools cargo-deny@0.20.2

# Each is one question; benchmarks/results has the answers.
BENCHMARKS := operations memory warm slow_filesystem latency pynamic parts model
bench: $(VENV)/.built $(TEST_NEEDS)
	set -e; for name in $(BENCHMARKS); do $(IN_VENV)/python benchmarks/$$name.py; done
	$(IN_VENV)/python benchmarks/slow_filesystem.py --mpi impi --cache --no-cache 16x1
	$(IN_VENV)/python benchmarks/slow_filesystem.py --no-cache --variants plain "first run" "second run" bundle --rounds 5
	$(IN_VENV)/python benchmarks/pages.py

# The chart library of the report's page, as its makers publish it. To update it, change the version, and look at a report.
ECHARTS := 6.1.0
PAGE := mpiimport/page
.PHONY: echarts
echarts:
	@command -v npm >/dev/null || { echo "To fetch the chart library, npm is needed. Install it and try again." >&2; exit 1; }
	rm -rf target/echarts
	mkdir -p target/echarts $(PAGE)/licenses
	cd target/echarts && npm install --silent --no-save --prefix . echarts@$(ECHARTS)
	cp target/echarts/node_modules/echarts/dist/echarts.min.js $(PAGE)/
	cp target/echarts/node_modules/echarts/LICENSE $(PAGE)/licenses/echarts
	cp target/echarts/node_modules/echarts/NOTICE $(PAGE)/licenses/echarts-notice
	cp target/echarts/node_modules/echarts/licenses/LICENSE-d3 $(PAGE)/licenses/d3
	cp target/echarts/node_modules/zrender/LICENSE $(PAGE)/licenses/zrender
	{ echo "# Apache ECharts $(ECHARTS), from npm by \`make echarts\`"; cd $(PAGE) && sha256sum echarts.min.js; } > $(PAGE)/echarts.sha256

# The site, in target/docs. Links that lead nowhere, and anything a page would fetch from elsewhere, end it.
docs: target/docs-tools/.installed
	NO_MKDOCS_2_WARNING=1 target/docs-tools/bin/mkdocs build --strict

target/docs-tools/.installed: docs/requirements.txt | .tools
	$(PYTHON) -m venv --clear target/docs-tools
	target/docs-tools/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# What cannot be installed from here is named in one sentence.
.PHONY: .tools
.tools:
	@for tool in cargo cc $(PYTHON); do command -v $$tool >/dev/null || \
		{ echo "mpiimport needs $$tool, which is not on PATH. Install it and try again." >&2; exit 1; }; done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || \
		{ echo "mpiimport needs Python 3.9 or later, but $(PYTHON) is older. Set PYTHON to another." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. Install its venv package (python3-venv)." >&2; exit 1; }

$(VENV)/.tools: tests/requirements.txt | .tools
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/.built: $(SOURCES) $(VENV)/.tools
	rm -rf target/wheels
	$(IN_VENV)/maturin build --quiet --release --out target/wheels
	$(INSTALL_WHEEL)
	@touch $@

target/dist/.tools: packaging/requirements.txt | .tools
	$(PYTHON) -m venv --clear target/dist/tools
	target/dist/tools/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The filesystem that simulated hosts share, in tests only.
$(SLOWFS): $(shell find tests/hosts/slowfs -type f) | .tools
	cargo build --quiet --release --locked --target-dir target/slowfs $(IN_SLOWFS)
	@touch $@

# Each MPI in a folder of its own: MPICH and Intel MPI have a libmpi.so.12 each.
.mpi/%/.installed: $(VENV)/.tools
	$(IN_VENV)/python -m pip install --quiet --disable-pip-version-check --prefix .mpi/$* --ignore-installed "$*"
	@touch $@

# Intel's headers alone, for the test of the constants.
.mpi/impi-devel/.installed: $(VENV)/.tools
	$(IN_VENV)/python -m pip install --quiet --disable-pip-version-check --prefix .mpi/impi-devel --no-deps --ignore-installed impi-devel
	@touch $@

clean:
	rm -rf $(VENV) .mpi .pythons target dist
