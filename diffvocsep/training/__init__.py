"""Training.

trainer.py      the loop; one optimizer step; the EMA of the weights
objective.py    the loss
muon.py         the optimizer
schedule.py     the learning rate, the decay of the EMA, when to validate and to end
backends.py     CPU, CUDA, MPS and several processes; xla.py: TPUs
validation.py   the dev score
monitor.py      curves and bars, with history.py and events.py
run.py          what a run consists of: network, EMA, optimizer, progress.py; it saves `last.pt`
resume.py       how a run goes on from it; run_folder.py: what else a run leaves on disk
failures.py, nonfinite.py    what ends a run
"""
