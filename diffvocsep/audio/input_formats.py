"""Which files are songs or stems by their ending, and which formats ffmpeg may open."""

from __future__ import annotations

_ENDINGS = """wav w64 rf64 bw64 flac ogg oga opus spx mp3 mp2 mp1 mpga aiff aif aifc au snd caf voc m4a m4b m4r mp4 m4v
mov qt 3gp 3g2 aac adts wma wmv asf mka mkv webm ogv ogx avi flv f4v ts mts m2ts mpg mpeg vob wv ape tak tta ac3 eac3
dts dtshd thd mlp amr mpc mp+ ofr dsf dff ra rm rmvb shn gsm"""
SONGS = frozenset(f".{ending}" for ending in _ENDINGS.split())

# Endings of what takes several times as many bytes for a second of sound as the others: uncompressed, or FLAC.
LARGE = frozenset([".wav", ".w64", ".rf64", ".bw64", ".aiff", ".aif", ".au", ".snd", ".caf", ".voc", ".flac"])

# Of stems, fewer: training reads them piece by piece, which takes a format that libsndfile reads from any sample on.
STEM_ENDINGS = frozenset([".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"])

# ffmpeg also opens playlists and manifests (HLS, DASH, ffconcat, SDP, image sequences, ...), which name other files: a
# "song" of a stranger could make it read any file of this computer. Only formats that hold their own sound are let in.
_HELD = """wav w64 aiff au caf flac ogg mp3 mov matroska aac asf avi flv live_flv kux mpegts mpeg wv ape tak tta ac3
eac3 dts dtshd truehd mlp amr amrnb amrwb mpc mpc8 dsf iff rm loas shn gsm voc nut mxf sox nistsphere ircam qcp oma aea
ast spdif vqf xwma dv swf g722 g729 adx"""
FFMPEG = ",".join(_HELD.split())

# Streams of frames without a header for the whole: nothing announces their length, and players pass over what is no
# frame. The others say how long they are, or keep the time of each packet.
_FRAMES = "mp3 aac ac3 eac3 dts dtshd truehd mlp amr amrnb amrwb loas gsm shn g722 spdif"
FRAMES = frozenset(_FRAMES.split())
BROADCAST = frozenset(["mpegts", "mpeg", "dv"])  # begin and end anywhere, but keep the time

LOSSLESS = ("flac", "alac", "wavpack", "tta", "ape", "tak", "truehd", "mlp", "shorten", "pcm_", "dsd_")  # codecs
