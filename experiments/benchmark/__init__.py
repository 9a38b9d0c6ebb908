"""The benchmark learns nothing: it times ours beside PyTorch, Flax and Keras, in turns, once their results are equal.

    python -m experiments.benchmark                              the six shapes of the small grid, LSTM and GRU
    python -m experiments.benchmark training-step                whole training steps of experiments, on every backend
    python -m experiments.benchmark decoding                     greedy and beam search of a translator, beside PyTorch
    python -m experiments.benchmark persistent                   the backend of that name on a GPU, and its floor; seven minutes
    python -m experiments.benchmark --grid full                  60 shapes, stacks, streaming and peak memory; hours
    python -m experiments.benchmark --shapes 1,200,256,256 --cells gru          one shape

All are measured in one run on one machine: a ratio is what counts, the peer's time over ours.
"""
