"""Flax NNX layers."""

from s2s_jax.layers.attention import Attention as Attention
from s2s_jax.layers.convolution import PICTURE_STAGES as PICTURE_STAGES
from s2s_jax.layers.convolution import TEXT_LINE_STAGES as TEXT_LINE_STAGES
from s2s_jax.layers.convolution import Backbone as Backbone
from s2s_jax.layers.convolution import Stage as Stage
from s2s_jax.layers.recurrent import GRU as GRU
from s2s_jax.layers.recurrent import LSTM as LSTM
from s2s_jax.layers.recurrent import RNN as RNN
from s2s_jax.layers.recurrent import Recurrent as Recurrent
from s2s_jax.layers.regularization import BatchNorm as BatchNorm
from s2s_jax.layers.regularization import Dropout as Dropout
from s2s_jax.layers.regularization import GaussianNoise as GaussianNoise
