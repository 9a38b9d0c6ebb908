"""Data sets by name: a folder in one of five plain formats or of saved arrays, or TFDS's catalogue; never TensorFlow."""

from s2s_jax.data.datasets.arrays import SavedArrays as SavedArrays
from s2s_jax.data.datasets.arrays import save_arrays as save_arrays
from s2s_jax.data.datasets.prepared import Source as Source
from s2s_jax.data.datasets.prepared import in_folder as in_folder
from s2s_jax.data.datasets.prepared import load as load
from s2s_jax.data.datasets.report import Report as Report
