"""What all other packages use; nothing here imports from them.

device.py        CPU, CUDA or MPS, the precision, and which process of torchrun this is
rng.py           random numbers as functions of seed and index
atomic.py        files that appear whole or not at all
folders.py       all folders below one
untrusted.py     what a file from elsewhere may hold
strict_yaml.py   checked YAML, and keys.py: the metadata of config keys
interrupt.py     Ctrl-C and other signals
cli.py           exit codes and one-sentence errors, with errors.py
memory.py, released.py, threads.py    glibc's malloc, where the released weights are, one job per file on all cores
"""
