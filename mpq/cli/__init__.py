"""The command line: options, commands, the terminal.

In: words that a user typed. Out: calls of the workflows, tables on the terminal, files.
"""
