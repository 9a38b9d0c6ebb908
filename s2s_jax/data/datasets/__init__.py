"""Data sets by name: a user's folder in one of five plain formats, or TFDS's catalogue; TensorFlow is never needed."""

from s2s_jax.data.datasets.prepared import Source as Source
from s2s_jax.data.datasets.prepared import load as load
from s2s_jax.data.datasets.report import Report as Report
