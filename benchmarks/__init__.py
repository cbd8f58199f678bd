"""Measurements of speed and memory, each as ratios within one run."""
