# Environments, each made when it is first needed: .venv/run is what a clinic installs, .venv/dev is everything, .venv/cuda has
# onnxruntime-gpu, which cannot be beside onnxruntime.
PYTHON ?= python3
DATA ?= ../shared/data/t1ce-validation
FEATURES ?= ../shared/data/features/vgg16_conv_fp16.npz
INSTALL = bin/python -m pip install --disable-pip-version-check -c constraints.txt
# So that a folder called runtime or train, where a command is run, does not hide the package.
EDITABLE = --config-settings editable_mode=compat -e
RUN = .venv/run/bin/python
DEV = .venv/dev/bin/python

.PHONY: demo test fuzz evaluate results bench gpu clean

demo: .venv/run/installed  ## upscale a real volume ×2.5 with the shipped model
	$(RUN) examples/demo.py out/demo

test: .venv/dev/installed  ## what CI runs
	$(DEV) -m ruff check .
	$(DEV) -m ruff format --check .
	$(DEV) -m mypy --strict -p runtime -m metasrgan
	$(DEV) -m mypy -p train -p export
	$(DEV) -m pytest
	$(DEV) -m pytest benchmarks

fuzz: .venv/dev/installed  ## a million damaged files; an hour of a quiet core's time
	$(DEV) -m tests.fuzz --inputs 1000000 --jobs $$(nproc)

evaluate: .venv/dev/installed  ## score the shipped model on volumes that it was not trained on
	$(DEV) -m train.evaluate --data $(DATA)

results: .venv/dev/installed  ## docs/results.md and docs/perceptual/results.md, from the committed checkpoints
	$(DEV) -m train.evaluate --data $(DATA) --crops 20 --scales 1.1 1.5 2 3 4 6 --out docs --force --models runtime/brain.bundle \
		runtime/fast.bundle runtime/best.bundle former=models/former.pt@stored paper=models/paper.pt@stored models/edsr-small.pt
	$(DEV) -m train.evaluate --data $(DATA) --inputs scan --scales 1.5 2 3 --crops 6 --out docs/scanner --force --models \
		former=models/former.pt@stored paper=models/paper.pt@stored new=models/fidelity.pt true=models/fidelity.pt@true
	$(DEV) -m train.evaluate --data $(DATA) --models models/fidelity.pt models/perceptual.pt --scales 1.1 1.5 2 3 4 \
		--features $(FEATURES) --out docs/perceptual --force

bench: .venv/dev/installed  ## time, at all scales, shapes and rivals → benchmarks/results/; a quarter of an hour on a quiet machine
	$(DEV) -m pytest benchmarks --full --report benchmarks/results

gpu:  ## what a GPU does → benchmarks/results/; ten minutes, with numpy, onnxruntime and a driver alone, without a network
	$(PYTHON) -m benchmarks.gpu

.venv/run/installed: pyproject.toml constraints.txt
	@echo 'Installing numpy, onnxruntime and three more in .venv/run (200 MB): less than a minute'
	$(PYTHON) -m venv .venv/run
	.venv/run/$(INSTALL) $(EDITABLE) '.[cpu]'
	touch $@

.venv/dev/installed: pyproject.toml constraints.txt
	@echo 'Installing torch and what else the tests need in .venv/dev (2 GB): a minute or two'
	$(PYTHON) -m venv .venv/dev
	.venv/dev/$(INSTALL) $(EDITABLE) '.[cpu,export,dev]'
	touch $@

.venv/cuda/installed: pyproject.toml constraints.txt
	@echo 'Installing onnxruntime-gpu in .venv/cuda (500 MB): less than a minute'
	$(PYTHON) -m venv .venv/cuda
	.venv/cuda/$(INSTALL) $(EDITABLE) '.[cuda]' pytest
	touch $@

clean:
	rm -rf .venv out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
