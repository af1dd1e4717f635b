"""The page: drop a song on it, hear its voice and the rest. `app.py` starts it.

`separation.py` separates one song, `queue.py` lets songs wait for that, `server.py` speaks with the browser
(`index.html`), `guard.py` says with which, and `launch.py` begins and ends it all.
"""
