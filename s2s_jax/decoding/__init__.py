"""From a decoder step to symbols."""

from s2s_jax.decoding.search import Found as Found
from s2s_jax.decoding.search import greedy as greedy
from s2s_jax.decoding.search import sample as sample
