"""The language of experiments: what is chosen, with which options, and how it is said.

`sentence` knows a thing and its options, `grammar` a whole sentence, its flags and its
JSON, `command` the command line. Nothing here knows what an experiment is.
"""
