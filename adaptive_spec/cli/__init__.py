"""The command line: ``adaptive-spec`` and its commands, one file each.

``main`` wires the commands and turns errors into one line and an exit code; ``output`` says what
goes where (results on stdout, everything else on stderr). torch and transformers are imported
inside the commands that need them, after their options have been checked: help, catalogues and
mistyped options answer at once.
"""
