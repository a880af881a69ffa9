"""Histograms of oriented gradients, the paper's target."""

from pipeline.targets.hog.arithmetic import hog_target as hog_target
