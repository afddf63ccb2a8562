# Every target makes .venv when it is missing or older than the two files that describe it.
#   make demo     train-to-bundle on the YOLO reference model, report in build/demo
#   make test     the tests
#   make check    what CI runs: lint, generated pages, types, layers, wheel contents, tests
#   make bench    figures on real models and images, from the folder DATA
#   make bench-quality   the same for the ways to quantize, one by one

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT := build/demo
DATA := ../shared
YOLOX := $(DATA)/models/yolox_nano.onnx --data $(DATA)/data/coco/calib \
	--preprocess resize=letterbox,anchor=top-left,pad=114,color=bgr,divide=1
FACE := $(DATA)/models/mobilefacenet.onnx --data $(DATA)/data/faces \
	--preprocess mean=0.485/0.456/0.406,std=0.229/0.224/0.225

.PHONY: demo test check lint types layers wheel bench bench-quality clean

demo: $(STAMP)
	$(BIN)/edgekit run models/yolo/recipe.toml --out $(OUT)
	@echo "Report: $(CURDIR)/$(OUT)/report.html"

test: $(STAMP)
	$(BIN)/python -m pytest -q

# Not part of the tests: minutes long, and meaningful only while nothing else runs.
bench: $(STAMP)
	$(BIN)/python tests/bench/against_ort.py $(YOLOX) --decode yolox \
		--images $(DATA)/data/coco/val --annotations $(DATA)/data/coco/val.json
	$(BIN)/python tests/bench/against_ort.py $(FACE) --held-out 100
	$(BIN)/python tests/bench/calibration.py $(YOLOX)
	$(BIN)/python tests/bench/calibration.py $(FACE)
	$(BIN)/python tests/bench/compression.py verification $(FACE) --macs 0.65 0.5 --seconds 0 90
	$(BIN)/python tests/bench/compression.py detection $(YOLOX) --decode yolox --align 8 --macs 0.9 0.8 \
		--seconds 0 120 --images $(DATA)/data/coco/val --annotations $(DATA)/data/coco/val.json
	$(BIN)/edgekit run tests/bench/yolox.toml --out build/yolox
	EDGEKIT_CIFAR10=$(abspath $(DATA)/data/cifar10.npz) \
		$(BIN)/edgekit run models/resnet/recipe.toml --fresh --out build/resnet

# The rungs of the int8 ladder beside what other quantizers reached; about half an hour.
bench-quality: $(STAMP)
	$(BIN)/python tests/bench/quality.py yolox $(YOLOX) \
		--images $(DATA)/data/coco/val --annotations $(DATA)/data/coco/val.json
	$(BIN)/python tests/bench/quality.py face $(FACE)

check: lint types layers wheel test

lint: $(STAMP)
	$(BIN)/ruff check edgekit targets models tests .ci
	$(BIN)/ruff format --check edgekit targets models tests .ci
	$(BIN)/python .ci/ops_table.py --check
	$(BIN)/python .ci/tflite_ops_table.py --check

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

wheel: $(STAMP)
	@rm -rf build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . > /dev/null
	$(BIN)/python .ci/wheel_contents.py build/wheel/*.whl

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "edgekit needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing edgekit and its dependencies into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[yolo,ethos-u,dev]"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[tflm]" 2> /dev/null || \
		echo "tflite-micro has no build for this Python: the tests that need it are skipped"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[qnn]" 2> /dev/null || \
		echo "onnxruntime-qnn has no build for this machine: the tests that need it are skipped"
	@touch $@
