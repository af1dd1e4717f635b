"""What `evaluate.py` measures: scores of a model on songs with known stems, and what they can be at best.

clips.py (songs) -> systems.py (who separates) -> metrics.py, scores.py, museval_scores.py (SDR and its
relatives) -> report.py (tables, pictures). Beside that: oracle.py (ceilings), sweep.py (quality against steps),
calibration.py (uncertainty), invariance.py and families.py (the two claims of the title).
"""
