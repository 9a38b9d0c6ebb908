"""Flax NNX layers."""

from s2s_jax.layers.attention import Attention as Attention
from s2s_jax.layers.recurrent import GRU as GRU
from s2s_jax.layers.recurrent import LSTM as LSTM
from s2s_jax.layers.recurrent import RNN as RNN
from s2s_jax.layers.recurrent import Recurrent as Recurrent
from s2s_jax.layers.regularization import BatchNorm as BatchNorm
from s2s_jax.layers.regularization import Dropout as Dropout
from s2s_jax.layers.regularization import GaussianNoise as GaussianNoise
