"""Songs of MUSDB18 by name, in lower case: the validation set of the `musdb` package, and the test half."""

from __future__ import annotations

_DEV = """
Actions - One Minute Smile
Alexander Ross - Goodbye Bolero
ANiMAL - Rockshow
Clara Berry And Wooldog - Waltz For My Victims
Fergessen - Nos Palpitants
James May - On The Line
Johnny Lokke - Promises & Lies
Leaf - Summerghost
Meaxic - Take A Step
Patrick Talbot - A Reason To Leave
Skelpolu - Human Mistakes
Traffic Experiment - Sirens
Triviul - Angelsaint
Young Griffo - Pennies
"""
_TEST = """
AM Contra - Heart Peripheral
Al James - Schoolboy Facination
Angels In Amplifiers - I'm Alright
Arise - Run Run Run
BKS - Bulldozer
BKS - Too Much
Ben Carrigan - We'll Talk About It All Tonight
Bobby Nobody - Stitch Up
Buitraker - Revo X
Carlos Gonzalez - A Place For Us
Cristina Vane - So Easy
Detsky Sad - Walkie Talkie
Enda Reilly - Cur An Long Ag Seol
Forkupines - Semantics
Georgia Wonder - Siren
Girls Under Glass - We Feel Alright
Hollow Ground - Ill Fate
James Elder & Mark M Thompson - The English Actor
Juliet's Rescue - Heartbeats
Little Chicago's Finest - My Own
Louis Cressy Band - Good Time
Lyndsey Ollard - Catching Up
M.E.R.C. Music - Knockout
Moosmusic - Big Dummy Shake
Motor Tapes - Shore
Mu - Too Bright
Nerve 9 - Pray For The Rain
PR - Happy Daze
PR - Oh No
Punkdisco - Oral Hygiene
Raft Monk - Tiring
Sambasevam Shanmugam - Kaathaadi
Secretariat - Borderline
Secretariat - Over The Top
Side Effects Project - Sing With Me
Signe Jakobsen - What Have You Done To Me
Skelpolu - Resurrection
Speak Softly - Broken Man
Speak Softly - Like Horses
The Doppler Shift - Atrophy
The Easton Ellises (Baumi) - SDRNR
The Easton Ellises - Falcon 69
The Long Wait - Dark Horses
The Mountaineering Club - Mallory
The Sunshine Garcia Band - For I Am The Moon
Timboz - Pony
Tom McKenzie - Directions
Triviul feat. The Fiend - Widow
We Fell From The Sky - Not You
Zeno - Signs
"""
DEV_SONGS = frozenset(_DEV.strip().lower().splitlines())
TEST_SONGS = frozenset(_TEST.strip().lower().splitlines())
