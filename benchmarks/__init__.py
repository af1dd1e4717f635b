"""Programs that measure: what this project claims about speed and about its design is made here."""
