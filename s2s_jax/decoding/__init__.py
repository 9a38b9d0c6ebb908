"""From a decoder step to symbols."""

from s2s_jax.decoding.beam import beam_search as beam_search
from s2s_jax.decoding.hypotheses import Hypotheses as Hypotheses
from s2s_jax.decoding.scoring import Scored as Scored
from s2s_jax.decoding.scoring import ensemble as ensemble
from s2s_jax.decoding.scoring import score_reference as score_reference
from s2s_jax.decoding.search import Found as Found
from s2s_jax.decoding.search import greedy as greedy
from s2s_jax.decoding.search import sample as sample
