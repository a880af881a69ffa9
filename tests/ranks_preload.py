"""Imports of the fork server of `ranks` before it forks; nothing here starts a thread."""

import gc
import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (most of the seconds that DeepSpeed takes)

import pipeline.pretrain.task
import pipeline.train.command  # noqa: F401

gc.freeze()  # so that no rank goes through all of this, or copies it, when its garbage is collected
