"""How a network comes to its weights.

trainer.py (the loop) -> objective.py (what is minimized), muon.py and schedule.py (how the weights follow), backends.py
and xla.py (where it is computed), validation.py (the dev score), monitor.py (curves, bars), resume.py and
run_folder.py (what a run leaves on disk, and how it goes on from there).
"""
