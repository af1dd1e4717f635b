"""The program that separates files: program.py (what is asked for) -> jobs.py (which song, and where its results go) ->
batch.py (read, separate, write)."""
