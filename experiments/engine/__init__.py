"""The engine of experiments: from a sentence to a trained and measured run.

`experiment` holds the tables, `model` the pure functions, `road` what happens to a
batch, `loop` the training, `run` its folder, `samples` and `evaluation` what comes out.
"""
