"""From frames to texts where each frame says a symbol or nothing: connectionist temporal classification."""

from s2s_jax.decoding.ctc.alignment import Alignment as Alignment
from s2s_jax.decoding.ctc.alignment import ctc_align as ctc_align
from s2s_jax.decoding.ctc.beam import Language as Language
from s2s_jax.decoding.ctc.beam import Texts as Texts
from s2s_jax.decoding.ctc.beam import ctc_beam_search as ctc_beam_search
from s2s_jax.decoding.ctc.greedy import Read as Read
from s2s_jax.decoding.ctc.greedy import ctc_greedy as ctc_greedy
