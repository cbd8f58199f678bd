"""Entry points and glue: everything that decides instead of computing.

The library takes plain arguments; here configurations are turned into them.
"""
