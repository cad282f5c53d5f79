"""Counts the work of a function on growing inputs; a program that runs inside the sandbox, with the standard library.

The function's source is rewritten: each entry of a function and each turn of a loop or comprehension is one step, and
what a built-in does inside (sorting, searching, copying) is counted by the sizes of its arguments. So a count depends
on source and input only, not on the machine or its load. Reads a JSON object from standard input, writes JSON lines.
"""
