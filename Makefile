# Every target does its own set-up: `make demo` and `make test` work on a clean clone with Python 3.10 or later.
PYTHON ?= python3
VENV   ?= .venv
BUILD  := build
BIN    := $(VENV)/bin
DEMO   := $(BUILD)/demo
MODEL  := models/fashion-dit
TUNED  := $(foreach passes,8 15,--program models/fashion-programs/tuned-$(passes).json)
TEXT   := fashion-pixart
# Guided only while there is more noise than this: more captions are right, and 36 evaluations are enough, not 40 (models/README.md).
GUIDED := --guidance-interval 0.3,40
ONE    := fashion-meanflow

.PHONY: help venv demo demo-one-step demo-text demo-text-report demo-text-device test test-slow test-bundles test-gpu lint typing check schema commands clean
help:
	@echo "make demo       trained checkpoint -> bundle -> picture, and the same in int8"
	@echo "make demo-one-step  the student of that model that draws a picture in one evaluation"
	@echo "make demo-text  the same from words: a text model, its encoder (83 MB, downloaded once), a captioned picture"
	@echo "make test       set up and run the tests (make test-slow: the rest; make test-gpu: what needs a GPU)"
	@echo "make gpu-pack   what a GPU machine without a network needs for tests/gpu/gpu_check.py, and the command to run there"
	@echo "make check      lint, typing, test"
	@echo "make bench      docs/benchmarks.md and docs/performance.md measured again (half an hour; make peers: other runtimes)"
	@echo "make cpp        libditedge, the C and C++ runtime (TENSORRT_ROOT=/usr: with plans)"
	@echo "make fuzz       five minutes of hostile files, half for C++, half for Python; make test-aarch64, test-avx2: under qemu"
	@echo "make verdicts   10,000 documents (COUNT=): Python and C++ take the same ones"
	@echo "make crash      kill every command that writes 200 times, look at what is left (20 minutes)"
	@echo "make clean      remove .venv, .gpu and $(BUILD)"

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; echo "$(PYTHON) -m venv failed: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip -c constraints.txt

# Two sets of packages in one environment: the demo does not wait for the test tools.
$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing ditedge[export] into $(VENV) (about a minute, 1.5 GB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	@echo "installing the test tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,test]'
	@touch $@

venv: $(VENV)/test.stamp

demo: $(VENV)/demo.stamp
	@mkdir -p $(DEMO)
	$(BIN)/python cli.py export --ckpt $(MODEL).safetensors --heads 3 --classes $(MODEL).classes.txt $(TUNED) --out $(DEMO)/fashion --force
	$(BIN)/python cli.py run --engine $(DEMO)/fashion --count 40 --batch 20 --seed 7 -o $(DEMO)/fashion.png
	$(BIN)/python cli.py quantize --engine $(DEMO)/fashion --out $(DEMO)/fashion-int8 --force
	$(BIN)/python cli.py run --engine $(DEMO)/fashion-int8 --count 40 --batch 20 --seed 7 -o $(DEMO)/fashion-int8.png
	@echo "the picture: $(CURDIR)/$(DEMO)/fashion.png"
	@echo "the same in int8: $(CURDIR)/$(DEMO)/fashion-int8.png"
	@echo "with 40 evaluations of the network instead of 8: $(BIN)/ditedge run --engine $(DEMO)/fashion --program dpm++-20"
	@echo "both side by side, measured: $(CURDIR)/$(DEMO)/fashion-int8/quality/report.html"

demo-one-step: $(VENV)/demo.stamp
	@mkdir -p $(DEMO)
	$(BIN)/python cli.py export --ckpt models/$(ONE).safetensors --heads 3 --pixels --classes $(MODEL).classes.txt --out $(DEMO)/$(ONE) --force
	$(BIN)/python cli.py run --engine $(DEMO)/$(ONE) --count 40 --batch 20 --seed 7 -o $(DEMO)/$(ONE).png
	$(BIN)/python cli.py run --engine $(DEMO)/$(ONE) --program mean-consistency-2 --count 40 --batch 20 --seed 7 -o $(DEMO)/$(ONE)-2.png
	@echo "one evaluation each: $(CURDIR)/$(DEMO)/$(ONE).png"
	@echo "two evaluations each: $(CURDIR)/$(DEMO)/$(ONE)-2.png"

# transformers reads the text encoder at export; nothing of it is needed to run the bundle (demo-text-device).
$(VENV)/demo-text.stamp: $(VENV)/demo.stamp
	@echo "installing transformers and tokenizers into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,text]' transformers
	@touch $@

demo-text: $(VENV)/demo-text.stamp
	@mkdir -p $(DEMO)/$(TEXT)-pipeline
	$(BIN)/python examples/text_encoder.py --lora models/fashion-minilm-lora.safetensors --out $(DEMO)/$(TEXT)-pipeline
	cp -r models/$(TEXT)/. $(DEMO)/$(TEXT)-pipeline
	$(BIN)/python cli.py export --ckpt $(DEMO)/$(TEXT)-pipeline --out $(DEMO)/$(TEXT) --force
	@rm -rf $(DEMO)/$(TEXT)-pictures
	$(BIN)/python cli.py run --engine $(DEMO)/$(TEXT) --prompts examples/prompts.txt --size 64x32 $(GUIDED) --seed 7 --batch 16 -o $(DEMO)/$(TEXT)-pictures/
	$(BIN)/python examples/captioned_grid.py $(DEMO)/$(TEXT)-pictures -o $(DEMO)/$(TEXT).png
	@echo "the picture: $(CURDIR)/$(DEMO)/$(TEXT).png"

$(DEMO)/$(TEXT)/manifest.json:
	$(MAKE) demo-text

demo-text-report: $(DEMO)/$(TEXT)/manifest.json $(VENV)/demo-text.stamp  # the numbers of models/README.md: half an hour
	$(BIN)/python bench/text_quality.py --engine $(DEMO)/$(TEXT) $(GUIDED) --guidance 1 --guidance 2 --guidance 7

# What a device needs: an environment with ONNX Runtime and tokenizers alone makes a picture of words.
demo-text-device: $(DEMO)/$(TEXT)/manifest.json
	$(PYTHON) -m venv --clear $(BUILD)/device
	$(BUILD)/device/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[cpu,text]'
	! $(BUILD)/device/bin/python -m pip list --format freeze | grep -E '^(torch|transformers|diffusers|onnx)='
	cd $(BUILD) && device/bin/ditedge run --engine demo/$(TEXT) --prompt "a dark sneaker on the left of a handbag" --size 64x32 $(GUIDED) --seed 7 -o demo/device.png

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -m "slow and not gpu" -n 2 --dist loadfile

# Plans for the GPU at hand, of each library that is installed (docs/gpu-results.md): a test without its plans is skipped.
test-gpu: demo $(VENV)/test.stamp
	@for target in tensorrt tensorrt-rtx; do \
	  $(BIN)/python cli.py build --engine $(DEMO)/fashion --target $$target || echo "no plans of $$target: their tests are skipped"; \
	done
	$(BIN)/python -m pytest -q -rs -m gpu

# For a machine with a GPU and without a network: bundle and wheels into .gpu, and the command to run there.
.PHONY: gpu-pack gpu-pack-training
gpu-pack: $(DEMO)/fashion/manifest.json $(VENV)/test.stamp
	@$(BIN)/python -m pytest -q tests/cpp/plans/test_on_cuda.py  # builds the C++ runtime and its double, half optimised
	@test ! -e $(BUILD)/cpp/CMakeCache.txt || { cmake -S runtime/cpp -B $(BUILD)/cpp -DCMAKE_BUILD_TYPE=Release && cmake --build $(BUILD)/cpp --parallel; } > /dev/null
	@$(BIN)/python tools/gpu_pack.py

# The same for examples/train.py: its images instead of the bundle.
gpu-pack-training: $(VENV)/demo.stamp
	@$(BIN)/python tools/gpu_pack.py --training

.PHONY: bench
bench: peers $(DEMO)/fashion/manifest.json  # docs/benchmarks.md and docs/performance.md: measured again on this machine
	$(PEERS)/bin/python bench/publish.py

# Other runtimes beside ours (bench/peers): on top of the environment, since they share PyTorch; what has no wheel is left out.
.PHONY: peers
PEERS := $(BUILD)/peers
peers: $(VENV)/test.stamp
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv --without-pip $(PEERS)
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/ditedge.pth"
	@for list in bench/peers/requirements-*.txt; do \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $$list || echo "$$list: left out"; \
	done

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the bridge in ditedge/__init__.py: check what is shipped.
typing: $(VENV)/test.stamp
	@rm -rf $(BUILD)/typing
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-compile --target $(BUILD)/typing .
	$(BIN)/mypy $(BUILD)/typing/ditedge

check: lint typing test

schema: $(VENV)/demo.stamp  # docs/manifest.schema.json from runtime/bundle/manifest.py
	$(BIN)/python -c "import json; from ditedge.runtime.bundle.manifest import Manifest; \
	open('docs/manifest.schema.json', 'w').write(json.dumps(Manifest.model_json_schema(), indent=1) + '\n')"

commands: $(VENV)/demo.stamp  # docs/commands.md from the help texts
	$(BIN)/python tools/commands_page.py > docs/commands.md

clean:
	rm -rf .venv .gpu $(BUILD)

# The C++ runtime (runtime/cpp, docs/embedding.md). `make test` builds and tests it too, where there is a compiler.
.PHONY: cpp fuzz fuzz-cpp fuzz-python verdicts test-aarch64 test-avx2
FUZZ_SECONDS ?= 300
FUZZ_HALF = $(shell expr $(FUZZ_SECONDS) / 2)
COUNT ?= 10000
SEED ?= $(shell date +%j)
cpp:  # TENSORRT_ROOT=/usr adds the engine for plans (CUDA_ROOT where CUDA is not in /usr/local/cuda). Ubuntu: ONNXRUNTIME_ROOT
	tools/fetch_cpp_headers.sh
	cmake -S runtime/cpp -B $(BUILD)/cpp -DCMAKE_BUILD_TYPE=Release -DDITEDGE_HEADERS=$(CURDIR)/$(BUILD)/cpp-headers \
	  $(if $(ONNXRUNTIME_ROOT),-DONNXRUNTIME_ROOT=$(ONNXRUNTIME_ROOT) -UONNXRUNTIME_INCLUDE) \
	  $(if $(TENSORRT_ROOT),-DTENSORRT_ROOT=$(TENSORRT_ROOT)) $(if $(CUDA_ROOT),-DCUDA_ROOT=$(CUDA_ROOT))
	cmake --build $(BUILD)/cpp --parallel

$(DEMO)/fashion/manifest.json:
	$(MAKE) demo

fuzz: fuzz-cpp fuzz-python

fuzz-python: $(VENV)/test.stamp  # everything in Python that reads a file of somebody else's; another seed every day
	$(BIN)/python -m tests.fuzz.fuzz_python --seconds $(FUZZ_HALF) --seed $(SEED) --out $(BUILD)/fuzz-python

verdicts: $(DEMO)/fashion/manifest.json $(VENV)/test.stamp  # of Python and C++ on the same manifests, programs, build records
	tools/need.sh c++:g++ cmake:cmake
	tools/fetch_cpp_headers.sh
	cmake -S runtime/cpp -B $(BUILD)/verdicts-cpp -DCMAKE_BUILD_TYPE=Release -DDITEDGE_TESTS=ON -DDITEDGE_EXAMPLES=OFF \
	  -DDITEDGE_HEADERS=$(CURDIR)/$(BUILD)/cpp-headers
	cmake --build $(BUILD)/verdicts-cpp --target ditedge-verdicts --parallel
	$(BIN)/python -m tests.fuzz.verdicts --bundle $(DEMO)/fashion --program $(BUILD)/verdicts-cpp/ditedge-verdicts \
	  --count $(COUNT) --seed $(SEED) --out $(BUILD)/verdicts

fuzz-cpp: $(DEMO)/fashion/manifest.json  # manifests, programs, build records, graphs, signatures, keys of arbitrary bytes, under AddressSanitizer and UndefinedBehaviorSanitizer
	tools/need.sh clang++:clang cmake:cmake
	@tools/need.sh "$$(clang++ -print-runtime-dir):libclang-rt-$$(clang++ -dumpversion | cut -d. -f1)-dev"
	tools/fetch_cpp_headers.sh
	cmake -S runtime/cpp -B $(BUILD)/fuzz -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DDITEDGE_FUZZ=ON \
	  -DDITEDGE_EXAMPLES=OFF -DDITEDGE_HEADERS=$(CURDIR)/$(BUILD)/cpp-headers
	cmake --build $(BUILD)/fuzz --target ditedge-fuzz --parallel
	@mkdir -p $(BUILD)/fuzz/corpus
	@{ printf '\0'; cat $(DEMO)/fashion/manifest.json; } > $(BUILD)/fuzz/corpus/manifest
	@{ printf '\1'; cat tests/cpp/build.json; } > $(BUILD)/fuzz/corpus/record
	@{ printf '\2'; cat $(DEMO)/fashion/programs/ddpm-10.json; } > $(BUILD)/fuzz/corpus/program
	@$(BIN)/python tests/cpp/small_onnx.py > $(BUILD)/fuzz/corpus/graph
	@{ printf '\4'; cat tests/cpp/manifest.json.sig; } > $(BUILD)/fuzz/corpus/signature
	@{ printf '\5'; cat tests/cpp/key.pem; } > $(BUILD)/fuzz/corpus/key
	@{ printf '\6'; cat tests/bundles/pixart/text/empty.safetensors; } > $(BUILD)/fuzz/corpus/prompt
	cd $(BUILD)/fuzz && ./ditedge-fuzz -max_total_time=$(FUZZ_HALF) -max_len=16384 -timeout=20 -rss_limit_mb=2048 -verbosity=0 corpus

test-bundles: $(VENV)/test.stamp  # the small bundles in tests/bundles, after a change of the format or of a graph
	$(BIN)/python -m tests.bundles.make

.PHONY: crash
crash: $(VENV)/test.stamp  # every command that writes, 200 kills: the target is absent, old or new, nothing is left beside it
	@tools/need.sh strace:strace || true
	$(BIN)/python tools/crash.py

test-aarch64: $(DEMO)/fashion/manifest.json $(VENV)/test.stamp
	tools/test_aarch64.sh $(BIN)/python $(CURDIR)/$(DEMO)/fashion

test-avx2: $(DEMO)/fashion/manifest.json $(VENV)/test.stamp  # int8 on the kernels of a processor without VNNI
	tools/test_avx2.sh $(BIN)/python $(CURDIR)/$(DEMO)/fashion
