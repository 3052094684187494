"""One adapter for each array library: what the array API lacks, or what the library does faster.

An adapter is found through its entry point and loaded when the first array of its library arrives, so
importing this package imports no array library.
"""
