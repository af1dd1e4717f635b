"""Songs that are computed, with their stems: score.py (the notes) -> voices.py, instruments.py (who sings and plays it,
with the sounds of tones.py) -> song.py (a whole song) -> tracks.py (the songs of a training)."""
